"""Figures of models: of those in memory, of those that left it, and of how they came and went."""

from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock
from time import perf_counter

from vmm_server.engine.histogram import Histogram
from vmm_server.engine.transcriber import TranscriberStats
from vmm_server.metrics.events import ModelEvent, Tell, nobody_listens
from vmm_server.metrics.families import FAMILIES, LOAD_S, PLACE
from vmm_server.metrics.figures import Bounded, Figures, Labels, place_of
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.leases import LoadedModel
from vmm_server.models.loading import ModelLoader, ReadyModel
from vmm_server.models.ready import Ready, Sampled
from vmm_server.models.residents import Why
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel

MAX_PLACES = 1000
"""Models on placements whose loads are counted, and of which figures are kept after they left."""
_KEPT = frozenset(
    family.name for family in FAMILIES if family.labels == PLACE and family.kind in ("counter", "histogram")
)


class CountedLoads:
    """A `ModelLoader` that counts its loads and failures, and tells of them. Called from several threads."""

    def __init__(self, load: ModelLoader, tell: Tell = nobody_listens) -> None:
        self._load = load
        self._tell = tell
        self._lock = Lock()
        self._bounded = Bounded(MAX_PLACES)
        self._failures: Counter[Labels] = Counter()
        self._seconds: dict[Labels, Histogram] = {}

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Ready:
        """See `ModelLoader`."""
        started, place = perf_counter(), place_of(model.name, placement)
        try:
            ready = self._load(model, placement, kv_cache_bytes)
        except Exception as error:
            reason = type(error.__cause__ or error).__name__
            with self._lock:
                self._failures[(*self._bounded(place), reason)] += 1
            self._tell(ModelEvent("load_failed", place, reason=reason))
            raise
        seconds = perf_counter() - started
        with self._lock:
            self._seconds.setdefault(self._bounded(place), Histogram(LOAD_S)).add(seconds)
        self._tell(ModelEvent("loaded", place, seconds=round(seconds, 3)))
        return ready

    def count(self, figures: Figures) -> None:
        """Add what there is."""
        with self._lock:
            figures.values["vmm_load_failures"].update(self._failures)
            for place, seconds in self._seconds.items():
                figures.add_distribution("vmm_load_seconds", place, seconds.distribution)


class Departures:
    """What models had counted that are out of memory, so that no count ever falls. On the event loop."""

    def __init__(self, tell: Tell = nobody_listens) -> None:
        self._tell = tell
        self._left: Counter[Labels] = Counter()
        self._kept = Figures()
        self._bounded = Bounded(MAX_PLACES)

    def left(self, loaded: LoadedModel, why: Why) -> None:
        """A model is gone; see `residents.Left`."""
        place = place_of(loaded.loaded_as, loaded.placement)
        self._tell(ModelEvent("unloaded", place, reason=why))
        place = self._bounded(place)
        self._left[(*place, why)] += 1
        figures = Figures()
        count_model(figures, loaded, place)
        self._kept.add_all(figures, _KEPT)

    def count(self, figures: Figures) -> None:
        """Add what there is."""
        figures.values["vmm_unloads"].update(self._left)
        figures.add_all(self._kept)


def count_models(figures: Figures, loaded: Iterable[LoadedModel]) -> None:
    """Add what models have counted that are in memory. Call on the event loop."""
    for each in loaded:
        count_model(figures, each, place_of(each.loaded_as, each.placement))


def count_model(figures: Figures, loaded: LoadedModel, place: Labels) -> None:
    """Add what one model has counted."""
    for name, value in _values(loaded).items():
        figures.add(name, place, value)
    ready = loaded.ready
    if isinstance(ready, ReadyModel):
        histograms = ready.engine.histograms
        figures.add_distribution("vmm_queue_seconds", place, histograms.queue_s.distribution)
        figures.add_distribution("vmm_inter_token_seconds", place, histograms.inter_token_s.distribution)
        figures.add_distribution("vmm_step_sequences", place, histograms.step_sequences.distribution)
        if (tokens := histograms.step_tokens.distribution).count:
            figures.add_distribution("vmm_step_tokens", place, tokens)
    elif isinstance(ready, Sampled | ReadyEncoder):
        stats = ready.stats if isinstance(ready, Sampled) else ready.batcher.stats
        for each in stats.histograms:
            figures.add_distribution("vmm_queue_seconds", place, each.queue_s.distribution)
            figures.add_distribution("vmm_batch_items", place, each.batch_items.distribution)


def _values(loaded: LoadedModel) -> Mapping[str, int]:
    values = {"vmm_model_memory_bytes": loaded.size_bytes}
    if isinstance(loaded.ready, ReadyModel):
        stats, totals = loaded.ready.engine.stats, loaded.ready.engine.totals
        values |= {
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
            values["vmm_kv_blocks"] = stats.num_blocks
            values["vmm_kv_blocks_used"] = stats.num_blocks - stats.num_free_blocks
    if isinstance(loaded.ready, Sampled):
        did = loaded.ready.stats
        values |= {
            "vmm_requests_running": did.num_running,
            "vmm_requests_waiting": did.num_waiting,
            "vmm_inputs": did.computed_size,
        }
        if isinstance(did, TranscriberStats):
            values["vmm_tokens_generated"] = did.num_generated_tokens
    elif isinstance(loaded.ready, ReadyEncoder):
        calls = loaded.ready.batcher.stats
        values |= {
            "vmm_requests_running": calls.num_running,
            "vmm_requests_waiting": calls.num_waiting,
            "vmm_prompt_tokens": calls.computed_size,
        }
    return values
