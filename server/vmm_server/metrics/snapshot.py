"""The main figures as one JSON object: how full the server is, and how fast it was since the last look."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vmm_server.engine.histogram import Distribution, summed
from vmm_server.metrics.figures import Figures, Labels

Number = int | float | None
_GAUGES = {
    "running": "vmm_requests_running",
    "waiting": "vmm_requests_waiting",
    "kv_blocks": "vmm_kv_blocks",
    "kv_blocks_used": "vmm_kv_blocks_used",
    "memory_bytes": "vmm_model_memory_bytes",
}
_RATES = {
    "tokens_per_second": "vmm_tokens_generated",
    "prompt_tokens_per_second": "vmm_prompt_tokens",
    "cached_tokens_per_second": "vmm_cached_tokens",
    "inputs_per_second": "vmm_inputs",
    "preemptions_per_second": "vmm_preemptions",
}
_BATCHES = ("vmm_step_sequences", "vmm_batch_items")
_FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
_RESPONSE_MODEL, _BACKEND, _DEVICE = 3, 4, 5
"""Where `families.GEN_AI` has them."""


@dataclass(frozen=True, slots=True)
class Look:
    """All figures at one moment."""

    at_s: float
    """On a clock that only goes on."""
    figures: Figures
    resident_bytes: int | None
    """Memory of the process, where the system tells."""


def snapshot(now: Look, before: Look | None = None, long_before: Look | None = None) -> dict[str, object]:
    """What a dashboard shows. Rates and batch sizes are of the time since `before`, quantiles of that since
    `long_before`, or `before` too; `None` where it is not given, or nothing happened.

    `{"models": [{"model", "backend", "device", "variant", gauges, rates, quantiles}], "total": {…}, "process": {…}}`;
    times are in seconds, sizes in bytes, and rates per second.
    """
    since = _Since(now, before)
    quantiles_since = _Since(now, long_before) if long_before else since
    gauges = now.figures.values
    places = sorted(place for place in gauges["vmm_model_memory_bytes"])
    return {
        "interval_s": since.interval_s,
        "models": [_model(now, since, quantiles_since, place) for place in places],
        "total": {
            **{key: sum(gauges[name].values()) for key, name in _GAUGES.items()},
            **{key: since.rate(name) for key, name in _RATES.items()},
            **_quantiles(quantiles_since, lambda labels: True, lambda labels: True),
            "http_requests_active": sum(gauges["http_server_active_requests"].values()),
            "http_requests_per_second": since.count_rate("http_server_request_duration_seconds"),
            "requests_per_second": since.count_rate("gen_ai_server_request_duration_seconds"),
            "errors_per_second": since.rate("vmm_errors"),
        },
        "process": {
            "memory_bytes": now.resident_bytes,
            "threads": gauges["vmm_process_threads"][()],
            "tasks": gauges["vmm_asyncio_tasks"][()],
        },
    }


class _Since:
    """What happened between two looks."""

    def __init__(self, now: Look, before: Look | None) -> None:
        self._now = now.figures
        self._before = before.figures if before else None
        self.interval_s = round(now.at_s - before.at_s, 3) or None if before else None

    def rate(self, name: str, labels: Labels | None = None) -> float | None:
        """A counter's growth a second; of all its series, where no labels are given."""
        if self.interval_s is None or self._before is None:
            return None
        now, before = self._now.values[name], self._before.values[name]
        chosen = now if labels is None else (labels,)
        return round(sum(max(0, now[each] - before[each]) for each in chosen) / self.interval_s, 3)

    def count_rate(self, name: str) -> float | None:
        """A histogram's values a second, of all its series."""
        if self.interval_s is None:
            return None
        grown = self.distribution(name, lambda labels: True)
        return round((grown.count if grown else 0) / self.interval_s, 3)

    def mean(self, names: Iterable[str], wanted: Labels) -> float | None:
        """Of what came to histograms of the same kind of thing."""
        grown = summed(each for name in names for each in self._grown(name, lambda labels: labels == wanted))
        return round(grown.total / grown.count, 2) if self._before is not None and grown and grown.count else None

    def distribution(self, name: str, wanted: Callable[[Labels], bool]) -> Distribution | None:
        """What came to some of a histogram's series."""
        return None if self._before is None else summed(self._grown(name, wanted))

    def _grown(self, name: str, wanted: Callable[[Labels], bool]) -> Iterable[Distribution]:
        before = self._before.distributions[name] if self._before else {}
        for labels, distribution in self._now.distributions[name].items():
            if wanted(labels):
                yield distribution - before[labels] if labels in before else distribution


def _model(now: Look, since: _Since, quantiles_since: _Since, place: Labels) -> dict[str, object]:
    model, backend, device, variant = place
    values = now.figures.values

    def is_here(labels: Labels) -> bool:
        return (labels[_RESPONSE_MODEL], labels[_BACKEND], labels[_DEVICE]) == (model, backend, device)

    gauges: dict[str, Number] = {key: values[name].get(place) for key, name in _GAUGES.items()}
    rates: dict[str, Number] = {key: since.rate(name, place) for key, name in _RATES.items()}
    names = {"model": model, "backend": backend, "device": device, "variant": variant}
    batch_size = {"batch_size": since.mean(_BATCHES, place)}
    quantiles = _quantiles(quantiles_since, lambda labels: labels == place, is_here)
    return {**names, **gauges, **rates, **batch_size, **quantiles}


def _quantiles(
    since: _Since, of_place: Callable[[Labels], bool], of_requests: Callable[[Labels], bool]
) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for key, name, wanted in (
        ("time_to_first_token", _FIRST_TOKEN, of_requests),
        ("inter_token", "vmm_inter_token_seconds", of_place),
        ("queue", "vmm_queue_seconds", of_place),
    ):
        distribution = since.distribution(name, wanted)
        for part in (50, 95):
            found[f"{key}_p{part}_s"] = distribution.quantile(part / 100) if distribution else None
    return found
