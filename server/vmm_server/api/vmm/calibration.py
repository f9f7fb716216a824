"""`POST /api/vmm/calibrate` and `GET /api/vmm/profiles`: how fast models are wherever they can run."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from litestar import Controller, Request, get, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.body import read_body
from vmm_server.api.errors import ollama_body
from vmm_server.api.framing import json_line
from vmm_server.api.openapi import described
from vmm_server.api.placement import PlacementFields, wanted_of
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, ndjson_response
from vmm_server.api.vmm.examples import CALIBRATE, PROFILES
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.calibration import Calibrated, Calibrating, Calibrator, Report, workloads
from vmm_server.models.registry import Registry
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.requests import Wanted

Json = dict[str, object]


class CalibrateBody(PlacementFields):
    """Body of `POST /api/vmm/calibrate`."""

    model: str
    stream: bool | None = None
    """`false`: the last line alone."""


class CalibrationController(Controller):
    """Measurements."""

    path = "/api/vmm"

    @post(
        "/calibrate",
        status_code=200,
        operation_id="calibrate",
        summary="Measure a model where it can run",
        opt=described(CALIBRATE, body=CalibrateBody),
    )
    async def calibrate(
        self,
        request: Request[Any, Any, Any],
        calibrator: NamedDependency[Calibrator],
        registry: NamedDependency[Registry],
    ) -> ASGIApp:
        """Each placement is loaded, measured for some seconds, and unloaded if it was not loaded before.

        Progress as NDJSON; the last line says `success` and what `/api/vmm/profiles` says of the model.
        """
        body = await read_body(request, CalibrateBody)
        wanted = wanted_of(request.headers, body)
        model = await asyncio.to_thread(registry.resolve, body.model)
        if body.stream is False:
            return json_response(lambda: _whole(calibrator, model, wanted))
        return ndjson_response(lambda: _stream(calibrator, model, wanted), ollama_body)

    @get(
        "/profiles",
        operation_id="profiles",
        summary="What was measured of models, and where their requests go",
        opt=described(PROFILES, query={"model": "This one alone; else all but encoders of texts"}),
    )
    async def profiles(
        self,
        request: Request[Any, Any, Any],
        calibrator: NamedDependency[Calibrator],
        registry: NamedDependency[Registry],
    ) -> Json:
        """A placement has its `profile`, or a `reason` why there is none, or neither, where it was never tried."""
        if (name := request.query_params.get("model")) is not None:
            model = await asyncio.to_thread(registry.resolve, name)
            return {"models": [describe(model, await calibrator.report(model))]}
        found: list[Json] = []
        for model in await asyncio.to_thread(registry.installed):
            if workloads(model):
                with suppress(ModelLoadFailed):  # nothing here can run it: there is nothing to tell
                    found.append(describe(model, await calibrator.report(model)))
        return {"models": found}


def describe(model: InstalledModel, report: Report) -> Json:
    """A report as JSON. Pure."""
    return {
        "model": model.name,
        "unit": "tokens" if model.generates else "answers",
        "is_measured": report.is_measured,
        "placements": [_row(row) for row in report.rows],
        "choices": [
            {"work": name, **asdict(workloads(model)[name]), **_named(at)} for name, at in report.choices.items()
        ],
    }


def _row(row: Calibrated) -> Json:
    return {
        **_named(row.placement),
        "profile": None if row.profile is None else asdict(row.profile),
        "reason": row.reason,
    }


def _named(placement: Placement) -> Json:
    names = {"backend": placement.adapter, "device": placement.device, "variant": placement.variant}
    return {"placement": str(placement), **names}


async def _whole(calibrator: Calibrator, model: InstalledModel, wanted: Wanted) -> WholeAnswer:
    last: Json = {}
    async with aclosing(_events(calibrator, model, wanted)) as events:
        async for event in events:
            last = event
    return WholeAnswer(last)


@asynccontextmanager
async def _stream(calibrator: Calibrator, model: InstalledModel, wanted: Wanted) -> AsyncIterator[ChunkStream]:
    async with aclosing(_events(calibrator, model, wanted)) as events:
        yield ChunkStream(json_line(event) async for event in events)


async def _events(calibrator: Calibrator, model: InstalledModel, wanted: Wanted) -> AsyncGenerator[Json]:
    async with aclosing(calibrator.calibrate(model, wanted)) as events:
        async for event in events:
            yield _event(event)
    yield {"status": "success", **describe(model, await calibrator.report(model, wanted))}


def _event(event: Calibrating | Calibrated) -> Json:
    if isinstance(event, Calibrating):
        status = f"measuring {event.placement} ({event.number} of {event.total})"
        return {"status": status, **_named(event.placement), "number": event.number, "total": event.total}
    status = "measured" if event.reason is None else "failed"
    return {"status": f"{status} {event.placement}", **_row(event)}
