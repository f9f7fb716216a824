"""Tools and thinking over a real server, and what users of other servers suffer from there."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from vmm_adapters.echo import Gate

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rom", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": CITY} | fields}


def spoken(name: str, city: str = "Rom") -> str:
    """A call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


TOOLS = [tool("f"), tool("g")]
ONE, TWO = spoken("f"), f"{spoken('f')}\n{spoken('g', 'Oslo')}"
Ask = Callable[..., Any]


@pytest.fixture
def server(clever_server: Any) -> Any:
    return clever_server


@pytest.fixture
def ask(server: Any) -> Ask:
    def send(say: str, *, status: int = 200, **body: object) -> Any:
        asked = {"model": "clever", "temperature": 0, "messages": [{"role": "user", "content": say}]} | body
        response: httpx.Response = server.client.post("/v1/chat/completions", json=asked)
        assert response.status_code == status, response.text
        return response.json()["choices"][0] if status == 200 and not body.get("stream") else response

    return send


def calls_of(choice: Any) -> list[tuple[str, str]]:
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["id"].startswith("call_") and call["type"] == "function" for call in calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def test_a_model_calls_and_is_told_the_result(ask: Ask) -> None:
    choice = ask(ONE, tools=TOOLS)
    assert calls_of(choice) == [("f", '{"city": "Rom"}')]
    assert choice["message"]["content"] is None
    conversation = [
        {"role": "user", "content": "warm?"},
        choice["message"],
        {"role": "tool", "tool_call_id": choice["message"]["tool_calls"][0]["id"], "content": "very"},
    ]
    assert ask("", messages=conversation, tools=TOOLS)["message"]["content"] == "warm?"


def test_text_may_come_with_calls_and_thinking_before_them(ask: Ask) -> None:
    choice = ask(f"<think>\nhm\n</think>\n\nLet me see.\n{TWO}", tools=TOOLS)
    assert calls_of(choice) == [("f", '{"city": "Rom"}'), ("g", '{"city": "Oslo"}')]
    message = choice["message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hm", "hm")
    assert message["content"].strip() == "Let me see."


def test_reasoning_tokens_are_those_of_the_thinking(ask: Ask) -> None:
    thought = "<think>hm</think>"
    usage = ask(f"{thought}yes", stream=True, stream_options={"include_usage": True}).text.split("\n\n")[-3]
    assert json.loads(usage[6:])["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(thought)


PARITY = {
    "text": ("héllo", {}),
    "text beside tools": ("héllo <tool", {"tools": TOOLS}),
    "thinking": ("<think>why\nnot</think>yes", {}),
    "thinking that is cut": ("<think>why not</think>yes", {"max_tokens": 12}),
    "one call": (ONE, {"tools": TOOLS}),
    "several calls": (TWO, {"tools": TOOLS}),
    "thinking and a call": (f"<think>hm</think>{ONE}", {"tools": TOOLS}),
    "text and a call": (f"So: {ONE}", {"tools": TOOLS}),
    "a call that is cut": (ONE, {"tools": TOOLS, "max_tokens": 50}),
    "a call it has to make": ("no", {"tools": TOOLS, "tool_choice": "required", "seed": 3, "model": "handy"}),
    "a form after thinking": ('<think>{</think>{"a": 1}', {"response_format": {"type": "json_object"}}),
}


@pytest.mark.parametrize("case", PARITY)
def test_the_same_request_streamed_and_not_gives_the_same_message(server: Any, case: str) -> None:
    """Missing indexes, wrong finish reasons, calls lost when streaming: none of it, by OpenAI's own client."""
    say, fields = PARITY[case]
    asked: dict[str, Any] = {
        "model": "clever",
        "temperature": 0,
        **fields,
        "messages": [{"role": "user", "content": say}],
    }
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**asked).choices[0]
        state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        for chunk in client.chat.completions.create(stream=True, **asked):
            state.handle_chunk(chunk)
    streamed = state.current_completion_snapshot.choices[0]
    assert streamed.finish_reason == whole.finish_reason
    expected, got = whole.message.model_dump(exclude_none=True), streamed.message.model_dump(exclude_none=True)
    for call in [*expected.get("tool_calls", []), *got.get("tool_calls", [])]:
        assert call.pop("id").startswith("call_")
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    assert got == expected
    assert whole.message.tool_calls or "tools" not in fields or case == "text beside tools"


