"""What people suffer from with other servers, asked as they ask it. Each test is named for the pain."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam


def tool(name: str, **properties: object) -> ChatCompletionToolParam:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("get_weather", location={"type": "string"}), tool("get_time", zone={"enum": ["UTC", "CET"]})]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the weather in Paris and in Oslo?"}]
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Write a long story about a lighthouse."}]


def gathered(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    """What a client makes of a stream, as strictly as the reference says."""
    content, reason, calls = "", None, list[dict[str, str | None]]()
    for chunk in chunks:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                assert call.function
                if call.index == len(calls):
                    assert call.id
                    assert call.type == "function"
                    calls.append({"name": call.function.name, "arguments": ""})
                else:
                    assert call.index == len(calls) - 1, "calls come one after the other"
                    assert call.id is None
                    assert call.function.name is None
                calls[-1]["arguments"] = f"{calls[-1]['arguments']}{call.function.arguments or ''}"
    return {"content": content, "finish_reason": reason, "calls": calls}


def whole(reply: ChatCompletion) -> dict[str, Any]:
    """The same of an answer in one piece."""
    choice = reply.choices[0]
    calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in _calls(reply)]
    return {"content": choice.message.content or "", "finish_reason": choice.finish_reason, "calls": calls}


def _calls(reply: ChatCompletion) -> list[Any]:
    return list(reply.choices[0].message.tool_calls or [])


def test_a_long_prompt_is_not_cut_silently(client: openai.OpenAI, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError, match="8192") as caught:
        client.chat.completions.create(model=model, messages=messages)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


@pytest.mark.parametrize("choice", ["required", "get_time"])
def test_tool_choice_is_not_ignored(client: openai.OpenAI, model: str, choice: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=STORY,
        tools=TOOLS,
        tool_choice="required" if choice == "required" else {"type": "function", "function": {"name": choice}},
        parallel_tool_calls=False,
        temperature=1.2,
        seed=1,
        max_tokens=300,
    )
    (call,) = _calls(reply)
    assert call.function.name in (["get_weather", "get_time"] if choice == "required" else [choice])
    assert set(json.loads(call.function.arguments)) <= {"location", "zone"}


def test_tool_choice_none_means_none(client: openai.OpenAI, scripted: str) -> None:
    reply = client.chat.completions.create(model=scripted, messages=QUESTION, tools=TOOLS, tool_choice="none")
    assert not _calls(reply)
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_streamed_calls_lose_nothing(client: openai.OpenAI, scripted: str, choice: Any) -> None:
    request: dict[str, Any] = {"model": scripted, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice}
    reply = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert gathered(chunks) == whole(reply)
    assert whole(reply)["finish_reason"] == "tool_calls"
    assert len(_calls(reply)) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("with_tools", [False, True])
def test_a_schema_holds_also_with_thinking_streams_and_tools(
    client: openai.OpenAI, scripted: str, stream: bool, with_tools: bool
) -> None:
    """The model thinks and then answers in prose, if it is let."""
    schema = {"type": "object", "properties": {"product": {"type": "integer"}}, "required": ["product"]}
    request: dict[str, Any] = {
        "model": scripted,
        "messages": [{"role": "user", "content": "What is 17 times 3?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "product", "schema": schema}},
        "max_tokens": 2000,
        **({"tools": TOOLS} if with_tools else {}),
    }
    if stream:
        answer = gathered(list(client.chat.completions.create(**request, stream=True)))
    else:
        answer = whole(client.chat.completions.create(**request))
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["content"])["product"], int)
    elif answer["finish_reason"] == "tool_calls":
        assert with_tools
        assert all(json.loads(call["arguments"]) for call in answer["calls"])
    else:
        assert answer["finish_reason"] == "length"


def test_a_schema_that_cannot_be_held_is_refused_by_name(client: openai.OpenAI, model: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model=model,
            messages=STORY,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        )


def test_many_tools_are_no_reason_to_fail(client: openai.OpenAI, scripted: str) -> None:
    """An agent's tool set: 64 tools, about 80 KB of schemas."""
    values = [f"value {i}" for i in range(8)]
    tools = [tool(f"tool_{i}", **{f"field_{j}": {"enum": values} for j in range(8)}) for i in range(64)]
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Use the last tool."}]
    for choice in ("auto", "required"):
        reply = client.chat.completions.create(
            model=scripted, messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=False
        )
        (call,) = _calls(reply)
        assert call.function.name == "tool_63"
        assert json.loads(call.function.arguments) == {f"field_{i}": value for i, value in enumerate(values)}


def test_streams_have_logprobs_too(client: openai.OpenAI, model: str) -> None:
    request: dict[str, Any] = {
        "model": model,
        "messages": STORY,
        "temperature": 0,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    reply = client.chat.completions.create(**request)
    assert reply.choices[0].logprobs
    streamed = [
        entry
        for chunk in client.chat.completions.create(**request, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content or []
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in reply.choices[0].logprobs.content or []]
    assert all(len(entry.top_logprobs) == 2 for entry in streamed)


def test_a_cached_prompt_gives_the_same_answer(client: openai.OpenAI, model: str) -> None:
    facts = " ".join(f"Ship {i} carries {i * 7} barrels." for i in range(40))
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{facts} How many barrels does ship 12 carry?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    cold, cached = (client.chat.completions.create(**request) for _ in range(2))
    assert cached.choices[0].message.content == cold.choices[0].message.content
    assert cached.usage
    assert cached.usage.prompt_tokens_details
    assert cached.usage.prompt_tokens_details.cached_tokens


def test_the_models_list_has_what_requests_take(client: openai.OpenAI, model: str) -> None:
    names = [entry.id for entry in client.models.list()]
    assert names
    assert client.models.retrieve(names[0]).id == names[0]


def test_a_request_can_bring_ollamas_options(client: openai.OpenAI, model: str) -> None:
    """`num_ctx` and `keep_alive` over the OpenAI route: wished for, refused elsewhere."""
    body = {"keep_alive": "10m", "options": {"num_ctx": 128}}
    reply = client.chat.completions.create(model=model, messages=STORY, max_tokens=4, extra_body=body)
    assert reply.choices[0].finish_reason == "length"
