"""What a caller is charged for: tokens that were computed for it, once, whether it waited for the answer or left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vmm_adapters.types import SamplingParams
from vmm_server.callers import Caller, caller
from vmm_server.completion import Completion
from vmm_server.errors import InvalidRequest
from vmm_server.parts import Parts
from vmm_server.requests import ChatPrompt, GenerateRequest, Message


def chat(text: str, max_tokens: int | None = None) -> GenerateRequest:
    return GenerateRequest("echo", ChatPrompt((Message("user", text),)), SamplingParams(0.0, max_tokens=max_tokens))


@contextmanager
def charged() -> Iterator[list[int]]:
    """What the callers of the block are charged, one number a time."""
    charges: list[int] = []
    token = caller.set(Caller("key-1", charge=charges.append))
    try:
        yield charges
    finally:
        caller.reset(token)


async def read(completion: Completion) -> int:
    """To its end; the tokens that its usage says."""
    async with completion:
        async for _ in completion:
            pass
    usage = completion.usage
    assert usage is not None
    return usage.num_prompt_tokens + usage.num_generated_tokens


def test_an_answer_costs_what_its_usage_says_once(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with charged() as charges:
            completion = await parts.inference.generate(chat("hello"))
            num_tokens = await read(completion)
            await completion.aclose()
        assert charges == [num_tokens]
        assert num_tokens > len("hello")

    installed()
    with_parts(body)


def test_who_leaves_pays_for_what_was_computed_until_then(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with charged() as charges:
            completion = await parts.inference.generate(chat("a long answer " * 10))
            await anext(aiter(completion))
            await completion.aclose()
            await completion.aclose()
        (num_tokens,) = charges
        num_prompt_tokens = len(completion.prompt_tokens)
        assert num_prompt_tokens < num_tokens <= 2 * num_prompt_tokens

    installed()
    with_parts(body)


def test_several_answers_to_one_prompt_pay_for_it_once(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with charged() as charges:
            first = await parts.inference.generate(chat("hello", 3))
            beside = await parts.inference.generate(chat("hello", 3), beside=first)
            other = await parts.inference.generate(chat("goodbye", 3), beside=first)
            for completion in (first, beside, other):
                await read(completion)
        prompts = [len(completion.prompt_tokens) for completion in (first, beside, other)]
        assert charges == [prompts[0] + 3, 3, prompts[2] + 3]

    installed()
    with_parts(body)


def test_what_is_refused_costs_nothing(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with charged() as charges, pytest.raises(InvalidRequest):
            await parts.inference.generate(chat("hello", -1))
        assert charges == []

    installed()
    with_parts(body)
