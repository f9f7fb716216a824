"""Measures the placements of models: when somebody asks for it, and unasked while nobody asks for anything.

A placement is loaded through the pool, measured with nothing else to do, kept in the profiles, and unloaded if it was
not loaded before. What somebody asks for goes on beside other requests: a measurement during which others used the
same device is repeated, then given up.

Behind (`run`), one placement of a loaded model at a time is measured once the pool has been idle for some seconds. The
first request that comes breaks it off, and the next try waits for twice the time. No other model leaves for it; what
failed once is not tried again before the next start.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from random import Random
from typing import Any, Literal, TypeVar

from vmm_server.errors import GenerationFailed, ModelLoadFailed, ShuttingDown, UnsupportedCapability, VMMError
from vmm_server.models.leases import Lease, LoadedModel
from vmm_server.models.loading import ReadyModel, load_key
from vmm_server.models.measuring import Speeds
from vmm_server.models.measuring import measure as measure_speeds
from vmm_server.models.placing import Placer, task_of
from vmm_server.models.pool import ModelPool
from vmm_server.models.ready import Sampled
from vmm_server.models.router import ONE_ANSWER, Placement, Profile, Work, admits, devices_of, exactly
from vmm_server.models.store import InstalledModel
from vmm_server.requests import ANYWHERE, Wanted

logger = logging.getLogger(__name__)

WORKLOADS: Mapping[str, Work] = {
    "1 stream": Work(),
    "16 streams": Work(num_streams=16),
    "long prompt": Work(num_prompt_tokens=4096),
}
"""What a report says the router's choice for, of a model that writes."""
ANSWERS: Mapping[str, Work] = {"1 at a time": ONE_ANSWER, "16 at a time": replace(ONE_ANSWER, num_streams=16)}
"""The same, of a model that answers whole."""
IDLE_S = 10.0
_LOOK_S = 5.0
"""Between two looks whether there is anything to measure."""
_MOST_IDLE_S = 640.0
_NUM_TRIES = 5
_PAUSE_S = 1.0
"""Before another try, where others use the device."""


@dataclass(frozen=True, slots=True)
class Calibrating:
    """A placement is about to be loaded and measured."""

    placement: Placement
    number: int
    """From 1 to `total`."""
    total: int


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it: a profile, or the reason why there is none; neither, where it was never tried."""

    placement: Placement
    profile: Profile | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a model's placements."""

    rows: tuple[Calibrated, ...]
    choices: Mapping[str, Placement]
    """Where the router sends each of the `workloads` of the model."""
    is_measured: bool
    """It decides by measurements; else by rules of thumb."""


class _NotNow(Exception):
    """A request has come, or other models would have to leave."""


Result = TypeVar("Result")
Measure = Callable[[ReadyModel | Sampled], Awaitable[Speeds]]
Outcome = Literal["measured", "failed"]
_Key = tuple[str, Placement]
"""A model's weights, and where."""


def workloads(model: InstalledModel) -> Mapping[str, Work]:
    """What the model's placements are measured for; empty for encoders of texts, which are not measured."""
    if model.generates:
        return WORKLOADS
    return ANSWERS if task_of(model) == "session" else {}


