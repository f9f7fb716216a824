"""Prompts that are too long, through the façade: what is dropped, what is said of it, what is refused."""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.echo import CHAT_TEMPLATE
from vmm_adapters.types import SamplingParams
from vmm_server.completion import Completion
from vmm_server.errors import ContextLengthExceeded, InvalidRequest
from vmm_server.models.loading import load_model
from vmm_server.models.store import InstalledModel
from vmm_server.parts import Parts, build_parts
from vmm_server.requests import ChatPrompt, GenerateRequest, Message, TextPrompt, Tool, ToolUse

SYSTEM = Message("system", "be kind")
OLD = tuple(Message(role, "x" * 60) for _ in range(5) for role in ("user", "assistant"))
LAST = Message("user", "last")
TOOLS = ToolUse((Tool("look_it_up"),))
TELLING = {"chat_template.jinja": "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}" + CHAT_TEMPLATE}


def chat(*messages: Message, max_tokens: int | None = 50, num_ctx: int | None = None, **prompt: Any) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return GenerateRequest(
        "echo", ChatPrompt(messages, truncate=prompt.pop("truncate", True), **prompt), params, num_ctx=num_ctx
    )


def raw(text: str | tuple[int, ...], **prompt: Any) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=8)
    return GenerateRequest("echo", TextPrompt(text, truncate=True, **prompt), params)


async def start(parts: Parts, request: GenerateRequest) -> Completion:
    completion = await parts.inference.generate(request)
    await completion.aclose()
    return completion


def test_the_oldest_messages_go_and_it_is_said(
    installed: Any, with_parts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(parts: Parts) -> None:
        asked = chat(SYSTEM, *OLD, LAST, tools=TOOLS)
        whole = (await parts.inference.count_tokens(asked)).tokens
        assert len(whole) > 512
        completion = await start(parts, asked)
        assert completion.prompt_text is not None
        assert completion.prompt_text.startswith("look_it_up<|system|>be kind<|end|><|user|>xxx")
        assert completion.prompt_text.endswith("<|end|><|user|>last<|end|><|assistant|>")
        assert completion.num_dropped_messages == 4
        assert completion.num_dropped_tokens == len(whole) - len(completion.prompt_tokens) == 4 * 62
        (line,) = caplog.records
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith(f"dropped {4 * 62} tokens (4 whole messages) of a prompt")

    installed(files=TELLING)
    with_parts(body)


def test_what_fits_is_never_cut(installed: Any, with_parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body(parts: Parts) -> None:
        asked = chat(SYSTEM, *OLD[:4], LAST)
        num_tokens = len((await parts.inference.count_tokens(asked)).tokens)
        exact = await start(parts, replace(asked, num_ctx=num_tokens))
        assert (exact.num_dropped_tokens, exact.num_dropped_messages) == (0, 0)
        assert not caplog.records
        one_less = await start(parts, replace(asked, num_ctx=num_tokens - 1))
        assert one_less.num_dropped_messages == 2
        assert len(one_less.prompt_tokens) + 50 <= num_tokens - 1

    installed()
    with_parts(body)


@pytest.mark.parametrize("truncate", [None, False])
def test_it_is_refused_where_nobody_said_so(installed: Any, with_parts: Any, truncate: bool | None) -> None:
    async def body(parts: Parts) -> None:
        for request in (
            chat(SYSTEM, *OLD, LAST, truncate=truncate),
            GenerateRequest("echo", TextPrompt("x" * 600, truncate=truncate), SamplingParams()),
        ):
            with pytest.raises(ContextLengthExceeded, match="the input length exceeds the context length") as refused:
                await parts.inference.generate(request)
            assert refused.value.limit == 512
        assert all(loaded.num_leases == 0 for loaded in parts.pool.loaded())

    installed()
    with_parts(body)


def test_what_must_stay_and_does_not_fit_is_refused(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        for messages in ((*OLD, Message("user", "x" * 600)), (Message("system", "x" * 600), *OLD, LAST)):
            with pytest.raises(ContextLengthExceeded) as refused:
                await parts.inference.generate(chat(*messages))
            assert 600 < refused.value.asked < 620
            assert (
                refused.value.hint == "system messages, tools and what was said last are never dropped: shorten those"
            )
        tight = await start(parts, chat(*OLD, Message("user", "x" * 480), max_tokens=None))  # no room for the answer
        assert len(tight.prompt_tokens) == 483

    installed()
    with_parts(body)


def test_the_models_own_limit_room_and_messages_count(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        unset = frozenset({"max_tokens"})
        completion = await start(parts, replace(chat(*OLD[:4], LAST), unset=unset))
        assert completion.prompt_text is not None
        assert completion.prompt_text.endswith(
            "s<|end|><|user|>last<|end|><|assistant|>"
        )  # with 50 tokens one more stays
        assert completion.num_dropped_messages == 6  # two of its own, and two exchanges

    own = (("user", "u" * 20), ("assistant", "a" * 20))
    installed(num_ctx=256, messages=own, system="s", sampling=SamplingDefaults(max_tokens=128))
    with_parts(body)


def test_an_earlier_context_loses_its_beginning(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        context = tuple(index % 256 for index in range(600))
        completion = await start(parts, chat(SYSTEM, LAST, context=context))
        rest = completion.prompt_tokens[:-16]
        assert (len(completion.prompt_tokens), rest) == (512 - 50, context[-len(rest) :])
        assert completion.num_dropped_tokens == 600 + 16 - 462
        assert completion.num_dropped_messages == 0
        with pytest.raises(ContextLengthExceeded):
            await parts.inference.generate(chat(Message("user", "x" * 600), context=context))
        with pytest.raises(InvalidRequest, match="context"):
            await parts.inference.generate(chat(LAST, context=(10**9,)))

    installed()
    with_parts(body)


def test_a_raw_text_keeps_its_beginning_and_its_end(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        text = "begin" + "m" * 600 + "end"
        for asked in (raw(text), raw(tuple(text.encode()))):
            completion = await start(parts, asked)
            assert bytes(completion.prompt_tokens) == b"begi" + b"m" * (512 - 8 - 4 - 3) + b"end"
            assert completion.num_dropped_tokens == 608 - 504
        assert bytes((await start(parts, raw(text, num_keep=0))).prompt_tokens).startswith(b"mmm")
        with pytest.raises(ContextLengthExceeded):
            await parts.inference.generate(raw(text, num_keep=None))

    installed()
    with_parts(body)


@pytest.mark.runtime
def test_the_real_model_knows_what_is_left(smollm2: InstalledModel, settings: Any) -> None:
    root = next(folder for folder in smollm2.folder.parents if (folder / "manifests").is_dir())
    configured = settings(home=root.parent)

    async def scenario() -> None:
        parts = build_parts(configured, partial(load_model, settings=configured))
        try:
            old = [Message(role, "word " * 100) for _ in range(100) for role in ("user", "assistant")]
            asked = replace(chat(*old, Message("user", "hi")), model=smollm2.name, num_ctx=2048)
            completion = await start(parts, asked)
            assert 1500 < len(completion.prompt_tokens) <= 2048 - 50
            assert completion.num_dropped_messages % 2 == 0
        finally:
            await parts.pool.aclose()

    asyncio.run(scenario())
