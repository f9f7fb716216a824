"""Tools and thinking on `/api`, as the official client sees them. The models say the last user message again."""

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom", "days": 2}}\n</tool_call>'
THOUGHT = "<think>\nhm\n</think>\n\n"


def weather(city: str, days: int) -> str:
    """Tells the weather.

    Args:
        city: where
        days: how many

    Returns:
        words
    """
    return f"{days} days of rain in {city}"


@pytest.fixture
def client(clever_server: Any) -> Iterator[ollama.Client]:
    with ollama.Client(host=clever_server.url, trust_env=False) as client:
        yield client


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_tools_loop(client: ollama.Client) -> None:
    check_tools_loop(client, "clever")


def test_tools_of_a_model_whose_template_has_no_place_for_them(start_server: Any) -> None:
    server = start_server(context_length=2000, num_blocks=256)
    with ollama.Client(host=server.url, trust_env=False) as client:
        check_tools_loop(client, "echo")


def check_tools_loop(client: ollama.Client, model: str) -> None:
    messages: list[Any] = [user(f"let me see{CALL}")]
    reply = client.chat(model, messages, tools=[weather])
    assert (reply.message.content, reply.done_reason) == ("let me see", "stop")
    (call,) = reply.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rom", "days": 2})
    messages += [reply.message, {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}]
    reply = client.chat(model, [*messages, user("It rains.")], tools=[weather])
    assert (reply.message.content or "").endswith("It rains.")
    assert reply.message.tool_calls is None


def test_calls_stream_whole_and_before_the_end(clever_server: Any) -> None:
    spec = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    body = {"model": "clever", "messages": [user(f"{THOUGHT}ok{CALL}{CALL}")], "tools": [spec]}
    lines = [json.loads(line) for line in clever_server.client.post("/api/chat", json=body).text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["message"] == {"role": "assistant", "content": ""}
    assert lines[-1]["done_reason"] == "stop"
    entries = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    assert [[call["function"]["index"] for call in calls] for calls in entries] == [[0], [1]]
    assert all(call["id"].startswith("call_") for calls in entries for call in calls)
    assert entries[0][0]["function"]["arguments"] == {"city": "Rom", "days": 2}
    whole = clever_server.client.post("/api/chat", json=body | {"stream": False}).json()
    assert (whole["message"]["thinking"], whole["message"]["content"]) == ("hm", "ok")
    assert [call["function"] for call in whole["message"]["tool_calls"]] == [calls[0]["function"] for calls in entries]


@pytest.mark.parametrize("think", [None, True, "low"])
def test_thinking_is_apart_from_the_answer(client: ollama.Client, think: Any) -> None:
    text = f"{THOUGHT}yes"
    chatted = client.chat("clever", [user(text)], think=think)
    assert (chatted.message.thinking, chatted.message.content) == ("hm", "yes")
    generated = client.generate("clever", text, think=think)
    assert (generated.thinking, generated.response) == ("hm", "yes")
    pieces = list(client.chat("clever", [user(text)], think=think, stream=True))
    assert "".join(piece.message.thinking or "" for piece in pieces) == "hm"
    assert "".join(piece.message.content or "" for piece in pieces) == "yes"
    assert not any(piece.message.thinking and piece.message.content for piece in pieces)
    parts = list(client.generate("clever", text, think=think, stream=True))
    assert "".join(part.thinking or "" for part in parts) == "hm"
    assert "".join(part.response or "" for part in parts) == "yes"


def test_a_raw_answer_is_the_models_text(client: ollama.Client) -> None:
    reply = client.generate("clever", f"<|user|>{THOUGHT}yes<|end|><|assistant|>", raw=True)
    assert (reply.thinking, reply.response) == (None, f"{THOUGHT}yes")


@pytest.mark.parametrize("think", [True, "high"])
def test_thinking_needs_a_model_that_thinks(client: ollama.Client, think: Any) -> None:
    for ask in (
        lambda: client.chat("echo", [user("x")], think=think),
        lambda: client.generate("echo", "x", think=think),
    ):
        with pytest.raises(ollama.ResponseError, match='"echo" does not support thinking') as refused:
            ask()
        assert refused.value.status_code == 400
    assert client.chat("echo", [user("x")], think=False).message.content == "x"


def test_a_suffix_has_its_text_before_it(coder: Any) -> None:
    """A gap is filled with the alphabet."""
    for prompt in ("def f(", ""):
        body = {"model": "coder", "prompt": prompt, "suffix": "):", "stream": False, "options": {"num_predict": 3}}
        reply = coder.client.post("/api/generate", json=body).json()
        assert (reply["response"], reply["done_reason"]) == ("abc", "length")
        assert reply["prompt_eval_count"] == len(prompt) + len("):") + 3


def test_a_suffix_needs_a_model_that_inserts(client: ollama.Client) -> None:
    for prompt in ("x", ""):
        with pytest.raises(ollama.ResponseError, match='"echo" does not support insert') as refused:
            client.generate("echo", prompt, suffix="y")
        assert refused.value.status_code == 400


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "arguments"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "results have to follow"),
    ],
)
def test_wrong_calls_are_refused(clever_server: Any, message: Any, word: str) -> None:
    response = clever_server.client.post("/api/chat", json={"model": "clever", "messages": [user("x"), message]})
    assert response.status_code == 400
    assert word in response.json()["error"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("think", [None, True, False])
@pytest.mark.parametrize("tools", [None, [weather]])
def test_a_format_holds_beside_thinking_and_tools(client: ollama.Client, think: Any, tools: Any, stream: bool) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    got = client.chat(
        "clever",
        [user(f"{THOUGHT}no JSON")],
        think=think,
        tools=tools,
        format=schema,
        stream=stream,
        options={"seed": 1},
    )
    pieces: Any = list(got) if stream else [got]
    assert "".join(piece.message.thinking or "" for piece in pieces) == ("" if think is False else "hm")
    content = "".join(piece.message.content or "" for piece in pieces)
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert pieces[-1].done_reason == "stop"
    assert calls if not content else json.loads(content) in ({"n": 1}, {"n": 2})
