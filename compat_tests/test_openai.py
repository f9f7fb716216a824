"""openai-python, the official client."""

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

CAPITAL: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
]


def test_chat_answers_and_counts(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=40)
    choice = reply.choices[0]
    assert "Paris" in (choice.message.content or "")
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.model == model
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 10
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=CAPITAL,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices and chunk.choices[0].delta.role] == [
        "assistant"
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_max_tokens_is_the_length(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=CAPITAL, max_completion_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3


def test_a_stop_string_is_not_part_of_the_answer(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, stop=["Paris"])
    assert reply.choices[0].finish_reason == "stop"
    assert "Paris" not in (reply.choices[0].message.content or "")


def test_a_seed_means_the_same_text(client: openai.OpenAI, model: str) -> None:
    texts = {
        client.chat.completions.create(model=model, messages=CAPITAL, temperature=1.5, seed=7, max_tokens=12)
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(texts) == 1


def test_logprobs_come_with_the_asked_for_alternatives(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0, max_tokens=2, logprobs=True, top_logprobs=3
    )
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 2
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-4)  # greedy took the best


def test_completions_continue_a_text(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in reply.choices[0].text
    pieces = client.completions.create(
        model=model, prompt="The capital of France is", temperature=0, max_tokens=4, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces if chunk.choices) == reply.choices[0].text


def test_answers_differ_and_come_again(client: openai.OpenAI, model: str) -> None:
    def ask(n: int) -> list[str | None]:
        reply = client.chat.completions.create(
            model=model, messages=CAPITAL, n=n, temperature=1.5, seed=3, max_tokens=6
        )
        assert [choice.index for choice in reply.choices] == list(range(n))
        return [choice.message.content for choice in reply.choices]

    assert len(set(ask(3))) > 1
    # once the prompt is cached; how many sequences share a step moves the last digits of a logit
    assert ask(1) == ask(1)


def test_streams_of_several_answers_are_told_apart(client: openai.OpenAI, model: str) -> None:
    chunks = client.chat.completions.create(
        model=model, messages=CAPITAL, n=2, temperature=1.5, seed=3, max_tokens=12, stream=True
    )
    texts, ends = ["", ""], [0, 0]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason is not None
    assert all(texts)
    assert texts[0] != texts[1]
    assert ends == [1, 1]


def test_every_kind_of_message_is_taken(client: openai.OpenAI, scripted: str) -> None:
    reply = client.chat.completions.create(
        model=scripted,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "One."}], "name": "ada"},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "this."}]},
        ],
    )
    assert "this." in (reply.choices[0].message.content or "")


def test_an_answer_that_was_begun_is_gone_on_with(client: openai.OpenAI, model: str) -> None:
    messages: list[ChatCompletionMessageParam] = [
        *CAPITAL,
        {"role": "assistant", "content": "The capital of France is"},
    ]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=3)
    assert (reply.choices[0].message.content or "").startswith(" Paris")


def test_a_token_can_be_forbidden(client: openai.OpenAI, model: str) -> None:
    request: dict[str, Any] = {
        "model": model,
        "prompt": "The capital of France is",
        "temperature": 0,
        "max_tokens": 1,
    }
    assert client.completions.create(**request).choices[0].text == " Paris"
    body = {"model": model, "prompt": " Paris", "add_special_tokens": False}
    tokens: Any = client.post("/tokenize", body=body, cast_to=object)
    (token,) = tokens["tokens"]
    assert client.completions.create(**request, logit_bias={str(token): -100}).choices[0].text != " Paris"


def test_completions_take_several_prompts_as_texts_or_tokens(client: openai.OpenAI, model: str) -> None:
    prompts = ["The capital of France is", "The capital of Italy is"]
    request: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 2}
    reply = client.completions.create(**request, prompt=prompts)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert ["Paris" in reply.choices[0].text, "Rome" in reply.choices[1].text] == [True, True]
    tokens: Any = client.post("/tokenize", body={"model": model, "prompt": prompts}, cast_to=object)
    by_tokens = client.completions.create(**request, prompt=tokens["tokens"])
    assert [choice.text for choice in by_tokens.choices] == [choice.text for choice in reply.choices]


def test_a_prompt_can_be_scored(client: openai.OpenAI, model: str) -> None:
    """What lm-evaluation-harness asks for."""
    prompt = "The capital of France is Paris"
    reply = client.completions.create(model=model, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    assert reply.choices[0].text == prompt
    scores = reply.choices[0].logprobs
    assert scores
    assert scores.tokens
    assert scores.token_logprobs
    assert scores.text_offset
    assert "".join(scores.tokens) == prompt
    assert scores.token_logprobs[0] is None
    assert scores.token_logprobs[-1] > -3
    assert [prompt[offset:].startswith(token) for offset, token in zip(scores.text_offset, scores.tokens, strict=True)]


def test_the_best_of_several_is_given(client: openai.OpenAI, model: str) -> None:
    reply = client.completions.create(
        model=model, prompt="Once upon a time", best_of=3, n=2, temperature=1.2, seed=5, max_tokens=6
    )
    assert len(reply.choices) == 2
    assert reply.usage
    assert reply.usage.completion_tokens == 3 * 6


def test_a_suffix_needs_a_model_that_fills_in(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="def f(", suffix="return x", max_tokens=4)
    assert caught.value.param == "suffix"


def test_models_are_listed_and_found(client: openai.OpenAI, model: str) -> None:
    listed = [entry.id for entry in client.models.list()]
    assert "smollm2:135m" in listed
    assert client.models.retrieve(model).object == "model"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nonsense", messages=CAPITAL)
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nonsense")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"messages": []}, "messages"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"top_logprobs": 99, "logprobs": True}, "top_logprobs"),
    ],
)
def test_a_bad_request_names_the_field(client: openai.OpenAI, model: str, extra: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=CAPITAL, extra_body=extra)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_leaving_a_stream_leaves_the_server_well(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.create(model=model, messages=CAPITAL, max_tokens=2000, stream=True) as stream:
        next(iter(stream))
    assert "Paris" in (
        client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=40)
        .choices[0]
        .message.content
        or ""
    )


def test_the_async_client_gets_many_answers_at_once(base_url: str, model: str) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model=model, messages=CAPITAL, temperature=0, max_tokens=40, seed=number, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(8)))

    answers = asyncio.run(ask_all())
    assert len(answers) == 8
    assert all("Paris" in answer for answer in answers)
