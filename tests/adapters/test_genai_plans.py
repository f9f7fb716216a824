"""onnxruntime-genai's adapter where nothing runs: how a request is put to the runtime, and on which providers."""

from dataclasses import replace

import pytest

from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.onnxruntime_genai.providers import CHAINS, candidates
from vmm_adapters.onnxruntime_genai.sampling import LACKS, TurnPlan, end_token, plan_turn
from vmm_adapters.types import Guidance, SamplingParams, TextRequest

ENDS = (2, 0)


def plan(sampling: SamplingParams, *, takes_seeds: bool = True, **changes: object) -> TurnPlan:
    request = replace(TextRequest(1, (5, 6, 7), sampling, 100, frozenset({2})), **changes)
    return plan_turn(request, context_length=50, vocab_size=90, model_ends=ENDS, takes_seeds=takes_seeds)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(), 47),
        (SamplingParams(max_tokens=9), 9),
        (SamplingParams(max_tokens=99), 47),
        (SamplingParams(max_tokens=0), 0),
    ],
)
def test_an_answer_is_as_long_as_there_is_room(sampling: SamplingParams, expected: int) -> None:
    assert plan(sampling).max_tokens == expected


def test_max_length_counts_the_prompt() -> None:
    assert plan(SamplingParams(), max_length=10).max_tokens == 7


@pytest.mark.parametrize(
    ("sampling", "top_k", "top_p"),
    [
        (SamplingParams(), 0, 1.0),
        (SamplingParams(top_p=0.5), 90, 0.5),  # with no top_k the runtime would leave top_p out
        (SamplingParams(top_k=40, top_p=0.5), 40, 0.5),
        (SamplingParams(top_k=1000), 90, 1.0),
    ],
)
def test_top_p_holds_without_top_k(sampling: SamplingParams, top_k: int, top_p: float) -> None:
    assert (plan(sampling).top_k, plan(sampling).top_p) == (top_k, top_p)


def test_no_mass_is_the_most_likely_token() -> None:
    assert plan(SamplingParams(top_p=0.0)).temperature == 0


def test_seeds_are_given_to_engines_that_take_them() -> None:
    assert plan(SamplingParams(seed=4)).seed == 4
    assert plan(SamplingParams(seed=4), takes_seeds=False).seed is None


@pytest.mark.parametrize(
    ("changes", "held_back"),
    [
        ({}, False),
        ({"eos_token_ids": frozenset()}, True),
        ({"sampling": SamplingParams(ignore_eos=True)}, True),
        ({"eos_token_ids": frozenset({9})}, True),
        ({"sampling": SamplingParams(ignore_eos=True, stop_token_ids=(0,))}, False),
        # the grammar may leave nothing but the end
        ({"eos_token_ids": frozenset(), "guidance": Guidance("regex", "a")}, False),
    ],
)
def test_the_models_ends_are_held_back_where_they_end_nothing(changes: dict[str, object], held_back: bool) -> None:
    assert plan(**{"sampling": SamplingParams(), **changes}).holds_ends_back is held_back


@pytest.mark.parametrize(("wanted", "told"), [({2}, 2), ({0}, 0), ({0, 2, 7}, 2), ({7}, 2), (set(), 2)])
def test_the_end_that_is_told_is_one_of_the_requests(wanted: set[int], told: int) -> None:
    request = TextRequest(1, (5,), SamplingParams(), 100, frozenset(wanted))
    assert end_token(request, ENDS) == told


def test_every_field_is_put_to_the_runtime_or_lacking() -> None:
    known = {"temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_tokens"}
    known |= {"stop", "stop_token_ids", "ignore_eos"}
    assert known | set(LACKS) == set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize(
    ("device", "providers", "devices"),
    [
        ("CPU", ["CPU"], ["CPU"]),
        ("CUDA.1", ["NvTensorRtRtx", "cuda", "CPU"], ["CUDA.1", "CUDA.1", "CPU"]),
        ("cuda", ["NvTensorRtRtx", "cuda", "CPU"], ["CUDA.0", "CUDA.0", "CPU"]),
        ("ROCM.0", ["MIGraphX", "CPU"], ["ROCM.0", "CPU"]),
        ("DML.0", ["DML", "CPU"], ["DML.0", "CPU"]),
        ("WEBGPU.0", ["WebGPU", "CPU"], ["WEBGPU.0", "CPU"]),
        ("GPU.0", ["OpenVINO", "CPU"], ["GPU.0", "CPU"]),
        ("NPU", ["OpenVINO", "CPU"], ["NPU", "CPU"]),
        ("METAL.0", ["CPU"], ["CPU"]),
    ],
)
def test_each_device_has_its_chain(device: str, providers: list[str], devices: list[str]) -> None:
    chain = candidates(device, allow_fallback=True)
    assert [each.provider.name for each in chain] == providers
    assert [each.device for each in chain] == devices


def test_a_devices_number_is_in_the_options() -> None:
    assert [dict(each.options) for each in candidates("CUDA.1", allow_fallback=False)] == [{"device_id": "1"}] * 2
    assert dict(candidates("GPU.1", allow_fallback=False)[0].options) == {"device_type": "GPU.1"}


@pytest.mark.parametrize("family", [family for family in CHAINS if family != "CPU"])
def test_a_forced_device_never_means_the_cpu(family: str) -> None:
    assert all(each.device != "CPU" for each in candidates(family, allow_fallback=False))


def test_a_device_that_no_provider_has_is_refused_when_forced() -> None:
    with pytest.raises(UnsupportedModel, match="METAL"):
        candidates("METAL.0", allow_fallback=False)
