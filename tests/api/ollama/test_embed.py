"""`/api/embed` and `/api/embeddings` over echo's encoders."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

Post = Callable[..., httpx.Response]


@pytest.fixture
def embed(encoder_server: Any) -> Post:
    def send(**body: object) -> httpx.Response:
        response: httpx.Response = encoder_server.client.post("/api/embed", json={"model": "words"} | body)
        return response

    return send


@pytest.fixture
def legacy(encoder_server: Any) -> Post:
    def send(**body: object) -> httpx.Response:
        response: httpx.Response = encoder_server.client.post("/api/embeddings", json={"model": "words"} | body)
        return response

    return send


def loaded(server: Any) -> list[str]:
    return [model["name"] for model in server.client.get("/api/ps").json()["models"]]


def test_one_text_and_many_have_one_shape(embed: Post) -> None:
    one, many = embed(input="a b"), embed(input=["a b", "c"])
    assert one.headers["content-type"] == "application/json; charset=utf-8"
    assert one.headers["x-vmm-model"] == "words:latest"
    assert one.json().keys() - {"load_duration"} == {"model", "embeddings", "total_duration", "prompt_eval_count"}
    assert one.json()["model"] == "words"
    assert [len(vector) for vector in many.json()["embeddings"]] == [32, 32]
    assert many.json()["embeddings"][0] == one.json()["embeddings"][0]
    assert one.json()["prompt_eval_count"] == 5  # and a token at either end
    assert many.json()["prompt_eval_count"] == 8
    assert many.json()["total_duration"] >= many.json().get("load_duration", 0)


def test_vectors_are_of_length_one_also_when_they_are_cut(embed: Post) -> None:
    for fields in ({}, {"dimensions": 5}, {"dimensions": 0}, {"dimensions": 32}):
        (vector,) = embed(input="a bb ccc", **fields).json()["embeddings"]
        assert len(vector) == (fields.get("dimensions") or 32)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_the_older_route_leaves_vectors_as_long_as_they_are(embed: Post, legacy: Post) -> None:
    answer = legacy(prompt="a bb ccc")
    assert answer.json().keys() == {"embedding"}
    vector = np.array(answer.json()["embedding"])
    assert np.linalg.norm(vector) > 1.5
    (unit,) = embed(input="a bb ccc").json()["embeddings"]
    assert vector / np.linalg.norm(vector) == pytest.approx(np.array(unit), abs=1e-6)


def test_without_a_text_the_model_is_loaded(encoder_server: Any, embed: Post, legacy: Post) -> None:
    for send, field, nothing, answer in (
        (embed, "input", "", {"model": "words", "embeddings": []}),
        (embed, "input", [], {"model": "words", "embeddings": []}),
        (embed, "input", None, {"model": "words", "embeddings": []}),
        (legacy, "prompt", "", {"embedding": []}),
        (legacy, "prompt", None, {"embedding": []}),
    ):
        encoder_server.client.post("/api/generate", json={"model": "words", "keep_alive": 0}).raise_for_status()
        assert "words:latest" not in loaded(encoder_server)
        assert send(**{field: nothing}).json() == answer
        assert "words:latest" in loaded(encoder_server)


def test_an_empty_text_among_others_has_a_vector(embed: Post) -> None:
    assert len(embed(input=["", "a"]).json()["embeddings"]) == 2


def test_what_is_too_long_is_cut_at_its_end_unless_the_request_says_no(embed: Post, legacy: Post) -> None:
    long, longer = "a" * 62, "a" * 62 + "b" * 100  # the model takes 64 tokens, two of them its own
    for fields in ({}, {"truncate": True}, {"truncate": None}):
        answer = embed(input=longer, **fields).json()
        assert answer["embeddings"] == embed(input=long).json()["embeddings"]
        assert answer["prompt_eval_count"] == 64
    for answer in (embed(input=longer, truncate=False), embed(input=[long, longer], truncate=False)):
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("the input length exceeds the context length")
    assert "input[1]" in embed(input=[long, longer], truncate=False).json()["error"]
    assert legacy(prompt=longer).status_code == 400


def test_num_ctx_is_a_limit_too(embed: Post) -> None:
    assert embed(input="a" * 20, options={"num_ctx": 10.0}).json()["prompt_eval_count"] == 10
    assert embed(input="a" * 20, options={"num_ctx": 10}, truncate=False).status_code == 400
    assert "options.num_ctx" in embed(input="a", options={"num_ctx": 0}).json()["error"]


@pytest.mark.parametrize("wrong", [5, {"a": 1}, [5], ["a", 5], ["a", None], [["a"]], True])
def test_what_is_no_text_is_an_invalid_input_type(embed: Post, wrong: object) -> None:
    answer = embed(input=wrong)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid input type")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dimensions": 33}, "dimensions: 33 is more than the 32"),
        ({"dimensions": -1}, "dimensions"),
        ({"truncate": "yes"}, "truncate"),
        ({"keep_alive": True}, "keep_alive"),
        ({"options": {"num_thread": "all"}}, "options.num_thread"),
    ],
)
def test_wrong_fields_are_refused_by_name(embed: Post, fields: dict[str, object], word: str) -> None:
    answer = embed(input="a", **fields)
    assert answer.status_code == 400
    assert word in answer.json()["error"]


def test_models_are_told_about_in_ollamas_words(embed: Post, legacy: Post) -> None:
    unknown, blank = embed(model="nobody", input="a"), embed(model="", input="a")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "model 'nobody' not found")
    assert (blank.status_code, blank.json()["error"]) == (404, "model '' not found")
    unknown, blank = legacy(model="nobody", prompt="a"), legacy(model="", prompt="a")
    assert (unknown.status_code, unknown.json()["error"]) == (404, 'model "nobody" not found, try pulling it first')
    assert (blank.status_code, blank.json()["error"]) == (400, "model is required")
    for send in (embed, legacy):
        answer = send(model="echo", input="a", prompt="a")
        assert (answer.status_code, answer.json()["error"]) == (400, '"echo" does not support embedding')
        assert send(model="a b").json()["error"] == "invalid model name"


def test_a_model_that_embeds_neither_chats_nor_generates(encoder_server: Any) -> None:
    message = [{"role": "user", "content": "a"}]
    for path, task in (("generate", "generate"), ("chat", "chat")):
        for body in ({"prompt": "a", "messages": message}, {}, {"prompt": "a", "raw": True, "messages": message}):
            answer = encoder_server.client.post(f"/api/{path}", json={"model": "words"} | body)
            assert (answer.status_code, answer.json()["error"]) == (400, f'"words" does not support {task}')


def test_keep_alive_is_the_requests_own(encoder_server: Any, embed: Post, legacy: Post) -> None:
    for send, fields in ((embed, {"input": "a"}), (legacy, {"prompt": "a"}), (embed, {}), (legacy, {})):
        for text, hours in (("2h", 2), ("5h", 5)):
            assert send(keep_alive=text, **fields).status_code == 200
            models = encoder_server.client.get("/api/ps").json()["models"]
            (ends,) = [model["expires_at"] for model in models if model["name"] == "words:latest"]
            left = datetime.fromisoformat(ends) - datetime.now(UTC)
            assert timedelta(hours=hours - 1) < left <= timedelta(hours=hours)
