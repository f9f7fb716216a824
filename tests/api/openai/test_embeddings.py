"""`/v1/embeddings` over a real server with echo's encoders."""

import base64
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import openai
import pytest

from vmm_server.api.openai.embeddings import MAX_INPUTS
from vmm_server.api.vectors import encode_vectors


def embed(server: Any, **fields: Any) -> Any:
    body = {"model": "words", **fields}
    return server.client.post("/v1/embeddings", json=body)


def vectors(server: Any, **fields: Any) -> list[list[float]]:
    response = embed(server, **fields)
    assert response.status_code == 200, response.text
    return [one["embedding"] for one in response.json()["data"]]


def error(server: Any, **fields: Any) -> dict[str, Any]:
    response = embed(server, **fields)
    assert response.status_code == 400, response.text
    assert response.headers["x-should-retry"] == "false"
    found: dict[str, Any] = response.json()["error"]
    return found


def test_an_answer_has_the_shape_of_openais(encoder_server: Any) -> None:
    response = embed(encoder_server, input="ab")
    body = response.json()
    (one,) = body.pop("data")
    assert body == {"object": "list", "model": "words", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert (one.pop("object"), one.pop("index")) == ("embedding", 0)
    assert [*one] == ["embedding"]
    assert len(one["embedding"]) == 32
    assert math.hypot(*one["embedding"]) == pytest.approx(1)
    assert response.headers["x-vmm-model"] == "words:latest"
    assert response.headers["x-vmm-backend"] == "echo"
    assert "x-request-id" in response.headers


def test_vectors_keep_the_inputs_order_whatever_their_length(encoder_server: Any) -> None:
    texts = ["a" * 40, "b", "c" * 20, "", "d" * 60, "e"]
    response = embed(encoder_server, input=texts).json()
    assert [one["index"] for one in response["data"]] == list(range(6))
    alone = [vectors(encoder_server, input=text)[0] for text in texts]
    np.testing.assert_allclose([one["embedding"] for one in response["data"]], alone, atol=1e-6)
    assert response["usage"]["prompt_tokens"] == sum(len(text) + 2 for text in texts)


def test_base64_is_the_same_floats_little_endian(encoder_server: Any) -> None:
    (packed,) = vectors(encoder_server, input="hello", encoding_format="base64")
    (plain,) = vectors(encoder_server, input="hello", encoding_format="float")
    assert list(struct.unpack("<32f", base64.b64decode(packed))) == plain


@pytest.mark.parametrize("as_base64", [True, False])
def test_encoding_loses_nothing(as_base64: bool) -> None:
    rows = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    shown = msgspec.json.decode(encode_vectors(rows[:, :4], as_base64=as_base64))
    found = [
        np.frombuffer(base64.b64decode(one["embedding"]), "<f4") if as_base64 else one["embedding"] for one in shown
    ]
    np.testing.assert_array_equal(np.array(found, np.float32), rows[:, :4])


def test_an_empty_text_is_one_vector(encoder_server: Any) -> None:
    assert len(vectors(encoder_server, input="")) == 1
    assert len(vectors(encoder_server, input=["", ""])) == 2


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        ([], "input", "[] is empty"),
        (None, "input", "must be a string, token ids, or an array of either"),
        (5, "input", "must be a string"),
        ({"text": "a"}, "input", "must be a string"),
        (["a", 5], "input[1]", "must be a string or an array of token ids"),
        (["a", None], "input[1]", "must be a string"),
        ([1, "a"], "input[0]", "must be a string"),
        ([True], "input[0]", "must be a string"),
        ([[1], [1.5]], "input[1]", "must be a string or an array of token ids"),
        ([["a"]], "input[0]", "must be a string or an array of token ids"),
        (["a"] * (MAX_INPUTS + 1), "input", f"the limit is {MAX_INPUTS}"),
    ],
)
def test_an_input_that_is_none_is_named(encoder_server: Any, value: object, param: str, words: str) -> None:
    found = error(encoder_server, input=value)
    assert found["param"] == param
    assert words in found["message"]


