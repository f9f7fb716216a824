"""`POST /api/vmm/reload`: settings, cards and keys, read again without dropping a request."""

from dataclasses import asdict

from litestar import Controller, post
from litestar.di import NamedDependency

from vmm_server.api.openapi import Example, described
from vmm_server.errors import InvalidRequest, SettingsError
from vmm_server.reloading import Reloader

RELOADED = Example(
    "What changed",
    {
        "status": "success",
        "changed": {"at_once": ["keep_alive"], "at_next_load": ["max_sequences"], "at_restart": ["port"]},
        "num_cards": 41,
        "num_keys": 2,
    },
    is_sent=False,
)
BROKEN = Example(
    "A broken file",
    {"error": "/home/me/.vmm/vmm.toml: setting max_queue: Input should be a valid integer"},
    status=400,
    is_sent=False,
)


class ReloadController(Controller):
    """SIGHUP does the same, and tells the log."""

    path = "/api/vmm/reload"

    @post(
        status_code=200,
        operation_id="reload",
        summary="Read settings, cards and keys again",
        opt=described(RELOADED, BROKEN),
    )
    async def reload(self, reloader: NamedDependency[Reloader]) -> dict[str, object]:
        """All of them or, where one is wrong, none. Settings under `at_restart` stay as they were until then."""
        try:
            reloaded = await reloader.reload()
        except SettingsError as error:
            raise InvalidRequest(error.message, param=error.param, hint=error.hint) from error
        return {
            "status": "success",
            "changed": asdict(reloaded.changes),
            "num_cards": reloaded.num_cards,
            "num_keys": reloaded.num_keys,
        }
