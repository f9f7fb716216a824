"""Health, for load balancers and orchestrators; figures, for monitoring."""

import time
from dataclasses import dataclass, field
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency

from vmm_server import __version__
from vmm_server.api.openapi import TEXT, Example, described
from vmm_server.inference import Inference
from vmm_server.metrics.collector import Metrics

OK = Example("All is well", {"status": "ok"})
NOT_READY = Example("Not yet", {"status": "loading", "reason": "loading smollm2:135m"}, status=503, is_sent=False)
FIGURES = Example(
    "Figures",
    "# HELP vmm_requests_running Requests that are computed.\n# TYPE vmm_requests_running gauge\n"
    'vmm_requests_running{backend="openvino",device="CPU",model="smollm2:135m",variant=""} 2.0\n',
    media_type=TEXT,
)


@dataclass(slots=True)
class Readiness:
    """Why the server should get no traffic yet; the app's start-up writes it."""

    waiting_for: str | None = None
    """In words; `None`: nothing."""
    has_started: bool = field(init=False)
    """Whether it was ready once."""
    _born_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.has_started = self.waiting_for is None

    @property
    def uptime_s(self) -> float:
        """Since the server was made."""
        return time.monotonic() - self._born_at

    def started(self) -> None:
        """Nothing is waited for any more."""
        self.waiting_for, self.has_started = None, True


class HealthController(Controller):
    """`live`: the process answers. `startup`: it was ready once. `ready`, and `/health`: it should get traffic."""

    path = "/health"

    @get("/live", operation_id="live", summary="Is the process alive", sync_to_thread=False, opt=described(OK))
    def live(self) -> dict[str, str]:
        """200 as long as the event loop turns."""
        return {"status": "ok"}

    @get(
        "/startup",
        operation_id="startup",
        summary="Has it started",
        sync_to_thread=False,
        opt=described(OK, NOT_READY),
    )
    def startup(self, readiness: NamedDependency[Readiness]) -> Response[dict[str, str]]:
        """503 with the reason until the default model is loaded for the first time; from then on 200."""
        if readiness.has_started:
            return Response({"status": "ok"})
        return _unavailable("loading", readiness.waiting_for or "")

    @get(operation_id="health", summary="Should it get traffic", sync_to_thread=False, opt=described(OK, NOT_READY))
    def health(
        self, readiness: NamedDependency[Readiness], inference: NamedDependency[Inference]
    ) -> Response[dict[str, str]]:
        """The same as `/health/ready`, under the name that load testers ask for."""
        return _state(readiness, inference)

    @get(
        "/ready",
        operation_id="ready",
        summary="Should it get traffic",
        sync_to_thread=False,
        opt=described(OK, NOT_READY),
    )
    def ready(
        self, readiness: NamedDependency[Readiness], inference: NamedDependency[Inference]
    ) -> Response[dict[str, str]]:
        """503 with the reason while the default model is not loaded, or while the server drains."""
        return _state(readiness, inference)


class MetricsController(Controller):
    """What Prometheus reads."""

    @get("/metrics", operation_id="metrics", summary="Figures for Prometheus", opt=described(FIGURES))
    async def metrics(self, request: Request[Any, Any, Any], metrics: NamedDependency[Metrics]) -> Response[bytes]:
        """All that docs/metrics.md lists. Text, or OpenMetrics where the `Accept` header has it."""
        text, media_type = await metrics.exposition(request.headers.get("accept", ""))
        return Response(text, media_type=media_type)


def state_of(readiness: Readiness, inference: Inference) -> tuple[str, str | None]:
    """`ok`, `loading` or `draining`, and why."""
    if inference.draining:
        return "draining", "the server is shutting down"
    return ("ok", None) if readiness.waiting_for is None else ("loading", readiness.waiting_for)


def about_server(readiness: Readiness, inference: Inference) -> dict[str, object]:
    """What there is to say besides figures. `status` and `reason` are those of `/health/ready`."""
    status, reason = state_of(readiness, inference)
    return {"status": status, "reason": reason, "version": __version__, "uptime_s": round(readiness.uptime_s, 1)}


def _state(readiness: Readiness, inference: Inference) -> Response[dict[str, str]]:
    status, reason = state_of(readiness, inference)
    return Response({"status": status}) if reason is None else _unavailable(status, reason)


def _unavailable(status: str, reason: str) -> Response[dict[str, str]]:
    return Response({"status": status, "reason": reason}, status_code=503, headers={"retry-after": "1"})
