"""curl as people use it: `-d` without a Content-Type, which then says form data."""

import json
import subprocess

import pytest


def curl(*arguments: str) -> tuple[int, str]:
    """Status and body."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_an_ollama_chat_streams_lines(base_url: str, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Say hi"}], "options": {"num_predict": 8}}
    status, answer = curl(f"{base_url}/api/chat", "-d", json.dumps(body))
    assert status == 200
    lines = [json.loads(line) for line in answer.splitlines()]
    assert lines[-1]["done"]
    assert "".join(line["message"]["content"] for line in lines)


def test_an_openai_chat_answers_and_streams_events(base_url: str, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8}
    status, answer = curl(f"{base_url}/v1/chat/completions", "-d", json.dumps(body))
    assert status == 200
    assert json.loads(answer)["choices"][0]["message"]["content"]
    status, answer = curl("--no-buffer", f"{base_url}/v1/chat/completions", "-d", json.dumps(body | {"stream": True}))
    assert status == 200
    events = [line for line in answer.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) > 3


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags", "/health/live", "/health/ready"])
def test_probes_answer_to_get_and_head(base_url: str, path: str) -> None:
    assert curl(f"{base_url}{path}")[0] == 200
    assert curl("--head", f"{base_url}{path}")[0] == 200


def test_malformed_json_and_no_body_are_bad_requests(base_url: str) -> None:
    for path in ("/api/chat", "/v1/chat/completions"):
        status, answer = curl(f"{base_url}{path}", "-d", '{"model": ')
        assert status == 400
        assert "error" in json.loads(answer)
        status, answer = curl("--request", "POST", f"{base_url}{path}")
        assert status == 400
        assert "missing request body" in answer


def test_an_unknown_route_is_not_found(base_url: str) -> None:
    assert curl(f"{base_url}/v1/nonsense")[0] == 404
    assert curl(f"{base_url}/nonsense")[0] == 404