def test_the_largest_batch_is_answered_whole(encoder_server: Any) -> None:
    found = vectors(encoder_server, input=["abcdefgh"[: 1 + index % 8] for index in range(MAX_INPUTS)])
    assert len(found) == MAX_INPUTS
    np.testing.assert_allclose(found[8:16], found[:8], atol=1e-6)
    assert len({tuple(np.round(one, 5)) for one in found}) == 8


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"encoding_format": "hex"}, "encoding_format", "Invalid value for 'encoding_format'"),
        ({"dimensions": 33}, "dimensions", "33 is more than the 32 that the model has"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1, or -1"),
        ({"truncate": "START"}, "truncate", ""),
        ({"token_encoding": "gpt2"}, "token_encoding", "cl100k_base"),
        ({"prompt_name": "query"}, "prompt_name", "has no prompts"),
        ({"input_type": "query"}, "input_type", "has no prompts"),
        ({"input_type": "query", "prompt_name": "query"}, "input_type", "not both"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(
    encoder_server: Any, fields: dict[str, object], param: str, words: str
) -> None:
    found = error(encoder_server, input="a", **fields)
    assert found["param"].startswith(param)
    assert words in found["message"]


def test_fields_that_are_not_known_are_ignored(encoder_server: Any) -> None:
    assert vectors(encoder_server, input="a", user="me", whatever=[1]) == vectors(encoder_server, input="a")


def test_dimensions_cut_and_normalise_again(encoder_server: Any) -> None:
    (whole,) = vectors(encoder_server, input="abcdefgh")
    (cut,) = vectors(encoder_server, input="abcdefgh", dimensions=8)
    norm = math.hypot(*whole[:8])
    np.testing.assert_allclose(cut, [value / norm for value in whole[:8]], atol=1e-6)
    assert vectors(encoder_server, input="abcdefgh", dimensions=32) == [whole]


def test_what_is_too_long_is_refused_unless_it_may_be_cut(encoder_server: Any) -> None:
    long = "abc" * 30
    found = error(encoder_server, input=["a", long])
    assert (found["code"], found["param"]) == ("context_length_exceeded", "input[1]")
    assert "input[1] is 92 tokens, the limit is 64" in found["message"]
    assert error(encoder_server, input=long)["param"] == "input"
    kept = vectors(encoder_server, input=long[:62])
    for truncate in (True, "END"):
        assert vectors(encoder_server, input=long, truncate=truncate) == kept
    for truncate in (False, "NONE", None):
        assert error(encoder_server, input=long, truncate=truncate)["code"] == "context_length_exceeded"
    assert vectors(encoder_server, input=long, truncate_prompt_tokens=-1) == kept
    assert vectors(encoder_server, input=long, truncate_prompt_tokens=10) == vectors(encoder_server, input=long[:8])
    assert vectors(encoder_server, input="ab", truncate_prompt_tokens=1000) == vectors(encoder_server, input="ab")
    usage = embed(encoder_server, input=long, truncate_prompt_tokens=10).json()["usage"]
    assert usage == {"prompt_tokens": 10, "total_tokens": 10}
    assert embed(encoder_server, input=["a", long, long], truncate=True).headers["x-vmm-dropped-tokens"] == "56"
    ids = [256, *b"x" * 100, 257]
    assert (
        embed(encoder_server, input=ids, token_encoding="model", truncate=True).headers["x-vmm-dropped-tokens"] == "38"
    )
    assert "x-vmm-dropped-tokens" not in embed(encoder_server, input="a", truncate=True).headers


@pytest.mark.parametrize("value", [[100, 200], [[100], [200]], ["a", [100]], [[]]])
def test_openais_token_ids_are_refused_by_the_name_of_both_settings(encoder_server: Any, value: object) -> None:
    found = error(encoder_server, input=value)
    assert found["param"] == "input"
    for name in ("cl100k_base", "check_embedding_ctx_length", "tiktoken_dir", "token_encoding"):
        assert name in found["message"]


def test_ids_of_the_models_own_are_taken_as_they_are(encoder_server: Any) -> None:
    whole = [256, ord("a"), ord("b"), 257]
    assert vectors(encoder_server, input=whole, token_encoding="model") == vectors(encoder_server, input="ab")
    two = vectors(encoder_server, input=[whole, [ord("c")]], token_encoding="model")
    assert two[0] == vectors(encoder_server, input="ab")[0]
    found = error(encoder_server, input=[[1], [258]], token_encoding="model")
    assert (found["param"], "token id 258 is not in 0..257" in found["message"]) == ("input[1]", True)
    assert error(encoder_server, input=[[]], token_encoding="model")["param"] == "input[0]"
    assert error(encoder_server, input=[65] * 65, token_encoding="model")["code"] == "context_length_exceeded"
    cut = vectors(encoder_server, input=[256, *b"x" * 100, 257], token_encoding="model", truncate=True)
    assert cut == vectors(encoder_server, input="x" * 62)


def test_prompts_of_the_model_go_before_the_text(encoder_server: Any) -> None:
    plain = vectors(encoder_server, model="words", input=["Q: ab", "D: ab"])
    for name in ("query", "search_query"):
        assert vectors(encoder_server, model="asks", input="ab", input_type=name) == plain[:1]
    for fields in ({}, {"prompt_name": "document"}, {"input_type": "passage"}):
        assert vectors(encoder_server, model="asks", input="ab", **fields) == plain[1:]
    assert "one of document, query" in error(encoder_server, model="asks", input="ab", prompt_name="title")["message"]
    refused = error(encoder_server, model="asks", input=[65], token_encoding="model", prompt_name="query")
    assert "not token ids" in refused["message"]


def test_the_wrong_kind_of_model_is_refused_by_name(encoder_server: Any) -> None:
    assert error(encoder_server, model="echo", input="a")["message"] == '"echo" does not support embedding'
    assert error(encoder_server, model="pairs", input="a")["message"] == '"pairs" does not support embedding'
    chat = {"model": "words", "messages": [{"role": "user", "content": "a"}]}
    response = encoder_server.client.post("/v1/chat/completions", json=chat)
    assert (response.status_code, response.json()["error"]["message"]) == (400, '"words" does not support chat')
    response = encoder_server.client.post("/api/chat", json=chat)
    assert (response.status_code, response.json()["error"]) == (400, '"words" does not support chat')
    missing = embed(encoder_server, model="nope", input="a")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_many_clients_get_their_own_vectors(encoder_server: Any) -> None:
    texts = [chr(97 + index % 26) * (1 + index % 30) for index in range(64)]
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda text: vectors(encoder_server, input=text)[0], texts))
    np.testing.assert_allclose(found, vectors(encoder_server, input=texts), atol=1e-6)


def test_the_official_client_reads_what_it_asks_for(encoder_server: Any) -> None:
    with openai.OpenAI(base_url=f"{encoder_server.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.embeddings.create(model="words", input=["ab", "cd"], dimensions=16)
        assert [len(one.embedding) for one in answer.data] == [16, 16]
        plain = vectors(encoder_server, input=["ab", "cd"], dimensions=16)
        np.testing.assert_allclose([one.embedding for one in answer.data], plain, atol=1e-6)
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="words", input="a" * 100)
        assert refused.value.code == "context_length_exceeded"
