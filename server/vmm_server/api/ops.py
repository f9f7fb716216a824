"""Health, for load balancers and orchestrators; figures, for monitoring."""

from dataclasses import dataclass
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency

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


class HealthController(Controller):
    """`live`: the process answers. `ready`: it should get traffic. `/health` is `ready`."""

    path = "/health"

    @get("/live", operation_id="live", summary="Is the process alive", sync_to_thread=False, opt=described(OK))
    def live(self) -> dict[str, str]:
        """200 as long as the event loop turns."""
        return {"status": "ok"}

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


def _state(readiness: Readiness, inference: Inference) -> Response[dict[str, str]]:
    if inference.draining:
        return _unavailable("draining", "the server is shutting down")
    if readiness.waiting_for is not None:
        return _unavailable("loading", readiness.waiting_for)
    return Response({"status": "ok"})


def _unavailable(status: str, reason: str) -> Response[dict[str, str]]:
    return Response({"status": status, "reason": reason}, status_code=503, headers={"retry-after": "1"})
