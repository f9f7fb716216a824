"""Health, for load balancers and orchestrators."""

from dataclasses import dataclass

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from vmm_server.api.openapi import Example, described
from vmm_server.inference import Inference

OK = Example("All is well", {"status": "ok"})
NOT_READY = Example("Not yet", {"status": "loading", "reason": "loading smollm2:135m"}, status=503, is_sent=False)


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


def _state(readiness: Readiness, inference: Inference) -> Response[dict[str, str]]:
    if inference.draining:
        return _unavailable("draining", "the server is shutting down")
    if readiness.waiting_for is not None:
        return _unavailable("loading", readiness.waiting_for)
    return Response({"status": "ok"})


def _unavailable(status: str, reason: str) -> Response[dict[str, str]]:
    return Response({"status": status, "reason": reason}, status_code=503, headers={"retry-after": "1"})
