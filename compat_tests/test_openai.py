"""openai-python, the official client."""

import asyncio

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
