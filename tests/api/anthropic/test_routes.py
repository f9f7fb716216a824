"""`/v1/messages` over a real server, as the official client sees it. The models say the last user message again."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pydantic
import pytest
from anthropic.types import MessageParam, ToolParam

from vmm_adapters.echo import Gate
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Batch

WEATHER: ToolParam = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rom"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Rom"]


@pytest.fixture
def client(clever_server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=clever_server.url, api_key="unused", max_retries=0) as client:
        yield client


def user(text: str) -> MessageParam:
    return {"role": "user", "content": text}


def asked(text: str, **fields: Any) -> Any:
    return {"model": "clever", "max_tokens": 200, "messages": [user(text)]} | fields


def test_a_message(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(**asked("héllo", system="be brief"))
    message = raw.parse()
    assert (message.type, message.role, message.model) == ("message", "assistant", "clever")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "héllo"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    assert message._request_id == raw.headers["x-request-id"]
    assert raw.headers["x-vmm-model"] == "clever:latest"
    assert message.usage.output_tokens == len("héllo".encode()) + 1
    cached = message.usage.cache_read_input_tokens
    assert cached is not None
    counted = client.messages.count_tokens(model="clever", messages=[user("héllo")], system="be brief")
    assert message.usage.input_tokens + cached == counted.input_tokens


def test_cached_tokens_are_counted_apart(client: anthropic.Anthropic) -> None:
    first, second = (client.messages.create(**asked("say that twice, " * 5)).usage for _ in range(2))
    assert first.input_tokens + (first.cache_read_input_tokens or 0) == second.input_tokens + (
        second.cache_read_input_tokens or 0
    )
    assert (second.cache_read_input_tokens or 0) >= 64
    with client.messages.stream(**asked("say that twice, " * 5)) as stream:
        assert stream.get_final_message().usage == second


def test_the_stream_helper_gathers_the_same_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**asked("héllo")) as stream:
        assert "".join(stream.text_stream) == "héllo"
        final = stream.get_final_message()
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    whole = client.messages.create(**asked("héllo"))
    assert final.content[0].to_dict()["text"] == whole.content[0].to_dict()["text"]
    assert final.stop_reason == whole.stop_reason


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("hi", {}),
        ("hello there", {"max_tokens": 5}),
        ("a##b", {"stop_sequences": ["##", "?"]}),
        ("<think>\nhm\n</think>\n\nyes", {}),
        ("<think>hm", {"max_tokens": 9}),
        ("<think>hm</think>yes", {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}),
        (CALL, {"tools": [WEATHER]}),
        (f"<think>hm</think>let me see{CALL}{CALL}", {"tools": [WEATHER]}),
        (CALL, {"tools": [WEATHER], "max_tokens": 60}),
        (CALL, {"tools": [WEATHER], "tool_choice": {"type": "none"}}),
        ("hi", {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}),
        ("hi", {"output_config": {"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}}),
        ("hi", {"max_tokens": 0}),
    ],
)
def test_streamed_or_not_the_answer_is_the_same(client: anthropic.Anthropic, text: str, fields: dict[str, Any]) -> None:
    request = asked(text, extra_body={"temperature": 0}, **fields)
    whole: Any = client.messages.create(**request).to_dict()
    with client.messages.stream(**request) as stream:
        streamed: Any = stream.get_final_message().to_dict()
    for message in (whole, streamed):
        message["content"] = [block | ({"id": ""} if "id" in block else {}) for block in message["content"]]
    assert streamed["content"] == whole["content"]
    for name in ("stop_reason", "stop_sequence"):
        assert streamed[name] == whole[name]
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_thinking_comes_in_a_block_of_its_own(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        **asked("<think>\nhm\n</think>\n\nyes", thinking={"type": "enabled", "budget_tokens": 1024})
    )
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "yes"},
    ]
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == len("<think>\nhm\n</think>")


def test_a_tools_loop(client: anthropic.Anthropic) -> None:
    messages: list[MessageParam] = [user(f"let me see{CALL}")]
    message = client.messages.create(model="clever", max_tokens=200, messages=messages, tools=[WEATHER])
    assert message.stop_reason == "tool_use"
    text, call = message.content
    assert (text.type, call.type) == ("text", "tool_use")
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Rom"})
    messages += [
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "It rains."},
            ],
        },
    ]
    message = client.messages.create(model="clever", max_tokens=200, messages=messages, tools=[WEATHER])
    assert (message.stop_reason, message.content[0].to_dict()["text"]) == ("end_turn", "It rains.")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_forced_call_holds_its_schema(client: anthropic.Anthropic, choice: Any) -> None:
    fields = asked("no", model="handy", tools=[WEATHER], tool_choice=choice | {"disable_parallel_tool_use": True})
    for _ in range(3):
        message = client.messages.create(**fields)
        (call,) = message.content
        assert call.type == "tool_use"
        assert call.input in ({"city": "Oslo"}, {"city": "Rom"})
        assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("tools", [[], [WEATHER]])
@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}])
def test_an_output_format_holds_beside_thinking_and_tools(
    client: anthropic.Anthropic, thinking: Any, tools: Any
) -> None:
    form = {"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}
    request = asked("<think>hm</think>no JSON", output_config=form, thinking=thinking, tools=tools)
    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        *thoughts, said = message.content
        thinks = thinking["type"] == "enabled"
        assert [thought.to_dict()["thinking"] for thought in thoughts] == (["hm"] if thinks else [])
        values = json.loads(said.text) if said.type == "text" else said.to_dict()["input"]
        assert values in ({"city": "Oslo"}, {"city": "Rom"})


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked("one##two", stop_sequences=["#?", "##"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "##")
    assert message.content[0].to_dict()["text"] == "one"


@pytest.mark.parametrize(
    ("max_tokens", "reason"), [(3, "max_tokens"), (10_000, "model_context_window_exceeded"), (0, "max_tokens")]
)
def test_who_ended_a_cut_answer(client: anthropic.Anthropic, max_tokens: int, reason: str) -> None:
    message = client.messages.create(**asked("long " * 60, max_tokens=max_tokens))
    assert message.stop_reason == reason
    assert bool(message.content) == bool(max_tokens)


def test_an_answer_goes_on_from_a_beginning(client: anthropic.Anthropic) -> None:
    messages: list[MessageParam] = [user("(B) Helios"), {"role": "assistant", "content": "(B"}]
    message = client.messages.create(model="clever", max_tokens=20, messages=messages)
    assert message.content[0].to_dict()["text"] == ") Helios"


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    for call in (client.messages.create, lambda **body: client.messages.create(**body, stream=True)):
        with pytest.raises(anthropic.NotFoundError) as refused:
            call(**asked("x", model="nobody"))
        assert (refused.value.type, refused.value.api_message) == ("not_found_error", "model 'nobody' not found")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nobody", messages=[user("x")])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": []}, "messages: at least one message is required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "messages[0].content[0]: document blocks",
        ),
        ({"extra_body": {"temperature": 2}}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: 'web_search_20250305'"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "output_config.format.schema"),
        ({"model": "echo", "thinking": {"type": "enabled", "budget_tokens": 1024}}, '"echo" does not support thinking'),
        ({"model": "a b"}, "invalid model name"),
    ],
)
def test_wrong_fields_are_bad_requests(client: anthropic.Anthropic, fields: Any, word: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**asked("x", **fields))
    assert word in (refused.value.api_message or "")
    assert refused.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused_in_words_that_clients_know(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 51\d maximum"):
        client.messages.create(**asked("x" * 600))


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", "/v1/messages", b"", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b'{"model": "clever", "messages": []}', 400, "invalid_request_error"),
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", b"{}", 404, "not_found_error"),
    ],
)
def test_every_error_is_worded_as_anthropics(
    clever_server: Any, method: str, path: str, content: bytes, status: int, kind: str
) -> None:
    headers = {"anthropic-version": "2023-06-01", "x-api-key": "unused"}
    response: httpx.Response = clever_server.client.request(method, path, content=content, headers=headers)
    body = response.json()
    assert response.status_code == status
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]


def test_the_body_may_come_as_curl_sends_it(clever_server: Any) -> None:
    response = clever_server.client.post(
        "/v1/messages?beta=true",
        content=json.dumps(asked("hi")).encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.json()["content"] == [{"type": "text", "text": "hi"}]


def test_a_late_failure_is_an_error_event(start_server: Any) -> None:
    steps = 0

    def fail_late(batch: Batch) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise RuntimeFailed("out of luck")

    server = start_server(gate=fail_late)
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        with (
            pytest.raises(anthropic.APIStatusError) as failed,
            client.messages.stream(model="echo", max_tokens=50, messages=[user("hello there")]) as stream,
        ):
            list(stream.text_stream)
        assert failed.value.type == "api_error"
        assert "out of luck" in (failed.value.api_message or "")
        steps = 0
        with pytest.raises(anthropic.InternalServerError):
            client.messages.create(model="echo", max_tokens=50, messages=[user("hello there")])


def test_a_client_that_leaves_ends_its_answer(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate)
    body = {"model": "echo", "max_tokens": 50, "stream": True, "messages": [user("hello there")]}
    gate.release(2)
    with server.client.stream("POST", "/v1/messages", json=body) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: message_start"
    gate.open()
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        assert client.messages.create(model="echo", max_tokens=50, messages=[user("hi")]).stop_reason == "end_turn"
    assert server.stats().num_running == 0


def test_the_parse_helper_gets_its_object(client: anthropic.Anthropic) -> None:
    parsed = client.messages.parse(**asked("no JSON", model="handy"), output_format=Place)
    assert isinstance(parsed.parsed_output, Place)
