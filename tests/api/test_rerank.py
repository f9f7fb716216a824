"""`/v1/rerank` over a real server: a cross-encoder, and a model that embeds."""

import math
from typing import Any

import pytest

from vmm_server.api.rerank import MAX_DOCUMENTS

QUERY = "abcd"
DOCUMENTS = ["xyz", "abcz", "ab", "abcd"]
"""Letters shared with the query: 0, 3, 2, 4; the echo cross-encoder's logit is one less."""


def rerank(server: Any, path: str = "/v1/rerank", **fields: Any) -> Any:
    return server.client.post(path, json={"model": "pairs", "query": QUERY, "documents": DOCUMENTS, **fields})


def results(server: Any, **fields: Any) -> list[dict[str, Any]]:
    response = rerank(server, **fields)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def error(server: Any, **fields: Any) -> dict[str, Any]:
    response = rerank(server, **fields)
    assert response.status_code == 400, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def test_a_cross_encoders_logits_come_through_a_sigmoid_highest_first(encoder_server: Any) -> None:
    response = rerank(encoder_server)
    body = response.json()
    assert [one["index"] for one in body["results"]] == [3, 1, 2, 0]
    scores = [one["relevance_score"] for one in body["results"]]
    assert scores == pytest.approx([1 / (1 + math.exp(-logit)) for logit in (3, 2, 1, -1)], abs=1e-6)
    num_tokens = sum(3 + len(QUERY) + len(document) for document in DOCUMENTS)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert body["meta"] == {"tokens": {"input_tokens": num_tokens}}
    assert (body["model"], body["id"].startswith("rerank-")) == ("pairs", True)
    assert response.headers["x-vmm-model"] == "pairs:latest"


def test_a_model_that_embeds_ranks_by_cosine(encoder_server: Any) -> None:
    found = results(encoder_server, model="words")
    data = encoder_server.client.post("/v1/embeddings", json={"model": "words", "input": [QUERY, *DOCUMENTS]}).json()
    query, *documents = (one["embedding"] for one in data["data"])
    for one in found:
        expected = sum(left * right for left, right in zip(query, documents[one["index"]], strict=True))
        assert one["relevance_score"] == pytest.approx(expected, abs=1e-6)
    scores = [one["relevance_score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    assert found[0]["index"] == 3
    assert scores[0] == pytest.approx(1, abs=1e-6)


def test_prompts_of_both_sides_are_used(encoder_server: Any) -> None:
    (alike,) = results(encoder_server, model="asks", query="ab", documents=["ab"])
    (plain,) = results(encoder_server, model="words", query="Q: ab", documents=["D: ab"])
    assert alike["relevance_score"] == pytest.approx(plain["relevance_score"], abs=1e-6)
    assert alike["relevance_score"] < 0.99


def test_the_best_few_with_their_texts(encoder_server: Any) -> None:
    found = results(encoder_server, top_n=2, return_documents=True, documents=[{"text": one} for one in DOCUMENTS])
    assert [(one["index"], one["document"]) for one in found] == [(3, {"text": "abcd"}), (1, {"text": "abcz"})]
    assert len(results(encoder_server, top_n=99)) == 4
    assert "document" not in results(encoder_server)[0]


def test_equal_scores_stay_in_order(encoder_server: Any) -> None:
    assert [one["index"] for one in results(encoder_server, documents=["ab", "cd", "ba", "zz"])] == [0, 1, 2, 3]


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_other_servers_paths_are_the_same(encoder_server: Any, path: str) -> None:
    there = rerank(encoder_server, path).json()
    assert there["results"] == results(encoder_server)
    wrong = rerank(encoder_server, path, query="")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "query")


@pytest.mark.parametrize("model", ["pairs", "words"])
def test_a_document_that_is_too_long_is_refused_unless_it_may_be_cut(encoder_server: Any, model: str) -> None:
    long = "z" * 50 + "abcd" * 10
    found = error(encoder_server, model=model, documents=["a", long])
    assert (found["code"], found["param"]) == ("context_length_exceeded", "documents[1]")
    room = 64 - 3 - len(QUERY) if model == "pairs" else 62
    cut = results(encoder_server, model=model, documents=[long], truncate=True)
    assert cut == results(encoder_server, model=model, documents=[long[:room]])
    said = rerank(encoder_server, model=model, documents=["a", long], truncate=True).headers
    assert (said["x-vmm-dropped-tokens"], "x-vmm-dropped-messages" in said) == (str(len(long) - room), False)
    few = results(encoder_server, model=model, documents=[long[45:]], max_tokens_per_doc=7)
    assert few == results(encoder_server, model=model, documents=[long[45:52]])


@pytest.mark.parametrize("model", ["pairs", "words"])
def test_a_query_is_never_cut(encoder_server: Any, model: str) -> None:
    found = error(encoder_server, model=model, query="q" * 70, truncate=True)
    assert (found["code"], found["param"]) == ("context_length_exceeded", "query")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": [{"title": "a"}]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"model": None}, "model"),
    ],
)
def test_a_field_that_is_wrong_is_named(encoder_server: Any, fields: dict[str, object], param: str) -> None:
    assert str(error(encoder_server, **fields)["param"]).startswith(param)


def test_a_text_model_does_not_rank(encoder_server: Any) -> None:
    assert error(encoder_server, model="echo")["message"] == '"echo" does not support rerank'
