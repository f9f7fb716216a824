"""`GET /api/vmm/status`: how the server is, on one screen."""

from litestar import Controller, get
from litestar.di import NamedDependency

from vmm_server.api.openapi import Example, described
from vmm_server.api.ops import Readiness, about_server
from vmm_server.inference import Inference
from vmm_server.keys import KeyRing
from vmm_server.metrics.collector import Metrics
from vmm_server.metrics.snapshot import snapshot

STATUS = Example(
    "A server at work",
    {
        "status": "ok",
        "reason": None,
        "version": "2.0.0",
        "uptime_s": 86400.0,
        "keys_required": True,
        "requests": {"running": 2, "waiting": 0, "errors": 3},
        "memory_bytes": 812_000_000,
        "models": [
            {
                "model": "smollm2:135m",
                "backend": "cpu",
                "device": "CPU",
                "variant": "",
                "running": 2,
                "waiting": 0,
                "kv_blocks": 1024,
                "kv_blocks_used": 12,
                "memory_bytes": 402_000_000,
            }
        ],
    },
    is_sent=False,
)
_SHOWN = ("model", "backend", "device", "variant", "running", "waiting", "kv_blocks", "kv_blocks_used", "memory_bytes")


class StatusController(Controller):
    """What `vmm status` shows."""

    path = "/api/vmm/status"

    @get(operation_id="status", summary="How the server is", sync_to_thread=False, opt=described(STATUS))
    def status(
        self,
        readiness: NamedDependency[Readiness],
        inference: NamedDependency[Inference],
        keys: NamedDependency[KeyRing],
        metrics: NamedDependency[Metrics],
    ) -> dict[str, object]:
        """Counts are since the start. `status` and `reason` are those of `/health/ready`."""
        look = metrics.look()
        seen = snapshot(look)
        total, models = seen["total"], seen["models"]
        assert isinstance(total, dict)
        assert isinstance(models, list)
        return {
            **about_server(readiness, inference),
            "keys_required": keys.is_required,
            "requests": {
                "running": total["running"],
                "waiting": total["waiting"],
                "errors": sum(look.figures.values["vmm_errors"].values()),
            },
            "memory_bytes": look.resident_bytes,
            "models": [{name: model[name] for name in _SHOWN} for model in models],
        }
