"""`truncate` on Ollama's routes: on unless the request says otherwise, and said in headers, streamed or not."""

import json
from typing import Any

import httpx
import pytest

OLD = [{"role": role, "content": "x" * 60} for _ in range(5) for role in ("user", "assistant")]
CHAT = {
    "model": "echo",
    "messages": [{"role": "system", "content": "be kind"}, *OLD, {"role": "user", "content": "last"}],
}
OPTIONS = {"temperature": 0, "num_predict": 50}


def ask(server: Any, path: str, **body: Any) -> httpx.Response:
    response = server.client.post(path, json={"stream": False, "options": OPTIONS} | body)
    assert isinstance(response, httpx.Response)
    return response


def dropped(response: httpx.Response) -> tuple[str | None, str | None]:
    return response.headers.get("x-vmm-dropped-tokens"), response.headers.get("x-vmm-dropped-messages")


def test_a_long_conversation_is_answered_without_its_oldest_messages(live_server: Any) -> None:
    response = ask(live_server, "/api/chat", **CHAT)
    answer = response.json()
    assert (response.status_code, answer["message"]["content"], answer["done_reason"]) == (200, "last", "stop")
    assert dropped(response) == (str(4 * 62), "4")
    rest = ask(live_server, "/api/chat", **CHAT | {"messages": [CHAT["messages"][0], *CHAT["messages"][5:]]})
    assert (rest.json()["prompt_eval_count"], dropped(rest)) == (answer["prompt_eval_count"], (None, None))


def test_a_stream_says_it_before_its_first_line(live_server: Any) -> None:
    with live_server.client.stream("POST", "/api/chat", json=CHAT | {"options": OPTIONS}) as response:
        assert dropped(response) == (str(4 * 62), "4")
        lines = [json.loads(line) for line in response.iter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == "last"
    assert lines[-1]["done"]


def test_num_ctx_is_the_limit(live_server: Any) -> None:
    messages = [CHAT["messages"][0], *OLD[:4], CHAT["messages"][-1]]
    whole = ask(live_server, "/api/chat", **CHAT | {"messages": messages})
    assert dropped(whole) == (None, None)
    cut = ask(live_server, "/api/chat", **CHAT | {"messages": messages, "options": OPTIONS | {"num_ctx": 200.0}})
    assert dropped(cut) == (str(2 * 62), "2")
    assert cut.json()["message"]["content"] == "last"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", CHAT),
        ("/api/generate", {"model": "echo", "prompt": "x" * 600, "raw": True}),
        ("/api/generate", {"model": "echo", "prompt": "last", "context": [1] * 600}),
    ],
)
def test_without_truncate_it_is_a_400_in_ollamas_words(live_server: Any, path: str, body: Any, stream: bool) -> None:
    response = ask(live_server, path, **body, truncate=False, stream=stream)
    assert response.status_code == 400
    assert response.json()["error"].startswith("the input length exceeds the context length")
    assert ask(live_server, path, **body, truncate=True).status_code == 200
    assert dropped(ask(live_server, path, **body, truncate=None))[0] is not None


def test_what_was_said_last_is_never_cut(live_server: Any) -> None:
    long = {"model": "echo", "messages": [*OLD, {"role": "user", "content": "x" * 600}]}
    for path, body in (("/api/chat", long), ("/api/generate", {"model": "echo", "prompt": "x" * 600})):
        response = ask(live_server, path, **body)
        assert response.status_code == 400
        assert "the input length exceeds the context length" in response.json()["error"]
        assert "never dropped" in response.json()["hint"]


def test_a_raw_prompt_keeps_num_keep_tokens_and_its_end(live_server: Any) -> None:
    raw = {"model": "echo", "raw": True, "prompt": "begin" + "m" * 600 + "abc"}
    response = ask(live_server, "/api/generate", **raw, options=OPTIONS | {"num_predict": 3})
    assert response.json()["response"] == "def"
    assert response.json()["prompt_eval_count"] == 512 - 3
    assert dropped(response) == (str(608 - 509), None)
    assert ask(live_server, "/api/generate", **raw, options=OPTIONS | {"num_keep": -1}).status_code == 400
    assert ask(live_server, "/api/generate", **raw, options=OPTIONS | {"num_keep": 10**6}).status_code == 200


def test_shift_is_taken_and_an_answer_ends_with_the_context(live_server: Any) -> None:
    body = {"model": "echo", "raw": True, "prompt": "a" * 500, "shift": True, "options": {"temperature": 0}}
    answer = ask(live_server, "/api/generate", **body).json()
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 12)
