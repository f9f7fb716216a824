"""Where a model may run on this machine: what `router` decides, with what is known of the machine, kept and remembered.

Belongs to one event loop. A placement that failed, at a load or in the middle of its work, is left alone for a while,
longer each time, as long as there is another; its reason is kept for whoever asks.
"""

import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from vmm_adapters.catalog import RUNS, Form, Task
from vmm_adapters.device import DeviceKind, Machine
from vmm_server.errors import ModelLoadFailed, UnsupportedParameter
from vmm_server.models.leases import LoadedModel
from vmm_server.models.machine import machine_key
from vmm_server.models.profiles import Profiles
from vmm_server.models.router import (
    Candidate,
    Option,
    Placement,
    Profile,
    VariantFiles,
    Work,
    admits,
    candidates,
    choose,
    devices_of,
    matches,
    order,
    own_memory_bytes,
)
from vmm_server.models.store import InstalledModel
from vmm_server.requests import ANYWHERE, Wanted
from vmm_server.settings import Settings, SettingsSource

HOST = "host"
MIN_KV_BYTES = 64 * 1024**2
"""What a model's blocks need besides its weights."""
ANY_ADAPTER = "openvino"
"""The `adapter` of a model that every runtime which reads its form can compute; another one is the only one."""
SESSION_TASKS = frozenset(("detection", "classification", "image-embedding", "transcription", "speech", "vad"))
"""Capabilities of models whose graphs are run as they are: arrays in, arrays out."""
_FIRST_REST_S = 60.0
_LONGEST_REST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What models take their room from: the host's memory, that of one device, or those of several together."""

    names: frozenset[str]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a placement is left alone, and until when."""

    reason: str
    until: float
    num_failures: int


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What all models have to do on a device together."""

    num_running: int
    num_waiting: int
    num_pending_prompt_tokens: int


class Places(Protocol):
    """What the pool asks of whoever knows the machine: `Placer`, or a test's machine."""

    def effective(self, model: InstalledModel, wanted: Wanted) -> Wanted:
        """What a request wants, and, where it leaves that open, the model and the settings."""
        ...

    async def placements(self, model: InstalledModel, wanted: Wanted) -> Sequence[Placement]:
        """Those to try, best first; at least one. Raises `UnsupportedParameter`, `ModelLoadFailed`."""
        ...

    def failure(self, model: InstalledModel, placement: Placement) -> Failure | None:
        """Why a placement is to be left alone at this moment, as long as there is another."""
        ...

    def serves(self, loaded: LoadedModel, wanted: Wanted) -> bool:
        """Whether a request gets its answer there. A variant that another asked for by name is not for all."""
        ...

    def choose(self, fitting: Sequence[LoadedModel], loaded: Collection[LoadedModel], work: Work) -> LoadedModel:
        """Which of the `fitting`, of all that are `loaded`, gets a request."""
        ...

    def join(
        self, fitting: Sequence[LoadedModel], loaded: Collection[LoadedModel], wanted: Wanted, work: Work
    ) -> Placement | None:
        """Where the request would end sooner, even if the model had to be loaded there first."""
        ...

    def size_bytes(self, model: InstalledModel, placement: Placement) -> int:
        """Of the model's weights there."""
        ...

    def memory(self, placement: Placement) -> Memory:
        """Where a model's weights and blocks go there."""
        ...

    def failed(self, model: InstalledModel, placement: Placement, reason: str) -> None:
        """Leave it alone for a while."""
        ...


