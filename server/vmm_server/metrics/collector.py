"""Figures of the server, in Prometheus's words.

Nothing is counted twice: engines and batchers count what they do, in integers, and are looked at when somebody asks.
What a model had counted that left memory is kept, so that counts only grow while the server runs.
"""

import asyncio
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vmm_server import __version__
from vmm_server.admission import Admission, AdmissionStats
from vmm_server.engine.histogram import Distribution
from vmm_server.metrics.families import FAMILIES, Family
from vmm_server.metrics.figures import Figures, Labels, place_of
from vmm_server.metrics.models import CountedLoads, Departures, count_models
from vmm_server.metrics.requests import RequestFigures
from vmm_server.metrics.snapshot import Look
from vmm_server.models.calibration import Calibrator
from vmm_server.models.pool import ModelPool
from vmm_server.observed import Observed

_THREADS = "/proc/self/task"


class Metrics:
    """All figures of one server."""

    def __init__(
        self,
        pool: ModelPool,
        loads: CountedLoads,
        departures: Departures,
        calibrator: Calibrator,
        admission: Admission,
    ) -> None:
        self.requests = RequestFigures()
        self._pool = pool
        self._loads = loads
        self._departures = departures
        self._calibrator = calibrator
        self._admission = admission
        self._process = ProcessCollector(registry=None)

    def observe(self, observed: Observed) -> None:
        """Count a request to a model that is over. On the event loop."""
        self.requests.request(observed)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text and its media type, in the format that an `Accept` header prefers."""
        encode, media_type = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(_Collected([*self._families(self.figures())]))
        registry.register(self._process)
        return await asyncio.to_thread(encode, registry), media_type

    def look(self, clock: Callable[[], float] = time.monotonic) -> Look:
        """Everything, and when it was looked at; two of them make a `snapshot`. Call on the event loop."""
        return Look(clock(), self.figures(), _resident_bytes(self._process))

    def figures(self) -> Figures:
        """Everything, as it is now. Call on the event loop."""
        figures = Figures()
        count_models(figures, (*self._pool.loaded(), *self._pool.leaving()))
        self._departures.count(figures)
        self._loads.count(figures)
        self.requests.count(figures)
        for (name, place, outcome), count in self._calibrator.outcomes.items():
            figures.add("vmm_calibrations", (name, place.adapter, place.device, place.variant, outcome), count)
        _count_tenants(figures, self._admission.stats)
        figures.add("vmm_process_threads", (), _num_threads())
        figures.add("vmm_asyncio_tasks", (), len(asyncio.all_tasks()))
        return figures

    def _families(self, figures: Figures) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.kind == "info":
                yield self._info(family)
            elif family.kind == "histogram":
                yield _histograms(family, figures.distributions[family.name])
            else:
                yield _values(family, figures.values[family.name])

    def _info(self, family: Family) -> Metric:
        metric = InfoMetricFamily(family.name, family.text, labels=family.labels)
        if not family.labels:
            metric.add_metric((), {"version": __version__, "python": platform.python_version()})
            return metric
        loaded = self._pool.loaded()
        for place, digest in sorted({(place_of(each.loaded_as, each.placement), each.model.digest) for each in loaded}):
            metric.add_metric(place, {"digest": digest})
        return metric


class _Collected(Collector):
    """What was collected already, on the event loop."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _values(family: Family, values: Mapping[Labels, int]) -> Metric:
    make = GaugeMetricFamily if family.kind == "gauge" else CounterMetricFamily
    metric = make(family.name, family.text, labels=family.labels)
    for labels, value in sorted(values.items()):
        metric.add_metric(labels, value)
    return metric


def _histograms(family: Family, distributions: Mapping[Labels, Distribution]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.text, labels=family.labels)
    for labels, distribution in sorted(distributions.items(), key=lambda item: item[0]):
        metric.add_metric(labels, _cumulative(distribution), distribution.total)
    return metric


def _cumulative(distribution: Distribution) -> list[tuple[str, float]]:
    """Values up to each bound, as Prometheus has them."""
    buckets, count = [], 0
    for bound, values in zip((*map(str, distribution.bounds), "+Inf"), distribution.counts, strict=True):
        count += values
        buckets.append((bound, float(count)))
    return buckets


def _count_tenants(figures: Figures, stats: AdmissionStats) -> None:
    for tenant, count in stats.num_admitted.items():
        figures.add("vmm_tenant_requests", (tenant,), count)
    for tenant, count in stats.num_tokens.items():
        figures.add("vmm_tenant_tokens", (tenant,), count)
    for (reason, tenant), count in stats.num_rejected.items():
        figures.add("vmm_tenant_rejections", (tenant, reason), count)


def _num_threads() -> int:
    try:
        return len(os.listdir(_THREADS))
    except OSError:  # no Linux
        return threading.active_count()


def _resident_bytes(process: ProcessCollector) -> int | None:
    for metric in process.collect():
        if metric.name == "process_resident_memory_bytes":
            return int(metric.samples[0].value)
    return None
