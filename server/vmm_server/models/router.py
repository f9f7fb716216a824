"""Where a model runs: the placements there are, the order to try them in, and which of those loaded gets a request.

A placement is an adapter on a device with a variant of the model. What is wanted by name is all that is considered: an
answer never comes from a device that the user did not choose. Of the rest, measurements decide (`Profile`): a
request goes where it is expected to end first, the queue there and the time of a load counted in. As long as a
placement was never measured, rules of thumb decide: a small model is fastest on the CPU (no transfers, no launches), a
large one, or many requests at a time, on a GPU. An NPU is never chosen unasked: it serves one request at a time.

Pure: no clocks, no threads, no files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

from vmm_adapters.catalog import CAUSAL_LM, RUNS, Form, Task
from vmm_adapters.device import Device, DeviceKind
from vmm_server.requests import Wanted

LARGE_MODEL_BYTES = 1 << 30
HETERO = "HETERO:"
"""Before the names of devices among which OpenVINO shares a model out, layer by layer."""
OWN_MEMORY_SHARE = 0.9
"""Of a device's own memory; the rest is its driver's and the desktop's."""
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


def matches(wanted: Wanted, placement: Placement) -> bool:
    """Whether a placement is one of those named; nothing named, all of them."""
    return (
        (wanted.device is None or _is_called(placement.device.upper(), wanted.device.upper()))
        and wanted.backend in (None, placement.adapter)
        and wanted.variant in (None, placement.variant)
        and (not wanted.needs_logits or placement.adapter in CAUSAL_LM)
    )


def admits(wanted: Wanted, placement: Placement) -> bool:
    """Whether a request may go there: an NPU has to be asked for."""
    return matches(wanted, placement) and (wanted.device is not None or not placement.device.startswith("NPU"))


def devices_of(placement: Placement) -> tuple[str, ...]:
    """The devices that a placement computes on: those of `HETERO:GPU.0,GPU.1` are two."""
    return tuple(placement.device.removeprefix(HETERO).split(","))


def _is_called(device: str, name: str) -> bool:
    """`GPU.1` is a `GPU`, and so are several of them together."""
    if device == name or device.startswith(f"{name}:"):
        return True
    return all(part == name or part.startswith(f"{name}.") for part in device.removeprefix(HETERO).split(","))


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
    fits: bool = True
    """Whether there would be room for it in the device's memory, if nothing else were there."""
    is_slow: bool = False
    """Whether the adapter lacks on this device what it is fast with."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a placement was measured to do for a model on this machine."""

    decode_1: float
    """Tokens/s of one stream; of a model that answers whole, answers/s when one is asked for at a time."""
    decode_8: float
    """Tokens/s of eight streams in all; answers/s when eight are asked for at a time."""
    prefill: float
    """Tokens/s of a prompt of 512 tokens; what answers whole has no prompt, and the same as `decode_8` here."""
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


ONE_ANSWER = Work(num_prompt_tokens=0, num_output_tokens=1)
"""Of a model that answers whole."""


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
    """Every placement that could run a model of this task: adapters that read its form, on devices they can use.

    Of a model too large for the memory of each GPU, the last one is all that OpenVINO has, together.
    """
    alone = tuple(
        Candidate(Placement(adapter, device.name, variant.name), device.kind, variant.size_bytes, is_slow=use.is_slow)
        for variant in variants
        for adapter, runs in RUNS.items()
        if task in runs.tasks and variant.form in runs.forms
        for device in devices
        if device.kind in runs.kinds and (use := device.use(adapter)) is not None
    )
    return alone + tuple(_together(task, variants, devices))


def _together(task: Task, variants: Sequence[VariantFiles], devices: Sequence[Device]) -> Iterator[Candidate]:
    """Several GPUs as one: https://docs.openvino.ai, Heterogeneous execution, pipeline parallelism."""
    gpus = [each for each in devices if each.kind is DeviceKind.GPU and each.use("openvino") is not None]
    sizes = [own_memory_bytes(gpu, devices) for gpu in gpus]
    memories = [size for size in sizes if size is not None]
    if task != "text" or len(gpus) < 2 or len(memories) < len(gpus):
        return
    device = HETERO + ",".join(gpu.name for gpu in gpus)
    for variant in variants:
        if variant.form in RUNS["openvino"].forms and variant.size_bytes > max(memories):
            yield Candidate(Placement("openvino", device, variant.name), DeviceKind.GPU, variant.size_bytes)


def own_memory_bytes(device: Device, devices: Sequence[Device]) -> int | None:
    """What models may take of a device's own memory; `None`: it has none, and shares the host's."""
    shared = {each.memory_total_bytes for each in devices if each.kind is DeviceKind.CPU}
    total_bytes = device.memory_total_bytes
    if device.kind is DeviceKind.CPU or total_bytes is None or total_bytes in shared:
        return None
    return int(total_bytes * OWN_MEMORY_SHARE)


def order(
    found: Iterable[Candidate], profiles: Mapping[Placement, Profile], wanted: Wanted, work: Work | None = None
) -> tuple[Placement, ...]:
    """The placements to try, best first; empty when nothing that is wanted is there.

    By measurement when all of them were measured, else by rule: what is measured on some devices says nothing of the
    others. `work` is what the model is loaded for; without one, a middling day: a few requests at a time.

    Each device has its variant (`variant_for`); the others are tried after those. However fast, they are not what was
    asked for.
    """
    work = work or Work(num_streams=4)
    admitted = [each for each in found if admits(wanted, each.placement)]
    chosen = {
        device: variant_for(each for each in admitted if each.placement.device == device)
        for device in {each.placement.device for each in admitted}
    }
    first = [each for each in admitted if each.placement.variant == chosen[each.placement.device]]
    rest = [each for each in admitted if each.placement.variant != chosen[each.placement.device]]
    return (*_sorted(first, profiles, work), *_sorted(rest, profiles, work))


def variant_for(on_device: Iterable[Candidate]) -> str:
    """Which of a model's variants a device gets, of those candidates that are on it.

    The model as it was installed, or, where that does not fit, the largest that does. An NPU gets the smallest: it
    computes in few bits, and nothing else is fast there.
    """

    def rank(each: Candidate) -> tuple[bool, bool, int]:
        if each.kind is DeviceKind.NPU:
            return not each.fits, False, each.size_bytes
        return not each.fits, each.placement.variant != "", -each.size_bytes if each.fits else each.size_bytes

    return min(on_device, key=rank).placement.variant


def _sorted(found: list[Candidate], profiles: Mapping[Placement, Profile], work: Work) -> tuple[Placement, ...]:
    if all(each.placement in profiles for each in found):
        found = sorted(found, key=lambda each: finish_s(profiles[each.placement], NO_LOAD, work))
    else:
        found = sorted(found, key=lambda each: _rank(each, work))
    return tuple(each.placement for each in found)


def _rank(candidate: Candidate, work: Work) -> tuple[bool, bool, bool, int]:
    """The rule of thumb; lower is better. The model as installed goes before its variants: it is what was asked for."""
    prefers_gpu = candidate.size_bytes >= LARGE_MODEL_BYTES or work.num_streams >= MANY_STREAMS
    is_second = (candidate.kind is DeviceKind.GPU) != prefers_gpu
    adapter = list(RUNS).index(candidate.placement.adapter)
    return is_second, candidate.placement.variant != "", candidate.is_slow, adapter


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
