"""Where a model runs, as tables: rules of thumb, measurements, what is wanted by name, and queues."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.device import AdapterUse, Device, DeviceKind
from vmm_server.models.router import (
    NO_LOAD,
    Candidate,
    NoLoad,
    Option,
    Placement,
    Profile,
    VariantFiles,
    Work,
    admits,
    candidates,
    choose,
    finish_s,
    order,
)
from vmm_server.requests import ANYWHERE, Wanted

MB = 1 << 20
SMALL, LARGE = 100 * MB, 4000 * MB
CPU, GPU, SECOND_GPU, NPU = (Placement("openvino", name) for name in ("CPU", "GPU.0", "GPU.1", "NPU"))
KERNELS = Placement("cpu", "CPU")
GENAI_CPU, CUDA = Placement("onnxruntime-genai", "CPU"), Placement("onnxruntime-genai", "CUDA.0")
KINDS = {"CPU": DeviceKind.CPU, "NPU": DeviceKind.NPU}


def found(size_bytes: int, *placements: Placement) -> list[Candidate]:
    kinds = [KINDS.get(each.device, DeviceKind.GPU) for each in placements]
    return [Candidate(each, kind, size_bytes) for each, kind in zip(placements, kinds, strict=True)]


def profile(decode_1: float, decode_8: float | None = None, prefill: float = 1000, load_s: float = 2) -> Profile:
    return Profile(decode_1, decode_1 if decode_8 is None else decode_8, prefill, load_s, 1)


def device(name: str, *adapters: str) -> Device:
    uses = tuple(AdapterUse(adapter, spelling=name) for adapter in adapters)
    return Device(name, KINDS.get(name, DeviceKind.GPU), "Intel", name, uses=(*uses, AdapterUse("x", reason="no")))


MACHINE = (
    device("CPU", "cpu", "openvino", "onnxruntime-genai", "onnxruntime", "openvino-genai"),
    device("GPU.0", "openvino", "openvino-genai"),
    device("CUDA.0", "onnxruntime-genai", "onnxruntime"),
    device("NPU", "openvino", "openvino-genai"),
)


def places(*args: object) -> set[str]:
    return {str(each.placement) for each in candidates(*args)}  # type: ignore[arg-type]


def test_candidates_are_what_reads_the_form_on_what_it_can_use() -> None:
    onnx = [VariantFiles("", SMALL, "onnx")]
    assert places("text", onnx, MACHINE) == {
        "cpu/CPU",
        "openvino/CPU",
        "openvino/GPU.0",
        "onnxruntime-genai/CPU",
        "onnxruntime-genai/CUDA.0",
    }
    assert places("encode", onnx, MACHINE) == {
        "openvino/CPU",
        "openvino/GPU.0",
        "onnxruntime/CPU",
        "onnxruntime/CUDA.0",
    }
    assert "openvino-genai/NPU" in places("text", [VariantFiles("", SMALL, "openvino")], MACHINE)
    assert places("vision-text", onnx, MACHINE) == set()
    variants = [*onnx, VariantFiles("int4", SMALL // 2, "onnx")]
    assert "openvino/CPU/int4" in places("text", variants, MACHINE)


@pytest.mark.parametrize(
    ("size_bytes", "work", "first"),
    [
        (SMALL, Work(), CPU),
        (LARGE, Work(), GPU),
        (SMALL, Work(num_streams=16), GPU),
    ],
)
def test_without_measurements_small_goes_to_the_cpu_and_large_or_many_to_a_gpu(
    size_bytes: int, work: Work, first: Placement
) -> None:
    there = found(size_bytes, GENAI_CPU, CPU, GPU, SECOND_GPU, NPU, CUDA)
    tried = order(there, {}, ANYWHERE, work)
    assert tried[0] == first
    assert NPU not in tried
    assert set(tried) == {GENAI_CPU, CPU, GPU, SECOND_GPU, CUDA}


@pytest.mark.parametrize("is_slow", [False, True])
def test_our_own_kernels_go_first_on_a_cpu_that_they_are_fast_on(is_slow: bool) -> None:
    own = AdapterUse("cpu", spelling="CPU", is_slow=is_slow)
    machine = [replace(MACHINE[0], uses=(own, *MACHINE[0].uses[1:])), *MACHINE[1:]]
    onnx = [VariantFiles("", SMALL, "onnx"), VariantFiles("int4", SMALL // 2, "onnx")]
    tried = order(candidates("text", onnx, machine), {}, ANYWHERE, Work())
    on_cpu = [each for each in tried if each.device == "CPU"]
    assert on_cpu[:3] == ([CPU, GENAI_CPU, KERNELS] if is_slow else [KERNELS, CPU, GENAI_CPU])
    assert {each.variant for each in on_cpu[3:]} == {"int4"}
    many = order(candidates("text", onnx, machine), {}, ANYWHERE, Work(num_streams=16))
    assert many[0] == GPU
    ir = [VariantFiles("", SMALL, "openvino")]
    assert order(candidates("text", ir, machine), {}, ANYWHERE, Work())[0] == CPU


def test_the_model_as_installed_goes_before_its_variants() -> None:
    int4 = replace(CPU, variant="int4")
    assert order(found(SMALL, int4, CPU), {}, ANYWHERE) == (CPU, int4)


def test_measurements_decide_once_all_were_measured() -> None:
    there = found(SMALL, CPU, GPU)
    assert order(there, {GPU: profile(900)}, ANYWHERE) == (CPU, GPU)
    measured = {CPU: profile(100, 300), GPU: profile(200, 900)}
    assert order(there, measured, ANYWHERE) == (GPU, CPU)
    assert order(there, measured | {GPU: profile(20, 30)}, ANYWHERE) == (CPU, GPU)


def test_what_it_is_loaded_for_decides_between_two_that_are_each_better_at_something() -> None:
    there = found(SMALL, CPU, GENAI_CPU)
    profiles = {CPU: profile(80, 280), GENAI_CPU: profile(110, 112)}
    alone, many = Work(num_prompt_tokens=32), Work(num_prompt_tokens=32, num_streams=16)
    assert order(there, profiles, ANYWHERE, alone)[0] == GENAI_CPU
    assert order(there, profiles, ANYWHERE, many)[0] == CPU


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(device="cpu"), {CPU, GENAI_CPU}),
        (Wanted(device="gpu"), {GPU, SECOND_GPU}),
        (Wanted(device="GPU.1"), {SECOND_GPU}),
        (Wanted(device="NPU"), {NPU}),
        (Wanted(backend="onnxruntime-genai"), {GENAI_CPU, CUDA}),
        (Wanted(device="CUDA", backend="onnxruntime-genai"), {CUDA}),
        (Wanted(device="CUDA", backend="openvino"), set()),
        (Wanted(device="GPU.11"), set()),
        (Wanted(needs_logits=True, device="CPU"), {CPU}),
    ],
)
def test_what_is_wanted_by_name_is_all_that_is_tried(wanted: Wanted, expected: set[Placement]) -> None:
    assert set(order(found(SMALL, GENAI_CPU, CPU, GPU, SECOND_GPU, NPU, CUDA), {}, wanted)) == expected


def test_what_one_wish_leaves_open_another_says() -> None:
    assert Wanted(device="GPU").over(Wanted("CPU", "openvino")) == Wanted("GPU", "openvino")
    assert Wanted(variant="").over(Wanted(variant="int4")).variant == ""
    assert str(Wanted("GPU", "openvino")) == "backend openvino, device GPU"
    assert not admits(Wanted(variant=""), replace(CPU, variant="int4"))


def test_a_request_goes_where_it_ends_first() -> None:
    profiles = {CPU: profile(100, 300), GPU: profile(150, 900)}
    idle = [Option(CPU, NO_LOAD), Option(GPU, NO_LOAD)]
    assert choose(idle, profiles, Work()).placement == GPU
    busy = [Option(CPU, NO_LOAD), Option(GPU, NoLoad(40, 20, 20_000))]
    assert choose(busy, profiles, Work()).placement == CPU


def test_one_that_has_to_be_loaded_first_is_chosen_when_that_pays() -> None:
    profiles = {CPU: profile(20, 40), GPU: profile(500, 900, load_s=5)}
    options = [Option(CPU, NO_LOAD), Option(GPU, NO_LOAD, is_loaded=False)]
    assert choose(options, profiles, Work(num_output_tokens=60)).placement == CPU
    assert choose(options, profiles, Work(num_output_tokens=1000)).placement == GPU


def test_without_measurements_the_shortest_queue_is_chosen_of_those_loaded() -> None:
    options = [Option(CPU, NoLoad(2, 3)), Option(GPU, NoLoad(4, 0)), Option(CUDA, NO_LOAD, is_loaded=False)]
    assert choose(options, {}, Work()).placement == GPU
    assert choose(options, {CUDA: profile(1e6)}, Work()).placement == GPU


loads = st.builds(NoLoad, st.integers(0, 50), st.integers(0, 50), st.integers(0, 20_000))
profiles_ = st.builds(profile, st.floats(1, 1e4), st.floats(1, 1e4), st.floats(10, 1e5), st.floats(0, 60))
works = st.builds(Work, st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 64))


@given(profiles_, loads, works)
def test_more_to_do_never_ends_sooner(found_profile: Profile, load: NoLoad, work: Work) -> None:
    base = finish_s(found_profile, load, work)
    assert finish_s(found_profile, replace(load, num_pending_prompt_tokens=20_001), work) >= base
    assert finish_s(found_profile, load, replace(work, num_output_tokens=10_001)) >= base


@given(st.lists(st.tuples(profiles_, loads, st.booleans()), min_size=1, max_size=6), works)
def test_nothing_that_is_left_ends_sooner_than_what_is_chosen(
    machine: list[tuple[Profile, NoLoad, bool]], work: Work
) -> None:
    options = [Option(Placement("a", str(i)), load, cold) for i, (_, load, cold) in enumerate(machine)]
    options[0] = replace(options[0], is_loaded=True)
    measured = {Placement("a", str(i)): each for i, (each, _, _) in enumerate(machine)}

    def ends(option: Option) -> float:
        each = measured[option.placement]
        return finish_s(each, option.load, work) + (0 if option.is_loaded else each.load_s)

    assert ends(choose(options, measured, work)) == min(map(ends, options))


@given(profiles_, st.integers(1, 100))
def test_decoding_lies_between_what_was_measured(each: Profile, num_streams: int) -> None:
    low, high = sorted((each.decode_1, each.decode_8))
    assert low * 0.999 <= each.decode(num_streams) <= high * 1.001
    assert each.decode(1) == pytest.approx(each.decode_1)
    assert each.decode(8) == pytest.approx(each.decode_8)
