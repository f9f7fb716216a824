"""curl as people use it: `-d` without a Content-Type, which then says form data. Routes that no SDK has, too."""

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


def test_documents_are_ranked(base_url: str, embedding_model: str) -> None:
    """As Jina's and Cohere's clients ask; best first."""
    documents = ["The shares fell by five percent.", "A kitten lies on the carpet.", {"text": "It rains."}]
    body = {"model": embedding_model, "query": "Where is the cat?", "documents": documents, "top_n": 2}
    status, answer = curl(f"{base_url}/v1/rerank", "-d", json.dumps(body | {"return_documents": True}))
    assert status == 200
    results = json.loads(answer)["results"]
    assert len(results) == 2
    assert results[0]["index"] == 1
    assert results[0]["document"]["text"] == documents[1]
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


def test_tokens_come_back_as_text(base_url: str, model: str) -> None:
    text = "Grüße, 世界! \U0001f30d"
    status, answer = curl(
        f"{base_url}/tokenize", "-d", json.dumps({"model": model, "content": text, "add_special": False})
    )
    assert status == 200
    tokens = json.loads(answer)["tokens"]
    status, answer = curl(f"{base_url}/detokenize", "-d", json.dumps({"model": model, "tokens": tokens}))
    assert status == 200
    assert json.loads(answer)["content"] == text


def test_anthropics_events_have_names(base_url: str, scripted: str) -> None:
    body = {"model": scripted, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    status, answer = curl("--no-buffer", f"{base_url}/v1/messages", "-d", json.dumps(body))
    assert status == 200
    names = [line.removeprefix("event: ") for line in answer.splitlines() if line.startswith("event: ")]
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"


def test_the_routes_are_described(base_url: str) -> None:
    status, answer = curl(f"{base_url}/openapi.json")
    assert status == 200
    paths = json.loads(answer)["paths"]
    assert {"/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/api/chat"} <= set(paths)
    status, answer = curl(f"{base_url}/schema")
    assert status == 200
    assert "<html" in answer


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