def test_arguments_stream_as_they_come(start_server: Any, gate: Gate) -> None:
    server = start_server(gate=gate, context_length=2048, num_blocks=256)
    asked = {"model": "echo", "messages": [{"role": "user", "content": ONE}], "tools": TOOLS, "stream": True}
    gate.release(1 + ONE.index("ity"))  # the model is held in the middle of the arguments
    with server.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        events = (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {"))
        pieces = ((call["function"]["arguments"], gate.open()) for event in events for call in calls_in(event))
        assert next(pieces)[0] == ""
        assert "".join(arguments for arguments, _ in pieces) == '{"city": "Rom"}'


def calls_in(event: Any) -> list[Any]:
    calls: list[Any] = event["choices"][0]["delta"].get("tool_calls", [])
    return calls


def test_tool_choice_is_not_ignored(ask: Ask) -> None:
    """The model wants to say something else each time."""
    for choice, names in (("required", {"f", "g"}), ({"type": "function", "function": {"name": "g"}}, {"g"})):
        ((name, arguments),) = calls_of(
            ask("no call", model="handy", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        )
        assert name in names
        assert json.loads(arguments)["city"] in ("Rom", "Oslo")
    only = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    assert {name for name, _ in calls_of(ask(ONE, model="handy", tools=TOOLS, tool_choice=only))} == {"g"}
    untold = ask(ONE, tools=TOOLS, tool_choice="none")
    assert untold["message"]["content"] == ONE
    assert untold["finish_reason"] == "stop"


def test_tools_that_may_not_be_called_are_not_told(server: Any) -> None:
    def prompt_tokens(**fields: object) -> int:
        body = {"model": "handy", "messages": [{"role": "user", "content": "x"}]} | fields
        usage: dict[str, int] = server.client.post("/v1/chat/completions", json=body).json()["usage"]
        return usage["prompt_tokens"]

    assert prompt_tokens(tools=TOOLS, tool_choice="none") == prompt_tokens()
    assert prompt_tokens(tools=TOOLS) == prompt_tokens() + 2 * len("<f: Does f.>")


def test_a_strict_tool_is_called_as_its_schema_says(ask: Ask) -> None:
    wrong = '<tool_call>\n{"name": "f", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert calls_of(ask(wrong, tools=TOOLS)) == [("f", '{"city": "Paris"}')]
    ((name, arguments),) = calls_of(
        ask(wrong, model="handy", tools=[tool("f", strict=True)], parallel_tool_calls=False)
    )
    assert name == "f"
    assert json.loads(arguments)["city"] in ("Rom", "Oslo")


def test_one_call_is_all_where_parallel_calls_are_off(ask: Ask) -> None:
    assert len(calls_of(ask(TWO, tools=TOOLS))) == 2
    assert calls_of(ask(TWO, tools=TOOLS, parallel_tool_calls=False)) == [("f", '{"city": "Rom"}')]


def test_functions_answer_by_the_older_name(ask: Ask) -> None:
    choice = ask(TWO, functions=[one["function"] for one in TOOLS])
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"city": "Rom"}'}
    named = ask("no", model="handy", functions=[TOOLS[1]["function"]], function_call={"name": "g"})
    assert named["message"]["function_call"]["name"] == "g"


def test_a_form_holds_after_thinking_streamed_and_beside_tools(ask: Ask) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    for fields in ({}, {"tools": TOOLS}, {"reasoning_effort": "low"}):
        choice = ask('<think>not { JSON</think>{"city": "Paris"} or so', response_format=form, **fields)
        assert choice["message"]["reasoning"] == "not { JSON"
        assert json.loads(choice["message"]["content"])["city"] in ("Rom", "Oslo")


def test_a_prompt_with_tools_is_never_cut_to_fit(ask: Ask) -> None:
    """Others drop the front of it, system prompt and tools first, and answer."""
    tools = [tool(f"f{number}", description="x" * 200) for number in range(3)]
    error = ask("hello", tools=tools, status=400).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_the_context_size_can_be_set_on_this_route(ask: Ask) -> None:
    assert ask("hello", options={"num_ctx": 16})["message"]["content"] == "hello"
    assert ask("hello" * 3, options={"num_ctx": 16}, status=400).json()["error"]["code"] == "context_length_exceeded"


def test_a_strict_schema_that_cannot_be_enforced_is_refused_by_its_keyword(ask: Ask) -> None:
    """Closed where others fail open. What is not strict is enforced as far as that goes, so big tool sets work."""
    parameters = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    for choice in ("auto", "required"):
        tools = [tool("f"), tool("g", parameters=parameters, strict=True)]
        error = ask(ONE, tools=tools, tool_choice=choice, status=400).json()["error"]
        assert error["param"] == "tools[1].function.parameters"
        assert '"not"' in error["message"]
        assert calls_of(ask(ONE, tools=[tool("f"), tool("g", parameters=parameters)], tool_choice=choice))


def test_a_model_that_cannot_think_is_not_asked_to(ask: Ask) -> None:
    assert ask("x", model="echo", reasoning_effort="none")["message"]["content"] == "x"
    error = ask("x", model="echo", reasoning_effort="high", status=400).json()["error"]
    assert error["param"] == "reasoning_effort"
