"""Parameters in Ollama's words and in ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import InvalidRequest
from vmm_server.models.parameters import PARAMETERS, check_parameters, from_sampling, to_sampling


def test_every_parameter_that_counts_arrives_under_our_name() -> None:
    checked = check_parameters(
        {
            "temperature": 1,
            "top_p": 0.5,
            "top_k": 40.0,
            "min_p": 0.1,
            "typical_p": 0.7,
            "repeat_penalty": 1.1,
            "repeat_last_n": -1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "seed": 42,
            "num_predict": 7,
            "stop": "END",
            "num_ctx": 4096.0,
            "num_gpu": 99,
            "use_mmap": True,
            "top_p_": None,
        }
    )
    assert checked["stop"] == ["END"]
    assert (checked["num_ctx"], checked["num_gpu"], checked["use_mmap"]) == (4096, 99, True)
    assert isinstance(checked["num_ctx"], int)
    assert SamplingDefaults.model_validate(to_sampling(checked)) == SamplingDefaults(
        temperature=1.0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        typical_p=0.7,
        repetition_penalty=1.1,
        repetition_window=-1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=42,
        max_tokens=7,
        stop=("END",),
    )


def test_where_to_run_is_a_name() -> None:
    places = {"device": " GPU.0 ", "backend": "OpenVINO"}
    assert check_parameters(places) == {"device": "GPU.0", "backend": "openvino"}
    assert check_parameters({"device": "HETERO:GPU.0,GPU.1"}) == {"device": "HETERO:GPU.0,GPU.1"}
    assert check_parameters({"backend": "auto"}) == {"backend": "auto"}
    assert to_sampling(places) == {}


def test_a_random_seed_and_no_limit_take_the_parents_away() -> None:
    assert to_sampling({"seed": -1, "num_predict": -1}) == {"seed": None, "max_tokens": None}
    assert to_sampling({"seed": -2, "num_predict": 0}) == {"seed": 2**64 - 2, "max_tokens": None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temprature", 1, "unknown parameter 'temprature'"),
        ("temperature", "0.5", "must be a number"),
        ("temperature", True, "must be a number"),
        ("temperature", float("nan"), "must be a number"),
        ("temperature", float("inf"), "must be a number"),
        ("top_k", 10**400, "must be a number"),
        ("temperature", -0.1, "must be at least 0"),
        ("num_ctx", 0, "must be at least 1"),
        ("num_ctx", 1.5, "must be a whole number"),
        ("num_ctx", [1], "must be a number"),
        ("repeat_penalty", 0, "must be more than 0"),
        ("stop", [""], "must be a text or a list of them"),
        ("stop", 5, "must be a text or a list of them"),
        ("stop", ["a", 5], "must be a text or a list of them"),
        ("use_mmap", 1, "must be true or false"),
        ("device", "", "must be a name"),
        ("device", 0, "must be a name"),
        ("device", ["CPU"], "must be a name"),
        ("device", "GPU\n.0", "must be a name"),
        ("backend", "cuda", "must be one of cpu, openvino, onnxruntime-genai, .* or auto"),
    ],
)
def test_what_is_wrong_is_named(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_parameters({name: value})
    assert caught.value.param == f"parameters.{name}"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.dictionaries(st.sampled_from(sorted(PARAMETERS)), JSON))
def test_anything_is_either_defaults_or_refused(parameters: dict[str, object]) -> None:
    try:
        checked = check_parameters(parameters)
    except InvalidRequest:
        return
    assert check_parameters(checked) == checked
    sampling = SamplingDefaults.model_validate(to_sampling(checked))
    assert SamplingDefaults.model_validate(to_sampling(check_parameters(from_sampling(sampling)))) == sampling
