"""OpenAI's requests → `GenerateRequest`."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.api.body import parse_body
from vmm_server.api.openai.convert import chat_request, completion_requests
from vmm_server.api.openai.wire import ChatCompletionRequest, CompletionRequest
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, GenerateRequest, InsertPrompt, KeepAlive, Message, TextPrompt

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: object) -> GenerateRequest:
    body = {"model": "m", "messages": HELLO} | fields
    return chat_request(parse_body(json.dumps(body).encode(), ChatCompletionRequest))


def completions(**fields: object) -> list[GenerateRequest]:
    body = {"model": "m", "prompt": "hello"} | fields
    return completion_requests(parse_body(json.dumps(body).encode(), CompletionRequest))


def test_a_bare_request_leaves_everything_to_the_defaults_of_openai() -> None:
    request = chat()
    assert request == GenerateRequest(
        model="m",
        prompt=ChatPrompt((Message("user", "hello"),)),
        sampling=SamplingParams(temperature=1.0, top_p=1.0),
        unset=frozenset(SamplingDefaults.model_fields),
    )


def test_every_sampling_field_arrives() -> None:
    request = chat(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1.5,
        repetition_penalty=1.25,
        logit_bias={"5": -100, "6": 1.5},
        seed=11,
        stop="END",
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=[3, 4],
        ignore_eos=True,
        logprobs=True,
        top_logprobs=3,
        keep_alive="1h30m",
        options={"num_ctx": 2048},
        chat_template_kwargs={"enable_thinking": False},
    )
    assert request.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.25,
        presence_penalty=1.0,
        frequency_penalty=-1.5,
        logit_bias={5: -100.0, 6: 1.5},
        seed=11,
        max_tokens=9,
        min_tokens=2,
        stop=("END",),
        stop_token_ids=(3, 4),
        ignore_eos=True,
        logprobs=3,
    )
    assert request.unset == {"repetition_window", "typical_p"}
    assert request.keep_alive == KeepAlive(5400.0)
    assert request.num_ctx == 2048
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_variables == {"enable_thinking": False}


def test_null_means_left_out() -> None:
    fields = ("temperature", "top_p", "stop", "max_tokens", "seed", "tools", "logit_bias", "stream_options", "n")
    assert chat(**dict.fromkeys(fields)) == chat()


def test_fields_that_change_nothing_here_are_ignored() -> None:
    extras = {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "x_unheard_of": [1]}
    assert chat(**extras) == chat()


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_integral_floats_are_integers() -> None:
    assert chat(max_tokens=16.0, seed=3.0).sampling.max_tokens == 16


def test_top_k_off_is_none() -> None:
    assert chat(top_k=-1).sampling.top_k is None
    assert chat(top_k=0).sampling.top_k is None
    assert "top_k" not in chat(top_k=0).unset


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": [5]}, "keep_alive"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert refused.value.param == param
    assert param.split("[")[0].split(".")[0] in refused.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
        ({"verbosity": "low"}, "verbosity"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [
        (None, None),
        ("none", False),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("xhigh", "high"),
        ("max", "high"),
    ],
)
def test_efforts_are_the_three_that_models_know(effort: str | None, thinking: bool | str | None) -> None:
    prompt = chat(reasoning_effort=effort).prompt
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.thinking, prompt.thinking_param) == (thinking, "reasoning_effort")


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(reasoning_effort="extreme")
    assert refused.value.param == "reasoning_effort"
    assert "xhigh" in refused.value.message


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [TextPrompt("hi")]),
        ("", [TextPrompt("")]),
        ([1, 2], [TextPrompt((1, 2))]),
        (["a", "b"], [TextPrompt("a", param="prompt[0]"), TextPrompt("b", param="prompt[1]")]),
        ([[1], [2, 3]], [TextPrompt((1,), param="prompt[0]"), TextPrompt((2, 3), param="prompt[1]")]),
    ],
)
def test_prompts_come_in_four_forms(prompt: object, expected: list[TextPrompt]) -> None:
    assert [request.prompt for request in completions(prompt=prompt)] == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ([True], "prompt[0]"),
        (["a", 1], "prompt[1]"),
        ([[]], "prompt[0]"),
        (["x"] * 129, "prompt"),
    ],
)
def test_other_prompts_are_refused(prompt: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completions(prompt=prompt)
    assert refused.value.param == param


def test_a_suffix_makes_prompts_places_to_insert_at() -> None:
    assert [request.prompt for request in completions(prompt=["a", "b"], suffix="z")] == [
        InsertPrompt("a", "z"),
        InsertPrompt("b", "z"),
    ]
    assert completions(suffix="") == completions(suffix=None) == completions()


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"suffix": "x", "echo": True}, "echo"), ({"suffix": "x", "prompt": [1, 2]}, "suffix")],
)
def test_a_suffix_goes_with_text_alone(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completions(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"best_of": 17}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 16, "prompt": ["x"] * 9}, "n"),
        ({"best_of": 16, "prompt": ["x"] * 9}, "best_of"),
    ],
)
def test_numbers_of_choices_have_limits(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completions(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


def test_choices_of_a_prompt_follow_each_other_with_seeds_of_their_own() -> None:
    asked = completions(prompt=["a", "b"], n=2, seed=2**64 - 1)
    assert [request.prompt.text for request in asked if isinstance(request.prompt, TextPrompt)] == ["a", "a", "b", "b"]
    assert [request.sampling.seed for request in asked] == [2**64 - 1, 0, 2**64 - 1, 0]
    assert [request.sampling.seed for request in completions(n=2)] == [None, None]


def test_candidates_are_ranked_by_logprobs_nobody_asked_for() -> None:
    assert [request.sampling.logprobs for request in completions(best_of=2)] == [0, 0]
    assert [request.sampling.logprobs for request in completions(n=2, best_of=2, logprobs=3)] == [3, 3]


def test_an_echo_with_logprobs_scores_the_prompt() -> None:
    (scored,) = completions(prompt=[1, 2], echo=True, logprobs=1, max_tokens=0, temperature=0)
    assert (scored.sampling.prompt_logprobs, scored.sampling.max_tokens) == (1, 0)
    assert completions(echo=True)[0].sampling.prompt_logprobs is None
    assert completions(logprobs=1)[0].sampling.prompt_logprobs is None
    with pytest.raises(InvalidRequest):
        completions(max_tokens=-1)


def test_completion_logprobs_are_a_number() -> None:
    assert completions(logprobs=5)[0].sampling.logprobs == 5
    assert completions(logprobs=0)[0].sampling.logprobs == 0
    with pytest.raises(InvalidRequest):
        completions(logprobs=6)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_an_invalid_request(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(raw, ChatCompletionRequest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.model_fields)), JSON, max_size=5))
def test_any_fields_convert_or_are_refused(fields: dict[str, object]) -> None:
    with suppress(InvalidRequest):
        chat(**fields)


@given(JSON)
def test_any_prompt_converts_or_is_refused(prompt: object) -> None:
    with suppress(InvalidRequest):
        completions(prompt=prompt)
