"""What the placer makes of a machine of four devices: orders, rests, memories, and whether another load pays."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.device import AdapterUse, Device, DeviceKind, Machine
from vmm_server.errors import ModelLoadFailed, UnsupportedParameter
from vmm_server.models.leases import LoadedModel
from vmm_server.models.placing import Memory, Placer
from vmm_server.models.router import Placement, Work
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted
from vmm_server.settings import Settings

from .fake_machine import CPU, GENAI, GPU, MB, NPU, SECOND_GPU, TOGETHER, FakeMachine, FakeReady, model

SMALL, LARGE = model("small"), model("large", 1100)
FOR_CPU, FOR_GPU = (CPU, GENAI, GPU, SECOND_GPU), (GPU, SECOND_GPU, CPU, GENAI)
Body = Callable[[Placer], Coroutine[Any, Any, None]]


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def with_placer(machine: FakeMachine, tmp_path: Path) -> Callable[..., None]:
    def run(body: Body, **flags: Any) -> None:
        asyncio.run(body(machine.placer(Settings.model_validate({"home": tmp_path} | flags))))

    return run


def loaded_on(machine: FakeMachine, *placements: Placement) -> list[LoadedModel]:
    return [LoadedModel(SMALL, machine.load(SMALL, each, 0), KeepAlive(60), machine.now) for each in placements]


def queue(loaded: LoadedModel, num_requests: int) -> None:
    assert isinstance(loaded.ready, FakeReady)
    for _ in range(num_requests):
        loaded.ready.submit(0, 100)


@pytest.mark.parametrize(
    ("wanted_model", "work", "expected"),
    [
        (SMALL, Work(), FOR_CPU),
        (LARGE, Work(), (GPU, SECOND_GPU, TOGETHER, CPU, GENAI)),
        (SMALL, Work(num_streams=16), FOR_GPU),
        (model("gemma2", adapter="onnxruntime-genai"), Work(), (GENAI,)),
    ],
)
def test_without_measurements_rules_of_thumb_decide(
    with_placer: Any, wanted_model: Any, work: Work, expected: tuple[Placement, ...]
) -> None:
    async def body(placer: Placer) -> None:
        assert await placer.placements(wanted_model, ANYWHERE, work) == expected

    with_placer(body)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(num_prompt_tokens=10, num_output_tokens=100), (GPU, SECOND_GPU, GENAI, CPU)),
        (Work(num_prompt_tokens=10, num_output_tokens=100, num_streams=16), (GPU, SECOND_GPU, CPU, GENAI)),
        (Work(num_prompt_tokens=8000, num_output_tokens=10), (GPU, SECOND_GPU, CPU, GENAI)),
    ],
)
def test_measurements_decide_for_each_kind_of_work(
    with_placer: Any, machine: FakeMachine, work: Work, expected: tuple[Placement, ...]
) -> None:
    async def body(placer: Placer) -> None:
        await machine.measure(placer, SMALL, CPU, GENAI, GPU)
        assert await placer.placements(SMALL, ANYWHERE, work) == (FOR_GPU if work.num_streams > 8 else FOR_CPU)
        await machine.measure(placer, SMALL)
        assert await placer.placements(SMALL, ANYWHERE, work) == expected

    with_placer(body)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(device="gpu"), (GPU, SECOND_GPU)),
        (Wanted(device="GPU.1"), (SECOND_GPU,)),
        (Wanted(device="npu"), (NPU,)),
        (Wanted(backend="onnxruntime-genai"), (GENAI,)),
        (Wanted(needs_logits=True), (CPU, GPU, SECOND_GPU)),
    ],
)
def test_what_is_forced_is_all_that_is_tried(with_placer: Any, wanted: Wanted, expected: tuple[Placement, ...]) -> None:
    async def body(placer: Placer) -> None:
        assert await placer.placements(SMALL, wanted) == expected

    with_placer(body)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (Wanted(device="CUDA"), "device"),
        (Wanted(device="GPU", backend="onnxruntime-genai"), "device"),
        (Wanted(backend="openvino-genai"), "backend"),
        (Wanted(device="CPU", backend="openvino-genai"), "backend"),
    ],
)
def test_what_is_not_here_is_the_requests_fault(with_placer: Any, wanted: Wanted, param: str) -> None:
    async def body(placer: Placer) -> None:
        with pytest.raises(UnsupportedParameter, match=r"placements .*openvino/CPU.*openvino/GPU\.1") as caught:
            await placer.placements(SMALL, wanted)
        assert caught.value.param == param

    with_placer(body)


def test_what_the_settings_want_and_is_not_here_is_not_the_requests_fault(with_placer: Any) -> None:
    async def body(placer: Placer) -> None:
        wanted = placer.effective(SMALL, ANYWHERE)
        with pytest.raises(ModelLoadFailed, match="cannot run on device CUDA here"):
            await placer.placements(SMALL, wanted)

    with_placer(body, device="CUDA")


def test_a_request_goes_before_the_model_and_the_model_before_the_settings(with_placer: Any) -> None:
    async def body(placer: Placer) -> None:
        on_gpu = model("on-gpu", parameters={"device": "GPU.1"})
        assert placer.effective(on_gpu, Wanted(device="CPU")).device == "CPU"
        assert await placer.placements(on_gpu, placer.effective(on_gpu, ANYWHERE)) == (SECOND_GPU,)
        assert await placer.placements(SMALL, placer.effective(SMALL, ANYWHERE)) == (GPU,)

    with_placer(body, device="GPU.0")


def test_what_failed_comes_last_for_a_minute_and_longer_each_time(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        for rest_s in (60, 120, 240):
            placer.failed(SMALL, CPU, "out of memory")
            machine.now += rest_s - 1
            assert await placer.placements(SMALL, ANYWHERE) == (GENAI, GPU, SECOND_GPU, CPU)
            failure = placer.failure(SMALL, CPU)
            assert failure is not None
            assert failure.reason == "out of memory"
            assert placer.failure(LARGE, CPU) is None, "another model may fit"
            machine.now += 1
            assert await placer.placements(SMALL, ANYWHERE) == FOR_CPU
        for _ in range(20):
            placer.failed(SMALL, CPU, "out of memory")
        machine.now += 3600
        assert placer.failure(SMALL, CPU) is None, "an hour is the most"

    with_placer(body)


def test_the_only_one_wanted_is_tried_although_it_failed(with_placer: Any) -> None:
    async def body(placer: Placer) -> None:
        await placer.candidates(SMALL)
        placer.failed(SMALL, NPU, "no")
        assert await placer.placements(SMALL, Wanted(device="NPU")) == (NPU,)

    with_placer(body)


def test_each_gpu_has_its_own_memory_and_the_others_the_hosts(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        await placer.candidates(SMALL)
        assert placer.memory(CPU) == placer.memory(GENAI) == placer.memory(NPU)
        assert placer.memory(CPU).num_bytes == 5000 * MB
        assert placer.memory(GPU) == Memory(frozenset({"GPU.0"}), 1000 * MB)
        assert placer.memory(SECOND_GPU) == Memory(frozenset({"GPU.1"}), 1000 * MB)
        assert placer.memory(TOGETHER) == Memory(frozenset({"GPU.0", "GPU.1"}), 2000 * MB)

    with_placer(body, memory_budget=5000 * MB)


def test_a_gpu_that_shares_the_hosts_memory_has_none_of_its_own(tmp_path: Path) -> None:
    def device(name: str, kind: DeviceKind) -> Device:
        return Device(name, kind, "Intel", name, 16_000 * MB, uses=(AdapterUse("openvino", spelling=name),))

    async def read() -> Machine:
        return Machine((device("CPU", DeviceKind.CPU), device("GPU.0", DeviceKind.GPU)))

    async def body() -> None:
        placer = Placer(Settings.model_validate({"home": tmp_path}), read)
        await placer.candidates(SMALL)
        assert placer.memory(GPU) == placer.memory(CPU)

    asyncio.run(body())


@pytest.mark.parametrize(("megabytes", "is_offered"), [(999, False), (1000, False), (1001, True)])
def test_gpus_together_are_offered_for_what_is_too_large_for_each(
    with_placer: Any, megabytes: int, is_offered: bool
) -> None:
    async def body(placer: Placer) -> None:
        large = model("large", megabytes)
        assert (TOGETHER in [each.placement for each in await placer.candidates(large)]) == is_offered
        if is_offered:
            assert await placer.placements(large, Wanted(device="GPU")) == (GPU, SECOND_GPU, TOGETHER)
            assert await placer.placements(large, Wanted(device="hetero")) == (TOGETHER,)
            assert TOGETHER not in await placer.placements(large, Wanted(device="GPU.1"))

    with_placer(body)


def test_without_measurements_the_device_with_fewest_requests_gets_one(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        cpu, gpu, other = loaded = loaded_on(machine, CPU, GPU, SECOND_GPU)
        assert placer.choose(loaded, loaded, Work()) is cpu
        queue(cpu, 1)
        assert placer.choose(loaded, loaded, Work()) is gpu
        gpu.expect(1, Work())  # a lease whose request is being prepared
        assert placer.choose(loaded, loaded, Work()) is other
        queue(other, 2)
        assert placer.choose(loaded, loaded, Work()) is cpu

    with_placer(body)


def test_other_models_on_a_device_count(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        cpu, gpu = fitting = loaded_on(machine, CPU, GPU)
        (others,) = loaded_on(machine, GENAI)
        queue(others, 3)
        assert placer.choose(fitting, [cpu, gpu, others], Work()) is gpu

    with_placer(body)


def test_by_measurement_a_request_goes_where_it_ends_first(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        await machine.measure(placer, SMALL)
        cpu, gpu = loaded = loaded_on(machine, CPU, GPU)
        work = Work(num_prompt_tokens=10, num_output_tokens=100)
        assert placer.choose(loaded, loaded, work) is gpu
        queue(gpu, 6)
        assert placer.choose(loaded, loaded, work) is gpu, "seven at a time are still faster than one on the CPU"
        queue(gpu, 40)
        assert placer.choose(loaded, loaded, work) is cpu

    with_placer(body)


def test_another_load_has_to_pay(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        await machine.measure(placer, SMALL)
        (cpu,) = loaded = loaded_on(machine, CPU)
        short, long = Work(10, 100), Work(10, 1000)
        assert placer.join(loaded, loaded, ANYWHERE, short) is None, "5 s here; 2 s there, after 10 s"
        assert placer.join(loaded, loaded, ANYWHERE, long) == GPU, "50 s here; 17 s there, after 10 s"
        queue(cpu, 30)
        assert placer.join(loaded, loaded, ANYWHERE, short) == GPU, "39 s here"
        assert placer.join(loaded, loaded, Wanted(device="CPU"), short) is None, "the same device, no faster together"
        assert placer.join(loaded, loaded, Wanted(device="GPU.1"), short) == SECOND_GPU
        placer.failed(SMALL, GPU, "no")
        assert placer.join(loaded, loaded, ANYWHERE, short) == SECOND_GPU

    with_placer(body)


def test_what_was_not_measured_is_no_reason_to_load(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        await placer.candidates(SMALL)
        (cpu,) = loaded = loaded_on(machine, CPU)
        queue(cpu, 100)
        assert placer.join(loaded, loaded, ANYWHERE, Work()) is None
        await machine.measure(placer, SMALL, GPU)
        assert placer.join(loaded, loaded, ANYWHERE, Work()) is None, "nor where the one that is loaded was not"
        machine.speeds[NPU] = machine.speeds[GPU]
        await machine.measure(placer, SMALL, CPU, NPU)
        placer.failed(SMALL, GPU, "no")
        assert placer.join(loaded, loaded, ANYWHERE, Work()) is None, "an NPU has to be asked for"

    with_placer(body)


def test_a_profile_of_a_variant_that_is_gone_is_no_reason_to_load(with_placer: Any, machine: FakeMachine) -> None:
    async def body(placer: Placer) -> None:
        await machine.measure(placer, SMALL, CPU)
        gone = Placement("openvino", "GPU.0", "")
        elsewhere = Placement("openvino", "GPU.7")
        placer.keep(SMALL, elsewhere, machine.speeds[gone])
        (cpu,) = loaded = loaded_on(machine, CPU)
        queue(cpu, 100)
        assert placer.join(loaded, loaded, ANYWHERE, Work()) is None

    with_placer(body)
