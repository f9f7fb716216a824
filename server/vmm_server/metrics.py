"""Figures of what is in memory, in Prometheus's words.

Nothing is counted twice: engines and batchers count what they do, in integers, and are looked at when somebody asks.
So counters belong to a model in memory, and begin anew when it is loaded again, which `rate` and `increase` expect.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from threading import Lock

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vmm_server.engine.transcriber import TranscriberStats
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.leases import LoadedModel
from vmm_server.models.loading import ModelLoader, ReadyModel
from vmm_server.models.pool import ModelPool
from vmm_server.models.ready import Ready, Sampled
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel

PLACE = ("model", "backend", "device", "variant")
"""Labels of everything that belongs to a model on a placement."""
GAUGES: Mapping[str, str] = {
    "vmm_requests_running": "Requests that are computed.",
    "vmm_requests_waiting": "Requests that wait for others.",
    "vmm_kv_blocks": "Blocks of the KV cache; not there where a runtime keeps it to itself.",
    "vmm_kv_blocks_used": "Of them, those that running requests hold.",
    "vmm_model_memory_bytes": "Memory for weights and KV blocks.",
}
COUNTERS: Mapping[str, str] = {
    "vmm_prompt_tokens": "Prompt tokens of requests that are over, cached ones included; of encoders, all tokens.",
    "vmm_cached_tokens": "Of them, found in the prefix cache and not computed again.",
    "vmm_tokens_generated": "Tokens drawn.",
    "vmm_draft_tokens": "Tokens that were guessed, and computed with the one before them.",
    "vmm_accepted_tokens": "Of them, those that were drawn; generated tokens include them.",
    "vmm_inputs": "Computed by a model that answers whole: pictures, seconds of sound, characters of speech.",
    "vmm_preemptions": "Requests that gave their KV blocks to others and were computed again.",
}
"""Their names end `_total` on the wire."""

Place = tuple[str, ...]


class CountedLoads:
    """A `ModelLoader` that counts its failures. Called from several threads."""

    def __init__(self, load: ModelLoader) -> None:
        self._load = load
        self._lock = Lock()
        self._failures: Counter[tuple[Place, str]] = Counter()

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Ready:
        """See `ModelLoader`."""
        try:
            return self._load(model, placement, kv_cache_bytes)
        except Exception as error:
            with self._lock:
                self._failures[_place(model, placement), type(error.__cause__ or error).__name__] += 1
            raise

    @property
    def failures(self) -> Mapping[tuple[Place, str], int]:
        """Where it failed, and the class of the error that it was → how often."""
        with self._lock:
            return dict(self._failures)


class Metrics(Collector):
    """All figures of one server."""

    def __init__(self, pool: ModelPool, loads: CountedLoads) -> None:
        self._pool = pool
        self._loads = loads
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text and its media type, in the format that an `Accept` header prefers. Call on the event loop."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is changes with the models in memory."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Every figure, as it is now. Of models that are alike in all labels, their sum."""
        loaded = self._pool.loaded()
        info = InfoMetricFamily("vmm_model", "Models in memory.", labels=PLACE)
        for place, digest in sorted({(_place(each.model, each.placement), each.model.digest) for each in loaded}):
            info.add_metric(place, {"digest": digest})
        yield info
        sums: defaultdict[str, Counter[Place]] = defaultdict(Counter)
        for each in loaded:
            for name, value in _figures(each).items():
                sums[name][_place(each.model, each.placement)] += value
        for name, text in GAUGES.items():
            yield _filled(GaugeMetricFamily(name, text, labels=PLACE), sums[name])
        for name, text in COUNTERS.items():
            yield _filled(CounterMetricFamily(name, text, labels=PLACE), sums[name])
        failures = CounterMetricFamily("vmm_load_failures", "Loads that failed.", labels=(*PLACE, "reason"))
        yield _filled(failures, {(*place, reason): value for (place, reason), value in self._loads.failures.items()})


def _place(model: InstalledModel, placement: Placement) -> Place:
    return model.name, placement.adapter, placement.device, placement.variant


def _figures(loaded: LoadedModel) -> dict[str, int]:
    figures = {"vmm_model_memory_bytes": loaded.size_bytes}
    if isinstance(loaded.ready, ReadyModel):
        stats, totals = loaded.ready.engine.stats, loaded.ready.engine.totals
        figures |= {
            "vmm_requests_running": stats.num_running,
            "vmm_requests_waiting": stats.num_waiting,
            "vmm_prompt_tokens": totals.num_prompt_tokens,
            "vmm_cached_tokens": totals.num_cached_tokens,
            "vmm_tokens_generated": totals.num_generated_tokens,
            "vmm_draft_tokens": stats.num_drafted_tokens,
            "vmm_accepted_tokens": stats.num_accepted_tokens,
            "vmm_preemptions": stats.num_preempted,
        }
        if stats.num_blocks:
            figures["vmm_kv_blocks"] = stats.num_blocks
            figures["vmm_kv_blocks_used"] = stats.num_blocks - stats.num_free_blocks
    if isinstance(loaded.ready, Sampled):
        did = loaded.ready.stats
        figures |= {
            "vmm_requests_running": did.num_running,
            "vmm_requests_waiting": did.num_waiting,
            "vmm_inputs": did.computed_size,
        }
        if isinstance(did, TranscriberStats):
            figures["vmm_tokens_generated"] = did.num_generated_tokens
    elif isinstance(loaded.ready, ReadyEncoder):
        calls = loaded.ready.batcher.stats
        figures |= {
            "vmm_requests_running": calls.num_running,
            "vmm_requests_waiting": calls.num_waiting,
            "vmm_prompt_tokens": calls.computed_size,
        }
    return figures


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[Place, int]) -> Metric:
    for place, value in sorted(values.items()):
        family.add_metric(place, value)
    return family