class Placer:
    """Implements `Places` for the machine it runs on."""

    def __init__(
        self,
        settings: SettingsSource,
        read_machine: Callable[[], Awaitable[Machine]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`read_machine` is asked whenever a model is to be placed: it waits the first time only."""
        self._settings = settings
        self._read_machine = read_machine
        self._profiles = Profiles(settings.now.cache_dir)
        self._clock = clock
        self._machine: Machine | None = None
        self._machine_key = ""
        self._failures: dict[tuple[str, Placement], Failure] = {}

    def effective(self, model: InstalledModel, wanted: Wanted) -> Wanted:
        """See `Places`."""
        return wanted.over(wanted_by(model)).over(wanted_by_settings(self._settings.now))

    async def placements(self, model: InstalledModel, wanted: Wanted, work: Work | None = None) -> Sequence[Placement]:
        """See `Places`. Waits for the machine to be probed, the first time. What failed lately comes last, and need
        not have been measured."""
        found = await self.candidates(model)
        tried = self._ordered(model, found, wanted, work)
        if not tried:
            raise _nowhere(model, found, wanted, wanted_by(model).over(wanted_by_settings(self._settings.now)))
        return tried

    async def know_machine(self) -> Machine:
        """The machine, probed the first time."""
        machine = await self._read_machine()
        if machine is not self._machine:
            self._machine, self._machine_key = machine, machine_key(machine)
        return machine

    async def candidates(self, model: InstalledModel) -> tuple[Candidate, ...]:
        """Every placement that this machine has for a model."""
        if not _is_echo(model):
            await self.know_machine()
        return self._candidates(model)

    def _candidates(self, model: InstalledModel) -> tuple[Candidate, ...]:
        if _is_echo(model):
            return (Candidate(Placement(model.adapter, "CPU"), DeviceKind.CPU, model.size_bytes),)
        devices = () if self._machine is None else self._machine.devices
        found = candidates(task_of(model), variants_of(model), devices)
        return tuple(
            replace(each, fits=each.size_bytes + MIN_KV_BYTES <= self.memory(each.placement).num_bytes)
            for each in found
            if model.adapter in (ANY_ADAPTER, each.placement.adapter)
        )

    def profiles(self, model: InstalledModel) -> Mapping[Placement, Profile]:
        """What was measured of a model; nothing, as long as the machine is not known."""
        return {} if self._machine is None else self._profiles.of(model, self._machine_key)

    def keep(self, model: InstalledModel, placement: Placement, profile: Profile) -> None:
        """Keep a measurement. Raises `StoreError`."""
        if self._machine is not None:
            self._profiles.keep(model, self._machine_key, placement, profile)

    def serves(self, loaded: LoadedModel, wanted: Wanted) -> bool:
        """See `Places`. The model as installed is for all, and so is the variant that its device would get unasked."""
        placement = loaded.placement
        if not admits(wanted, placement) or not placement.variant or wanted.variant is not None:
            return admits(wanted, placement)
        tried = self._ordered(loaded.model, self._candidates(loaded.model), wanted)
        first = next((each for each in tried if each.device == placement.device), placement)
        return first.variant == placement.variant

    def choose(self, fitting: Sequence[LoadedModel], loaded: Collection[LoadedModel], work: Work) -> LoadedModel:
        """See `Places`."""
        if len(fitting) == 1:
            return fitting[0]
        options = [Option(each.placement, _device_load(each.placement, loaded)) for each in fitting]
        return fitting[options.index(choose(options, self.profiles(fitting[0].model), work))]

    def join(
        self, fitting: Sequence[LoadedModel], loaded: Collection[LoadedModel], wanted: Wanted, work: Work
    ) -> Placement | None:
        """See `Places`. Only a placement that was measured is worth another load, and only of the same variant."""
        model, taken = fitting[0].model, {each.placement for each in fitting}
        profiles = self.profiles(model)
        if profiles.keys() <= taken:
            return None
        there = [each.placement for each in self._candidates(model) if each.placement in profiles]
        others = [each for each in there if each not in taken and self._may_join(model, each, fitting, wanted)]
        if not others:
            return None
        options = [Option(each, _device_load(each, loaded)) for each in taken]
        options += [Option(each, _device_load(each, loaded), is_loaded=False) for each in others]
        best = choose(options, profiles, work)
        return None if best.is_loaded else best.placement

    def size_bytes(self, model: InstalledModel, placement: Placement) -> int:
        """See `Places`."""
        sizes = {each.name: each.size_bytes for each in variants_of(model)}
        return sizes.get(placement.variant, model.size_bytes)  # a variant may have been removed in this moment

    def memory(self, placement: Placement) -> Memory:
        """See `Places`. A GPU without memory of its own shares the host's."""
        devices = () if self._machine is None else self._machine.devices
        used = [device for device in devices if device.name in devices_of(placement)]
        own = {device.name: size for device in used if (size := own_memory_bytes(device, devices)) is not None}
        if own:
            return Memory(frozenset(own), sum(own.values()))
        return Memory(frozenset((HOST,)), host_memory_bytes(self._settings.now))

    def failed(self, model: InstalledModel, placement: Placement, reason: str) -> None:
        """See `Places`: a minute, then twice as long each time."""
        before = self._failures.get((model.weights, placement))
        num_failures = 1 if before is None else before.num_failures + 1
        rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * 2 ** (num_failures - 1))
        self._failures[model.weights, placement] = Failure(reason, self._clock() + rest_s, num_failures)

    def failure(self, model: InstalledModel, placement: Placement) -> Failure | None:
        """Why a placement is left alone at this moment."""
        found = self._failures.get((model.weights, placement))
        return found if found is not None and self._clock() < found.until else None

    def has_failed(self, model: InstalledModel, placement: Placement) -> bool:
        """Whether it failed since the start, however long ago."""
        return (model.weights, placement) in self._failures

    def _ordered(
        self, model: InstalledModel, found: Sequence[Candidate], wanted: Wanted, work: Work | None = None
    ) -> tuple[Placement, ...]:
        """What failed lately comes last. What failed before, and was never measured, comes behind those that all were:
        it is no reason to go back to rules of thumb."""
        profiles = self.profiles(model)
        admitted = [each for each in found if admits(wanted, each.placement)]
        well = [each for each in admitted if self.failure(model, each.placement) is None]
        sure = [each for each in well if each.placement in profiles or not self.has_failed(model, each.placement)]
        if not all(each.placement in profiles for each in sure):
            sure = well
        doubtful = [each for each in well if each not in sure]
        failed = [each for each in admitted if each not in well]
        sure_first = (order(each, profiles, wanted, work) for each in (sure, doubtful, failed))
        return tuple(chain.from_iterable(sure_first))

    def _may_join(
        self, model: InstalledModel, placement: Placement, fitting: Sequence[LoadedModel], wanted: Wanted
    ) -> bool:
        return (
            admits(wanted, placement)
            and placement.variant == fitting[0].placement.variant
            and self.failure(model, placement) is None
        )


def wanted_by_settings(settings: Settings) -> Wanted:
    """What `device` and `backend` say."""
    return Wanted(
        None if settings.device.lower() == "auto" else settings.device,
        None if settings.backend == "auto" else settings.backend,
    )


def host_memory_bytes(settings: Settings) -> int:
    """What models may take of the host's memory together."""
    return int(settings.memory_budget or _physical_memory_bytes() // 2)


def _physical_memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return 8 * 1024**3


def wanted_by(model: InstalledModel) -> Wanted:
    """What a model's own parameters say (`PARAMETER device GPU.0` of a Modelfile)."""
    device, backend = _named(model.parameters.get("device")), _named(model.parameters.get("backend"))
    return Wanted(device, backend) if device or backend else ANYWHERE


def _named(value: object) -> str | None:
    """`auto` takes away what a model's parent says."""
    return value if isinstance(value, str) and value.lower() != "auto" else None


def _is_echo(model: InstalledModel) -> bool:
    """The test model runs anywhere: no machine need be probed."""
    return RUNS[model.adapter].forms == {"echo"}


def task_of(model: InstalledModel) -> Task:
    """What is asked of adapters for a model."""
    if SESSION_TASKS & {*model.capabilities}:
        return "session"
    if not model.generates:
        return "encode"
    return "vision-text" if "vision" in model.capabilities else "text"


def variants_of(model: InstalledModel) -> tuple[VariantFiles, ...]:
    """The precisions of a model that are here."""
    own = VariantFiles("", model.size_bytes, _form(model.format))
    return (own, *(VariantFiles(each.name, each.size_bytes, _form(each.format)) for each in model.variants))


def _form(format_: str) -> Form:
    return "openvino" if format_ == "openvino" else "onnx"


def _device_load(placement: Placement, loaded: Collection[LoadedModel]) -> DeviceLoad:
    """Of whichever model: they share the processor."""
    devices = set(devices_of(placement))
    there = [each for each in loaded if not devices.isdisjoint(devices_of(each.placement))]
    return DeviceLoad(
        sum(each.ready.load.num_running for each in there),
        sum(each.ready.load.num_waiting + each.num_expected for each in there),
        sum(each.ready.load.num_pending_prompt_tokens + each.num_expected_prompt_tokens for each in there),
    )


def _nowhere(
    model: InstalledModel, found: Sequence[Candidate], wanted: Wanted, unasked: Wanted
) -> UnsupportedParameter | ModelLoadFailed:
    """No placement is as it is wanted: the request's fault, unless the model and the settings say the same."""
    there = ", ".join(sorted({str(each.placement) for each in found})) or "none"
    message = f"{model.name!r} cannot run on {wanted} here; placements (backend/device): {there}"
    if wanted in (unasked, ANYWHERE):
        return ModelLoadFailed(message, param="device", hint="vmm devices tells what is here, and why something is not")
    each = {
        "device": Wanted(wanted.device),
        "backend": Wanted(None, wanted.backend),
        "variant": Wanted(variant=wanted.variant),
    }
    asked = [name for name in each if getattr(wanted, name) != getattr(unasked, name)] or ["backend"]
    missing = [name for name in asked if not any(matches(each[name], one.placement) for one in found)]
    param = wanted.params.get((missing or asked)[0], (missing or asked)[0])
    return UnsupportedParameter(message, param=param, hint=f"leave out {param}, or name one of these")
