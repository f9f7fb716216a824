"""Ollama's requests → `GenerateRequest`."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import IMAGE_MARK, SamplingParams
from vmm_server.api.body import parse_body
from vmm_server.api.ollama.convert import (
    COMPLETION,
    chat_request,
    check_chat_model,
    check_generate_model,
    generate_request,
)
from vmm_server.api.ollama.wire import ChatBody, GenerateBody
from vmm_server.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from vmm_server.requests import (
    ChatPrompt,
    GenerateRequest,
    GivenImage,
    InsertPrompt,
    JsonObject,
    JsonSchema,
    KeepAlive,
    Message,
    TextPrompt,
    Tool,
    ToolCall,
    ToolUse,
)

CALL = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"z": 1, "a": "ä"}}}


def generate(**fields: object) -> GenerateRequest:
    return generate_request(parse_body(json.dumps({"model": "m", "prompt": "hi"} | fields).encode(), GenerateBody))


def chat(*messages: object, **fields: object) -> GenerateRequest:
    return chat_request(parse_body(json.dumps({"model": "m", "messages": messages} | fields).encode(), ChatBody))


def test_a_bare_request_has_ollamas_defaults() -> None:
    assert generate() == GenerateRequest(
        model="m",
        prompt=ChatPrompt(
            (Message("user", "hi"),),
            default_template=COMPLETION,
            param="prompt",
            thinking_param="think",
            truncate=True,
        ),
        sampling=SamplingParams(temperature=0.8, top_p=0.9, top_k=40, repetition_window=64),
        unset=frozenset(SamplingDefaults.model_fields),
    )


def test_options_arrive_under_our_names() -> None:
    options = {
        "num_ctx": 4096,
        "num_predict": 12,
        "seed": 5,
        "temperature": 0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_last_n": 32,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "stop": ["a", "b"],
    }
    request = generate(options=options, keep_alive="10m", logprobs=True, top_logprobs=2)
    assert request.sampling == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        typical_p=0.7,
        repetition_penalty=1.1,
        repetition_window=32,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        seed=5,
        max_tokens=12,
        stop=("a", "b"),
        logprobs=2,
    )
    assert (request.num_ctx, request.keep_alive, request.unset) == (4096, KeepAlive(600.0), frozenset())


def test_an_option_that_asks_for_no_penalties_is_asked_for() -> None:
    assert not generate(options={"repeat_last_n": 0}).unset & {"repetition_penalty", "presence_penalty"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"top_logprobs": 2}, None), ({"logprobs": False, "top_logprobs": 2}, None), ({"logprobs": True}, 0)],
)
def test_top_logprobs_count_where_logprobs_are_asked_for(fields: dict[str, object], expected: int | None) -> None:
    assert generate(**fields).sampling.logprobs == expected


def test_integral_floats_are_integers() -> None:
    request = generate(options={"num_ctx": 8192.0, "num_predict": 5.0, "top_k": 2.0})
    assert (request.num_ctx, request.sampling.max_tokens, request.sampling.top_k) == (8192, 5, 2)


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": 0}, "max_tokens", None),
        ({"seed": -1}, "seed", None),
        ({"seed": -2}, "seed", 2**64 - 2),
        ({"top_k": 0}, "top_k", None),
        ({"top_p": 7}, "top_p", 1.0),
        ({"min_p": -1}, "min_p", 0.0),
        ({"temperature": -1}, "temperature", 0.0),
        ({"repeat_last_n": -1}, "repetition_window", None),
        ({"repeat_last_n": 0, "repeat_penalty": 1.5}, "repetition_penalty", 1.0),
        ({"repeat_last_n": 0, "presence_penalty": 1.5}, "presence_penalty", 0.0),
    ],
)
def test_special_values_mean_what_they_mean_to_ollama(options: dict[str, object], name: str, expected: object) -> None:
    assert getattr(generate(options=options).sampling, name) == expected


def test_options_of_other_versions_are_ignored() -> None:
    extras = {"num_batch": 512, "num_gpu": -1, "mirostat": 0, "tfs_z": 1.0, "penalize_newline": True, "unheard": "x"}
    assert generate(options=extras) == generate()


def test_raw_goes_to_the_model_as_it_is() -> None:
    assert generate(raw=True).prompt == TextPrompt("hi", truncate=True)


@pytest.mark.parametrize("fields", [{"system": "s"}, {"template": "t"}, {"context": [1]}])
def test_raw_excludes_template_system_and_context(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="raw mode does not support template, system, or context"):
        generate(raw=True, **fields)


def test_system_context_and_a_jinja_template_arrive() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert generate(system="be brief", context=[1, 2], template=template, think=False).prompt == ChatPrompt(
        (Message("system", "be brief"), Message("user", "hi")),
        template=template,
        default_template=COMPLETION,
        context=(1, 2),
        param="prompt",
        thinking=False,
        thinking_param="think",
        truncate=True,
    )


@pytest.mark.parametrize(("truncate", "allowed"), [(None, True), (True, True), (False, False)])
def test_what_is_too_long_may_be_shortened_unless_the_request_says_no(truncate: bool | None, allowed: bool) -> None:
    for request in (generate(truncate=truncate), chat({"role": "user", "content": "x"}, truncate=truncate)):
        assert isinstance(request.prompt, ChatPrompt)
        assert request.prompt.truncate is allowed
    raw = generate(raw=True, truncate=truncate).prompt
    assert isinstance(raw, TextPrompt)
    assert raw.truncate is allowed


@pytest.mark.parametrize(("options", "num_keep"), [({}, 4), ({"num_keep": 0}, 0), ({"num_keep": -1}, None)])
def test_the_beginning_of_a_raw_prompt_is_kept(options: dict[str, object], num_keep: int | None) -> None:
    assert generate(raw=True, options=options).prompt == TextPrompt("hi", truncate=True, num_keep=num_keep)


def test_chat_messages_arrive() -> None:
    request = chat(
        {"role": "SYSTEM", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "thinking": "t"},
        {"role": "tool", "content": "r", "tool_name": "f"},
    )
    assert request.prompt == ChatPrompt(
        (
            Message("system", "s"),
            Message("user", "u"),
            Message("assistant", "a", thinking="t"),
            Message("tool", "r", name="f"),
        ),
        thinking_param="think",
        truncate=True,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"num_ctx": 1.5}}, "options.num_ctx"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"stop": [5]}}, "options.stop[0]"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"repeat_penalty": 1e308}}, "options.repeat_penalty"),
        ({"options": {"presence_penalty": -1e308}}, "options.presence_penalty"),
        ({"options": 5}, "options"),
        ({"think": "loud"}, "think"),
        ({"think": 5}, "think"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": True}, "keep_alive"),
        ({"prompt": 5}, "prompt"),
        ({"context": ["x"]}, "context[0]"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        generate(**fields)
    assert refused.value.param == param
    assert param.split("[")[0] in refused.value.message


@pytest.mark.parametrize(
    ("wanted", "constraint"),
    [
        (None, None),
        ("", None),
        ("json", JsonObject("format")),
        ({"type": "object"}, JsonSchema('{"type": "object"}', "format")),
        ({}, JsonSchema("{}", "format")),
    ],
)
def test_a_format_is_a_constraint(wanted: object, constraint: object) -> None:
    assert generate(format=wanted).constraint == constraint
    assert chat({"role": "user", "content": "x"}, format=wanted).constraint == constraint


@pytest.mark.parametrize("wanted", ["xml", 5, ["json"], True])
def test_other_formats_are_refused(wanted: object) -> None:
    with pytest.raises(InvalidRequest, match=r"format: .* is neither") as refused:
        generate(format=wanted)
    assert refused.value.param == "format"


@pytest.mark.parametrize("fields", [{"suffix": "x", "raw": True}, {"think": "low", "raw": True}])
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        generate(**fields)
    assert refused.value.param == next(iter(fields))


def test_images_stand_before_their_message() -> None:
    shown = (GivenImage("aGk=", "messages[1].images[0]"), GivenImage("aGo=", "messages[1].images[1]"))
    prompt = chat({"role": "user", "content": "a"}, {"role": "user", "content": "b", "images": ["aGk=", "aGo="]}).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == (Message("user", "a"), Message("user", f"{IMAGE_MARK * 2}b", images=shown))
    prompt = generate(images=["aGk="], system="s").prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == Message("user", f"{IMAGE_MARK}hi", images=(GivenImage("aGk=", "images[0]"),))
    assert generate(images=[]) == generate()


@pytest.mark.parametrize("fields", [{"raw": True}, {"suffix": "x"}])
def test_images_need_a_chat(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        generate(images=["aGk="], **fields)
    assert refused.value.param == "images"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [CALL | {"function": {"name": 5}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "user", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [CALL]}, "messages"),
        ({"role": "assistant", "content": "x", "images": ["aGk="]}, "messages[0].images"),
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": ["x"]}, "messages[0].content"),
    ],
)
def test_wrong_messages_are_refused_by_name(message: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(message)
    assert refused.value.param == param


def test_a_tool_loop_arrives() -> None:
    request = chat(
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "thinking": "hm", "tool_calls": [CALL, {"function": {"name": "g"}}]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "tool", "content": "news", "tool_name": "g"},
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "d",
                    "parameters": {"type": "object", "properties": {"z": {}}},
                },
            },
            {"function": {"name": "g"}},
        ],
    )
    assert request.prompt == ChatPrompt(
        (
            Message("user", "how is it?"),
            Message(
                "assistant",
                "",
                thinking="hm",
                tool_calls=(ToolCall("f", '{"z": 1, "a": "ä"}', "call_1"), ToolCall("g", "{}")),
            ),
            Message("tool", "rain", tool_call_id="call_1"),
            Message("tool", "news", name="g"),
        ),
        tools=ToolUse((Tool("f", "d", '{"type": "object", "properties": {"z": {}}}'), Tool("g"))),
        thinking_param="think",
        truncate=True,
    )


@pytest.mark.parametrize("parameters", [None, {}, {"type": "", "properties": None, "required": None}])
def test_a_tool_without_parameters_may_say_so_as_gos_clients_do(parameters: object) -> None:
    request = chat({"role": "user", "content": "x"}, tools=[{"function": {"name": "f", "parameters": parameters}}])
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.tools == ToolUse((Tool("f"),))


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "web_search"}], "tools[0].function"),
        ([{"type": "web_search", "function": {"name": "f"}}], "tools[0].type"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"function": {"name": "f", "parameters": {"type": "string"}}}], "tools[0].function.parameters.type"),
        ([{"function": {"name": "f"}}] * 2, "tools"),
        ("f", "tools"),
    ],
)
def test_wrong_tools_are_refused_by_name(tools: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat({"role": "user", "content": "x"}, tools=tools)
    assert refused.value.param == param


def test_no_tools_are_no_tools() -> None:
    assert chat({"role": "user", "content": "x"}, tools=[], format="") == chat({"role": "user", "content": "x"})


@pytest.mark.parametrize(
    ("fields", "thinks", "thinking"),
    [
        ({}, False, None),
        ({}, True, True),
        ({"think": None}, True, True),
        ({"think": True}, False, True),
        ({"think": False}, False, False),
        ({"think": False}, True, False),
        ({"think": "low"}, True, "low"),
        ({"think": "max"}, True, "high"),
    ],
)
def test_a_model_that_can_think_does_unless_told_not_to(
    fields: dict[str, object], thinks: bool, thinking: object
) -> None:
    generated = generate_request(parse_body(json.dumps({"prompt": "x"} | fields).encode(), GenerateBody), thinks=thinks)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]} | fields).encode()
    for request in (generated, chat_request(parse_body(body, ChatBody), thinks=thinks)):
        assert isinstance(request.prompt, ChatPrompt)
        assert (request.prompt.thinking, request.prompt.thinking_param) == (thinking, "think")


def test_a_suffix_goes_past_the_chat() -> None:
    assert generate(suffix="b").prompt == InsertPrompt("hi", "b")
    template = "{{ .Prompt }}<fim>{{ .Suffix }}"
    assert generate(suffix="b", template=template).prompt == InsertPrompt("hi", "b", template=template)
    assert generate(suffix="").prompt == generate().prompt
    assert generate(prompt="", suffix="b", options={"stop": ["x"]}).prompt == InsertPrompt("", "b")


@pytest.mark.parametrize("fields", [{"system": "s"}, {"context": [1]}])
def test_a_suffix_excludes_system_and_context(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="suffix does not support system or context"):
        generate(suffix="x", **fields)


def test_a_blank_model_is_400_for_chat_and_404_for_generate() -> None:
    with pytest.raises(InvalidRequest, match="model is required"):
        check_chat_model(ChatBody())
    with pytest.raises(ModelNotFound, match="model '' not found"):
        check_generate_model(GenerateBody())


WORDS = st.sampled_from(["", "x", "json", "low", "5m"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(GenerateBody.model_fields)), JSON, max_size=5))
def test_any_fields_convert_or_are_refused(fields: dict[str, object]) -> None:
    with suppress(InvalidRequest):
        generate(**fields)
