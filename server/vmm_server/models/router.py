"""Where a model runs: the placements there are, the order to try them in, and which of those loaded gets a request.

A placement is an adapter on a device with a variant of the model. What is wanted by name is all that is considered: an
answer never comes from a device that the user did not choose. Of the rest, measurements decide (`Profile`): a
request goes where it is expected to end first, the queue there and the time of a load counted in. As long as a
placement was never measured, rules of thumb decide: a small model is fastest on the CPU (no transfers, no launches), a
large one, or many requests at a time, on a GPU. An NPU is never chosen unasked: it serves one request at a time.

Pure: no clocks, no threads, no files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

from vmm_adapters.catalog import CAUSAL_LM, RUNS, Form, Task
from vmm_adapters.device import Device, DeviceKind
from vmm_server.requests import Wanted

LARGE_MODEL_BYTES = 1 << 30
MANY_STREAMS = 8
"""Requests at a time from which on a GPU is the better guess."""


@dataclass(frozen=True, slots=True)
class Placement:
    """An adapter on a device, with a variant of the model: `""` is the model as it was installed."""

    adapter: str
    device: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.adapter}/{self.device}" + (f"/{self.variant}" if self.variant else "")


def admits(wanted: Wanted, placement: Placement) -> bool:
    """Whether a placement is one of those asked for."""
    device, name = placement.device.upper(), (wanted.device or placement.device).upper()
    return (
        (device == name or device.startswith(f"{name}."))
        and wanted.backend in (None, placement.adapter)
        and wanted.variant in (None, placement.variant)
        and (not wanted.needs_logits or placement.adapter in CAUSAL_LM)
    )


def exactly(placement: Placement) -> Wanted:
    """The one and no other."""
    return Wanted(placement.device, placement.adapter, placement.variant)


@dataclass(frozen=True, slots=True)
class VariantFiles:
    """One precision of a model, as it lies on disk."""

    name: str
    """`""`: as it was installed."""
    size_bytes: int
    form: Form


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement that could take the model."""

    placement: Placement
    kind: DeviceKind
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What a placement was measured to do for a model on this machine."""

    decode_1: float
    """Tokens/s of one stream."""
    decode_8: float
    """Tokens/s of eight streams in all."""
    prefill: float
    """Tokens/s of a prompt of 512 tokens."""
    load_s: float
    memory_bytes: int

    def decode(self, num_streams: int) -> float:
        """Tokens/s in all of so many streams: between what was measured, on a straight line of logarithms."""
        share = min(1.0, log(max(1, num_streams)) / log(8))
        return float(self.decode_1 * (self.decode_8 / self.decode_1) ** share)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: so many requests at a time, each of so many tokens."""

    num_prompt_tokens: int = 512
    num_output_tokens: int = 128
    num_streams: int = 1


class Load(Protocol):
    """What an engine has to do already."""

    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_pending_prompt_tokens(self) -> int:
        """Of all that run or wait."""
        ...


@dataclass(frozen=True, slots=True)
class NoLoad:
    """Nothing to do."""

    num_running: int = 0
    num_waiting: int = 0
    num_pending_prompt_tokens: int = 0


NO_LOAD = NoLoad()


def candidates(task: Task, variants: Sequence[VariantFiles], devices: Sequence[Device]) -> tuple[Candidate, ...]:
    """Every placement that could run a model of this task: adapters that read its form, on devices they can use."""
    return tuple(
        Candidate(Placement(adapter, device.name, variant.name), device.kind, variant.size_bytes)
        for variant in variants
        for adapter, runs in RUNS.items()
        if task in runs.tasks and variant.form in runs.forms
        for device in devices
        if device.kind in runs.kinds and device.use(adapter) is not None
    )


def order(
    found: Iterable[Candidate], profiles: Mapping[Placement, Profile], wanted: Wanted, work: Work | None = None
) -> tuple[Placement, ...]:
    """The placements to try, best first; empty when nothing that is wanted is there.

    By measurement when all of them were measured, else by rule: what is measured on some devices says nothing of the
    others. `work` is what the model is loaded for; without one, a middling day: a few requests at a time.
    """
    work = work or Work(num_streams=4)
    admitted = [each for each in found if admits(wanted, each.placement)]
    if wanted.device is None:
        admitted = [each for each in admitted if each.kind is not DeviceKind.NPU]
    if all(each.placement in profiles for each in admitted):
        admitted.sort(key=lambda each: finish_s(profiles[each.placement], NO_LOAD, work))
    else:
        admitted.sort(key=lambda each: _rank(each, work))
    return tuple(each.placement for each in admitted)


def _rank(candidate: Candidate, work: Work) -> tuple[bool, bool, int]:
    """The rule of thumb; lower is better. The model as installed goes before its variants: it is what was asked for."""
    prefers_gpu = candidate.size_bytes >= LARGE_MODEL_BYTES or work.num_streams >= MANY_STREAMS
    is_second = (candidate.kind is DeviceKind.GPU) != prefers_gpu
    return is_second, candidate.placement.variant != "", list(RUNS).index(candidate.placement.adapter)


def finish_s(profile: Profile, load: Load, work: Work) -> float:
    """Seconds until the last of `work`'s requests ends on a placement that has `load` to do already.

    Prompts are computed one after the other; all answers grow together.
    """
    num_streams = load.num_running + load.num_waiting + work.num_streams
    num_prompt_tokens = load.num_pending_prompt_tokens + work.num_streams * work.num_prompt_tokens
    decode_s = work.num_output_tokens * num_streams / profile.decode(num_streams)
    return num_prompt_tokens / profile.prefill + decode_s


@dataclass(frozen=True, slots=True)
class Option:
    """A placement that a request could go to."""

    placement: Placement
    load: Load
    """All there is to do on its device, by whichever model or adapter."""
    is_loaded: bool = True


def choose(options: Sequence[Option], profiles: Mapping[Placement, Profile], work: Work) -> Option:
    """Where a request ends first. One option must be loaded; the others are considered when all were measured.

    Where one was never measured, the loaded one with the fewest requests; the first of those with as few.
    """
    if not all(option.placement in profiles for option in options):
        loaded = (option for option in options if option.is_loaded)
        return min(loaded, key=lambda option: option.load.num_running + option.load.num_waiting)

    def ends_s(option: Option) -> float:
        profile = profiles[option.placement]
        return finish_s(profile, option.load, work) + (0.0 if option.is_loaded else profile.load_s)

    return min(options, key=ends_s)
