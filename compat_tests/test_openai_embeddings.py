"""openai-python: embeddings, which it asks for in base64 unless told otherwise."""

import math

import openai
import pytest

CATS = "A cat sits on the mat."
KITTENS = "A kitten lies on the carpet."
SHARES = "The shares fell by five percent."


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_the_default_is_base64_and_floats_are_the_same(client: openai.OpenAI, embedding_model: str) -> None:
    raw = client.embeddings.with_raw_response.create(model=embedding_model, input=CATS)
    assert b'"base64"' in raw.http_request.content
    packed = raw.parse().data[0].embedding
    plain = client.embeddings.create(model=embedding_model, input=CATS, encoding_format="float").data[0].embedding
    assert len(packed) == 384
    assert packed == pytest.approx(plain, abs=1e-6)
    assert math.hypot(*packed) == pytest.approx(1, abs=1e-3)


def test_what_means_the_same_is_near(client: openai.OpenAI, embedding_model: str) -> None:
    reply = client.embeddings.create(model=embedding_model, input=[CATS, SHARES, KITTENS])
    assert [entry.index for entry in reply.data] == [0, 1, 2]
    cats, shares, kittens = (entry.embedding for entry in reply.data)
    assert cosine(cats, kittens) > 0.5 > 0.2 > cosine(cats, shares)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens > 15
    assert reply.model == embedding_model


def test_company_changes_nothing(client: openai.OpenAI, embedding_model: str) -> None:
    alone = client.embeddings.create(model=embedding_model, input=CATS).data[0].embedding
    among = client.embeddings.create(model=embedding_model, input=[SHARES * 8, CATS, "x"]).data[1].embedding
    assert cosine(alone, among) > 0.9999


def test_fewer_dimensions_are_normalised_again(client: openai.OpenAI, embedding_model: str) -> None:
    short = client.embeddings.create(model=embedding_model, input=CATS, dimensions=64).data[0].embedding
    assert len(short) == 64
    assert math.hypot(*short) == pytest.approx(1, abs=1e-3)


def test_an_empty_text_has_a_vector_and_an_empty_list_is_refused(client: openai.OpenAI, embedding_model: str) -> None:
    assert len(client.embeddings.create(model=embedding_model, input="").data[0].embedding) == 384
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=embedding_model, input=[])
    assert caught.value.param == "input"


def test_a_long_text_is_not_cut_silently(client: openai.OpenAI, embedding_model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=embedding_model, input="word " * 3000)
    assert caught.value.param == "input"
    cut = client.embeddings.create(model=embedding_model, input="word " * 3000, extra_body={"truncate": True})
    assert len(cut.data[0].embedding) == 384


def test_a_model_that_cannot_embed_says_so(client: openai.OpenAI, scripted: str) -> None:
    with pytest.raises(openai.BadRequestError, match="embed"):
        client.embeddings.create(model=scripted, input=CATS)
