"""A stream says what a whole answer says, and the prompt can be seen before it is answered."""

import json
from typing import Any

import pytest

CALL = '<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": "x"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"b": {}}}}}
FORM = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
FIXED = {"temperature": 0, "seed": 1}
TIMES = ("created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("generate", {"prompt": "hello"}),
    ("generate", {"prompt": "hello", "logprobs": True, "top_logprobs": 2}),
    ("generate", {"prompt": "hello", "options": {"num_predict": 3}, "context": [5, 6], "system": "s"}),
    ("generate", {"prompt": "abc", "raw": True, "options": {"num_predict": 4}}),
    ("generate", {"prompt": "hello", "options": {"stop": ["l"]}}),
    ("generate", {"prompt": "x", "format": FORM, "options": {"num_predict": 100}}),
    ("generate", {"model": "clever", "prompt": "<think>hm</think>yes"}),
    ("chat", {"messages": said("hello")}),
    ("chat", {"messages": said("hello"), "logprobs": True}),
    ("chat", {"messages": [*said("a"), {"role": "assistant", "content": "b"}, *said("hello")]}),
    ("chat", {"model": "clever", "messages": said("<think>hm</think>yes"), "think": True}),
    ("chat", {"model": "clever", "messages": said(f"<think>hm</think>now {CALL}{CALL}"), "tools": [TOOL]}),
    ("chat", {"model": "handy", "messages": said(CALL), "tools": [TOOL], "options": {"num_predict": 30}}),
    ("chat", {"model": "clever", "messages": said("x"), "think": False, "format": FORM, "tools": [TOOL]}),
]


def told(line: dict[str, Any]) -> dict[str, Any]:
    """What one object says, whatever the route."""
    return line.get("message") or {"content": line.get("response"), "thinking": line.get("thinking", "")}


def joined(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What all lines say together, in the form of one answer; times and ids of calls are nobody's."""
    calls = [call["function"] for line in lines for call in told(line).get("tool_calls", [])]
    logprobs = [entry for line in lines for entry in line.get("logprobs", [])]
    fields = {name: value for name, value in lines[-1].items() if name not in (*TIMES, "message", "response")}
    return fields | {
        "content": "".join(told(line)["content"] for line in lines),
        "thinking": "".join(told(line).get("thinking") or "" for line in lines),
        "tool_calls": calls,
        "logprobs": logprobs,
    }


@pytest.mark.parametrize(("path", "body"), BODIES, ids=range(len(BODIES)))
def test_a_stream_says_what_a_whole_answer_says(clever_server: Any, path: str, body: dict[str, Any]) -> None:
    def ask(**more: object) -> Any:
        options = {"options": FIXED | body.get("options", {})}
        return clever_server.client.post(f"/api/{path}", json={"model": "echo"} | body | options | more)

    ask(stream=False).raise_for_status()  # the prompt is in the cache for both
    whole, stream = ask(stream=False), ask()
    assert stream.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in stream.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    streamed, answer = joined(lines), joined([whole.json()])
    assert streamed == answer
    assert answer["content"] or answer["tool_calls"]
    if body.get("logprobs"):
        assert len(answer["logprobs"]) == answer["eval_count"] - 1  # the end of the answer is no part of it
    assert ("context" in answer) == (path == "generate" and not body.get("raw"))


@pytest.mark.parametrize(
    ("path", "body", "rendered"),
    [
        ("generate", {"prompt": "hi"}, "<|user|>hi<|end|><|assistant|>"),
        ("generate", {"prompt": "hi", "system": "s"}, "<|system|>s<|end|><|user|>hi<|end|><|assistant|>"),
        ("generate", {"prompt": "hi", "raw": True}, "hi"),
        ("generate", {"prompt": "hi", "template": "{{ .System }}|{{ .Prompt }}", "system": "s"}, "s|hi"),
        ("chat", {"messages": said("hi")}, "<|user|>hi<|end|><|assistant|>"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_the_prompt_can_be_seen(
    clever_server: Any, path: str, body: dict[str, Any], rendered: str, stream: bool
) -> None:
    body = {"model": "echo", "_debug_render_only": True, "stream": stream} | body
    answer = clever_server.client.post(f"/api/{path}", json=body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    shown = answer.json()
    assert (shown.pop("model"), shown.pop("created_at")[:2]) == ("echo", "20")
    nothing = {"response": ""} if path == "generate" else {"message": {"role": "assistant", "content": ""}}
    assert shown == nothing | {"done": False, "_debug_info": {"rendered_template": rendered}}


def test_the_prompt_is_shown_with_what_came_before(clever_server: Any) -> None:
    first = clever_server.client.post("/api/generate", json={"model": "echo", "prompt": "hi", "stream": False}).json()
    body = {"model": "echo", "prompt": "and", "context": first["context"], "_debug_render_only": True}
    shown = clever_server.client.post("/api/generate", json=body).json()["_debug_info"]["rendered_template"]
    assert shown.startswith("<|user|>hi<|end|><|assistant|>hi")
    assert shown.endswith("<|user|>and<|end|><|assistant|>")


def test_ids_of_calls_look_like_ollamas(clever_server: Any) -> None:
    body = {"model": "clever", "messages": said(CALL * 2), "tools": [TOOL], "stream": False}
    calls = clever_server.client.post("/api/chat", json=body).json()["message"]["tool_calls"]
    assert [call["function"]["index"] for call in calls] == [0, 1]
    assert all(len(call["id"]) == len("call_") + 8 and call["id"].startswith("call_") for call in calls)
    assert calls[0]["id"] != calls[1]["id"]
    assert all(call["id"][5:].isalnum() and call["id"].islower() for call in calls)


@pytest.mark.parametrize("path", ["generate", "chat"])
def test_a_model_is_not_loaded_for_what_it_cannot_do(clever_server: Any, path: str) -> None:
    answer = clever_server.client.post(f"/api/{path}", json={"model": "echo", "think": True})
    assert (answer.status_code, answer.json()["error"]) == (400, '"echo" does not support thinking')
    assert clever_server.client.post(f"/api/{path}", json={"model": "clever", "think": "high"}).status_code == 200