class Calibrator:
    """Belongs to the pool's event loop. Measures one placement at a time."""

    def __init__(
        self,
        pool: ModelPool,
        placer: Placer,
        *,
        measure: Measure | None = None,
        idle_s: float = IDLE_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pool = pool
        self._placer = placer
        self._measure = measure or partial(measure_speeds, random=Random(0))
        self._idle_s = idle_s
        self._pause = pause
        self._turn = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._reasons: dict[_Key, str] = {}
        """Of what failed since the start."""
        self._num_interruptions = Counter[_Key]()
        self.outcomes = Counter[tuple[str, Placement, Outcome]]()
        """How often each model was measured on a placement, and failed to be, since the start."""

    async def calibrate(
        self, model: InstalledModel, wanted: Wanted = ANYWHERE
    ) -> AsyncGenerator[Calibrating | Calibrated]:
        """Measure every placement that is wanted. Idle models leave for it, as they do for requests.

        Raises `UnsupportedCapability` for an encoder of texts, `UnsupportedParameter` or `ModelLoadFailed`
        when there is no such placement, `ShuttingDown`.
        """
        found = await self._wanted(model, wanted)
        self._pool.arrivals.add()  # what is measured behind makes way
        async with self._turn:
            for number, placement in enumerate(found, 1):
                if self._stopping.is_set():
                    raise ShuttingDown
                yield Calibrating(placement, number, len(found))
                yield await self._calibrate(model, placement)

    async def report(self, model: InstalledModel, wanted: Wanted = ANYWHERE) -> Report:
        """What is known of a model's placements. Raises as `calibrate` does."""
        found = await self._wanted(model, wanted)
        profiles = self._placer.profiles(model)
        wanted = self._placer.effective(model, wanted)
        orders = {name: await self._placer.placements(model, wanted, work) for name, work in workloads(model).items()}
        return Report(
            rows=tuple(Calibrated(each, profiles.get(each), self._reason(model, each)) for each in found),
            choices={name: order[0] for name, order in orders.items()},
            is_measured=all(
                placement in profiles or self._placer.has_failed(model, placement)
                for order in orders.values()
                for placement in order
            ),
        )

    async def run(self) -> None:
        """Measure behind, until `stop`. The app's lifespan owns this task."""
        while not self._stopping.is_set():
            await self._pause(await self.step())

    async def step(self) -> float:
        """Measure one placement if it is time for it; seconds until the next look."""
        waits = [(self._wait_s(*each), *each) for each in await self._missing()]
        if not waits or self._turn.locked():
            return _LOOK_S
        wait_s, model, placement = min(waits, key=itemgetter(0))
        if wait_s > 0:
            return min(wait_s, _LOOK_S)
        before = self._pool.arrivals.count
        async with self._turn:
            try:
                calibrated = await self._calibrate(model, placement, until_request=before)
            except _NotNow:
                self._num_interruptions[model.weights, placement] += 1
            except ShuttingDown:
                return _LOOK_S
            else:
                logger.info("measured %s on %s: %s", model.name, placement, _in_words(calibrated))
        return _PAUSE_S

    def stop(self) -> None:
        """Break off what is measured, and measure nothing more."""
        self._stopping.set()

    async def _wanted(self, model: InstalledModel, wanted: Wanted) -> Sequence[Placement]:
        """The placements of a model that a request with this wish could go to, the NPU's too."""
        if not workloads(model):
            raise UnsupportedCapability(model.name, "calibration: encoders of texts are not measured")
        await self._placer.know_machine()
        effective = self._placer.effective(model, wanted)
        found = [each.placement for each in await self._placer.candidates(model)]
        if not any(admits(effective, placement) for placement in found):
            await self._placer.placements(model, effective)  # says why there is none
        return [placement for placement in found if admits(effective, placement)]

    async def _missing(self) -> list[tuple[InstalledModel, Placement]]:
        """What was not measured of the models in memory, where requests without a wish could go."""
        missing: list[tuple[InstalledModel, Placement]] = []
        for model in [] if self._stopping.is_set() else [loaded.model for loaded in self._pool.loaded()]:
            if not workloads(model):
                continue
            try:
                found = await self._placer.placements(model, self._placer.effective(model, ANYWHERE))
            except VMMError:
                continue  # a request named where it runs, and the settings name what is not here
            if len(found) > 1:
                profiles = self._placer.profiles(model)
                missing += [(model, each) for each in found if each not in profiles and not self._reason(model, each)]
        return missing

    def _wait_s(self, model: InstalledModel, placement: Placement) -> float:
        """How long the pool has yet to be idle for it."""
        needed_s = self._idle_s * 2.0 ** min(10, self._num_interruptions[model.weights, placement])
        return min(_MOST_IDLE_S, needed_s) - self._pool.idle_s()

    def _reason(self, model: InstalledModel, placement: Placement) -> str | None:
        if (failure := self._placer.failure(model, placement)) is not None:
            return failure.reason
        return self._reasons.get((model.weights, placement))

    async def _calibrate(
        self, model: InstalledModel, placement: Placement, *, until_request: int | None = None
    ) -> Calibrated:
        """Measure a placement and keep that. Raises `ShuttingDown`.

        `until_request`: only as long as no more than so many requests have come, and without letting a model leave;
        else raises `_NotNow`.
        """
        key = model.weights, placement
        try:
            profile = await self._profile(model, placement, until_request)
            self._placer.keep(model, placement, profile)
        except ShuttingDown:
            raise
        except VMMError as error:
            self._reasons[key] = error.message
            self.outcomes[model.name, placement, "failed"] += 1
            return Calibrated(placement, reason=error.message)
        self._reasons.pop(key, None)
        self.outcomes[model.name, placement, "measured"] += 1
        return Calibrated(placement, profile)

    async def _profile(self, model: InstalledModel, placement: Placement, until_request: int | None) -> Profile:
        key = load_key(model)
        was_loaded = any(load_key(each.model) == key and each.placement == placement for each in self._pool.loaded())
        lease = await self._pool.borrow(model, placement, evicts=until_request is None)
        if lease is None:
            raise _NotNow
        try:
            if not isinstance(lease.ready, ReadyModel | Sampled):
                raise ModelLoadFailed(f"{model.name!r} is not what its manifest says")
            if until_request is None:
                speeds = await self._measured_alone(lease)
            else:
                disturbed = _first(self._pool.arrivals.after(until_request), self._stopping.wait())
                speeds = await _unless(disturbed, self._speeds(lease))
            load_s, memory_bytes = lease.loaded.load_s, lease.ready.memory_bytes
            return Profile(speeds.decode_1, speeds.decode_8, speeds.prefill, load_s, memory_bytes)
        finally:
            lease.release()
            if not (was_loaded or lease.loaded.num_leases):
                await self._pool.unload(model, exactly(placement))

    async def _measured_alone(self, lease: Lease[ReadyModel | Sampled]) -> Speeds:
        """Speeds while nobody else used the device. Raises `GenerationFailed`, `ShuttingDown`."""
        placement = lease.loaded.placement
        for number in range(_NUM_TRIES):
            if number:
                await self._pause(_PAUSE_S)
            before = self._uses(placement)
            if sum(each.num_leases for each in before) > 1:  # one is ours
                continue
            try:
                speeds = await _unless(self._stopping.wait(), self._speeds(lease))
            except _NotNow:
                raise ShuttingDown from None
            if self._uses(placement) == before:
                return speeds
        raise GenerationFailed(f"other requests ran on {placement.device} meanwhile", hint="measure it when it is idle")

    async def _speeds(self, lease: Lease[ReadyModel | Sampled]) -> Speeds:
        """What was measured. A placement that loads a model and cannot run it is one that failed."""
        try:
            return await self._measure(lease.ready)
        except GenerationFailed as error:
            self._placer.failed(lease.loaded.model, lease.loaded.placement, error.message)
            raise

    def _uses(self, placement: Placement) -> dict[LoadedModel, int]:
        """How often each model that shares a device with this placement was lent."""
        devices = set(devices_of(placement))
        there = (each for each in self._pool.loaded() if not devices.isdisjoint(devices_of(each.placement)))
        return {each: each.num_lent for each in there}


def _in_words(calibrated: Calibrated) -> str:
    if (profile := calibrated.profile) is None:
        return str(calibrated.reason)
    return f"{profile.decode_1:.1f}/s one at a time, {profile.decode_8:.1f}/s eight at a time"


async def _first(*events: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is over; the others are cancelled."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unless(disturbed: Coroutine[Any, Any, Any], work: Awaitable[Result]) -> Result:
    """What `work` gives. Raises `_NotNow`, with the work cancelled, if it is `disturbed` before its end."""
    working = asyncio.ensure_future(work)
    try:
        await _first(disturbed, asyncio.wait((working,)))
        if not working.done():
            raise _NotNow
        return working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
