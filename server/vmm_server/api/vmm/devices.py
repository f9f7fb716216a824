"""`GET /api/vmm/devices`: what the machine computes on, and which adapters can use it."""

from typing import Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency

from vmm_server.api.openapi import described
from vmm_server.api.vmm.examples import DEVICES
from vmm_server.errors import InvalidRequest
from vmm_server.models.machine import MachineReader, describe

_FLAGS = {"true": True, "1": True, "": True, "false": False, "0": False}


class DevicesController(Controller):
    """The machine."""

    path = "/api/vmm/devices"

    @get(
        operation_id="devices",
        summary="What the machine computes on",
        opt=described(DEVICES, query={"refresh": "`true` looks again; else what was found first is told"}),
    )
    async def devices(
        self, request: Request[Any, Any, Any], machine: NamedDependency[MachineReader]
    ) -> dict[str, object]:
        """Found out when somebody asks first, in processes of their own, and kept."""
        word = request.query_params.get("refresh", "false")
        if (refresh := _FLAGS.get(word.lower())) is None:
            raise InvalidRequest(f"refresh: {word!r} is neither true nor false", param="refresh")
        return describe(await machine.read(refresh=refresh))
