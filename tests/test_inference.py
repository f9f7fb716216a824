import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.api.answers import open_all
from vmm_server.completion import Completion
from vmm_server.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ShuttingDown,
    UnsupportedCapability,
)
from vmm_server.inference import Inference
from vmm_server.models.loading import load_model
from vmm_server.models.names import ModelName
from vmm_server.models.pool import ModelPool
from vmm_server.models.router import Placement
from vmm_server.models.store import Store
from vmm_server.parts import Parts
from vmm_server.requests import ChatPrompt, GenerateRequest, KeepAlive, Message, TextPrompt

GREEDY = SamplingParams(temperature=0.0, max_tokens=16)


def chat(text: str, model: str = "echo", **changes: Any) -> GenerateRequest:
    prompt = ChatPrompt((Message("user", text),), **changes.pop("prompt", {}))
    return GenerateRequest(**{"model": model, "prompt": prompt, "sampling": GREEDY} | changes)


async def read(completion: Completion) -> str:
    async with completion:
        return "".join([delta.text async for delta in completion])


def test_a_chat_is_rendered_run_and_accounted_for(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion = await parts.inference.generate(chat("hello"))
        assert parts.pool.loaded()[0].num_leases == 1
        assert await read(completion) == "hello"
        assert completion.usage is not None
        assert completion.usage.num_prompt_tokens == len(completion.prompt_tokens) == len("hello") + 3
        assert completion.placement == Placement("echo", "CPU")
        assert parts.pool.loaded()[0].num_leases == 0

    installed()
    with_parts(body)


def test_the_time_before_the_engine_is_accounted_for(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        times = iter([9.0, 10.0, 12.5, 13.0])
        completion = await Inference(parts.registry, parts.pool, clock=times.__next__).generate(chat("hello"))
        assert completion.prepare_s == 2.5
        await completion.aclose()

    installed()
    with_parts(body)


def test_what_the_client_left_out_is_what_the_card_recommends(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        given = await parts.inference.generate(chat("hello"))
        assert await read(given) == "hello"
        left_out = await parts.inference.generate(chat("hello", unset=frozenset({"repetition_penalty"})))
        assert "h" not in await read(left_out)

    # every token of the message was said before: such a penalty sinks them all below the noise
    installed(sampling=SamplingDefaults(repetition_penalty=1000.0))
    with_parts(body)


def test_every_default_of_the_model_fills_what_the_client_left_out(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        unset = frozenset(SamplingDefaults.model_fields)
        assert await read(await parts.inference.generate(chat("hello", unset=unset))) == "he"
        assert await read(await parts.inference.generate(chat("hello", unset=unset - {"stop"}))) == "hell"
        assert (
            await read(await parts.inference.generate(chat("hello", unset=unset - {"stop", "max_tokens"}))) == "hello"
        )

    installed(sampling=SamplingDefaults(temperature=0, max_tokens=4, stop=("ll",), top_k=-1, repetition_window=-1))
    with_parts(body)


def test_a_window_of_nothing_is_no_penalty(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        unset = frozenset(SamplingDefaults.model_fields) - {"max_tokens"}
        assert await read(await parts.inference.generate(chat("hello", unset=unset))) == "hello"

    installed(sampling=SamplingDefaults(temperature=0, repetition_window=0, repetition_penalty=1000.0))
    with_parts(body)


def test_the_models_context_limit_holds_where_the_client_names_none(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(ContextLengthExceeded, match="the limit is 4"):
            await parts.inference.generate(chat("hello"))
        assert await read(await parts.inference.generate(chat("hello", num_ctx=32))) == "hello"

    installed(num_ctx=4)
    with_parts(body)


def test_a_created_models_messages_come_before_the_clients(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        async def prompt(*messages: Message, **fields: Any) -> str | None:
            request = GenerateRequest("echo", ChatPrompt(messages, **fields), GREEDY)
            return (await parts.inference.count_tokens(request)).text

        user, system = Message("user", "x"), Message("system", "no")
        example = "<|user|>1<|end|><|assistant|>one<|end|>"
        assert await prompt(user) == f"<|system|>be kind<|end|>{example}<|user|>x<|end|><|assistant|>"
        assert await prompt(system, user) == f"<|system|>no<|end|>{example}<|user|>x<|end|><|assistant|>"
        assert await prompt(user, context=(1,)) == "<|system|>be kind<|end|><|user|>x<|end|><|assistant|>"

    installed(system="be kind", messages=(("user", "1"), ("assistant", "one")))
    with_parts(body)


def test_a_created_models_template_replaces_its_folders_and_gives_way_to_the_clients(
    installed: Any, with_parts: Any
) -> None:
    async def body(parts: Parts) -> None:
        own = await parts.inference.count_tokens(chat("x"))
        given = await parts.inference.count_tokens(chat("x", prompt={"template": "given {{ messages[0].content }}"}))
        assert (own.text, given.text) == ("own x", "given x")

    installed(template="own {{ messages[0].content }}")
    with_parts(body)


def test_a_system_message_of_the_model_gives_way_to_the_clients(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        async with await parts.inference.generate(chat("x")) as with_own:
            assert len(with_own.prompt_tokens) == len("x") + 3 + len("be kind") + 2
        messages = (Message("system", "no"), Message("user", "x"))
        request = GenerateRequest("echo", ChatPrompt(messages), GREEDY)
        async with await parts.inference.generate(request) as with_given:
            assert len(with_given.prompt_tokens) == len("x") + 3 + len("no") + 2

    installed(system="be kind")
    with_parts(body)


def test_an_answer_goes_on_from_an_assistant_message_at_the_end(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        messages = (Message("user", "hello"), Message("assistant", "he"))
        request = GenerateRequest("echo", ChatPrompt(messages), GREEDY)
        assert await read(await parts.inference.generate(request)) == "llo"

    installed()
    with_parts(body)


@pytest.mark.parametrize(
    ("request_", "error", "named"),
    [
        (chat("x", model="nobody"), ModelNotFound, "model"),
        (chat("x" * 600), ContextLengthExceeded, "messages"),
        (chat("x" * 60, num_ctx=50), ContextLengthExceeded, "messages"),
        (chat("x", sampling=SamplingParams(logit_bias={9999: 1.0})), InvalidRequest, "logit_bias"),
        (GenerateRequest("echo", TextPrompt((1, -1)), GREEDY), InvalidRequest, "prompt"),
        (GenerateRequest("echo", TextPrompt(""), GREEDY), InvalidRequest, "prompt"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs_and_leaves_no_lease(
    request_: GenerateRequest, error: type[Exception], named: str, installed: Any, with_parts: Any
) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(error) as raised:
            await parts.inference.generate(request_)
        assert raised.value.param == named  # type: ignore[attr-defined]
        assert all(loaded.num_leases == 0 for loaded in parts.pool.loaded())

    installed()
    with_parts(body)


def test_a_model_without_a_template_completes_but_does_not_chat(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(UnsupportedCapability, match='"echo" does not support chat'):
            await parts.inference.generate(chat("x"))
        request = GenerateRequest("echo", TextPrompt("abc"), SamplingParams(temperature=0.0, max_tokens=3))
        assert await read(await parts.inference.generate(request)) == "def"

    installed(without=("chat_template.jinja",))
    with_parts(body)


def test_a_model_that_does_not_complete_is_refused_before_it_is_loaded(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(UnsupportedCapability, match="does not support chat"):
            await parts.inference.generate(chat("x"))
        assert parts.pool.loaded() == []

    installed(capabilities=("embedding",))
    with_parts(body)


def test_a_folder_that_changed_since_it_was_installed_is_not_run(
    installed: Any, with_parts: Any, tmp_path: Path
) -> None:
    async def body(parts: Parts) -> None:
        with pytest.raises(ModelLoadFailed, match=r"genai_config\.json"):
            await parts.inference.generate(chat("x"))

    installed()
    (tmp_path / "echo-latest" / "genai_config.json").unlink()
    with_parts(body)


def test_generations_beside_one_another_wait_for_their_model_once(installed: Any, with_parts: Any) -> None:
    class Pool(ModelPool):
        num_acquired = 0

        async def acquire(self, *asked: Any, **how: Any) -> Any:
            self.num_acquired += 1
            return await super().acquire(*asked, **how)

    async def body(parts: Parts) -> None:
        pool = Pool(parts.settings, functools.partial(load_model, settings=parts.settings), parts.placer)
        async with open_all(Inference(parts.registry, pool), [chat("a"), chat("b"), chat("c")]) as completions:
            assert [await read(completion) for completion in completions] == ["a", "b", "c"]
            assert pool.num_acquired == 1
        assert pool.loaded()[0].num_leases == 0
        await pool.aclose()

    installed()
    with_parts(body)


def test_draining_refuses_new_work_and_waits_for_what_runs(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion = await parts.inference.generate(chat("hello"))
        draining = asyncio.create_task(parts.inference.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await parts.inference.generate(chat("hello"))
        assert not draining.done()
        await read(completion)
        assert await draining

    installed()
    with_parts(body)


def test_draining_gives_up_after_its_time(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        async with await parts.inference.generate(chat("hello")):
            assert not await parts.inference.drain(0)

    installed()
    with_parts(body)


def test_closing_early_aborts(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion = await parts.inference.generate(chat("hello", sampling=SamplingParams(temperature=0.0)))
        await completion.aclose()
        await completion.aclose()
        assert [delta async for delta in completion] == []
        assert parts.pool.loaded()[0].num_leases == 0

    installed()
    with_parts(body)


def test_the_last_delta_says_why(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        async with await parts.inference.generate(chat("hello", sampling=GREEDY)) as completion:
            deltas = [delta async for delta in completion]
        assert deltas[-1].finish_reason is FinishReason.STOP
        assert sum(delta.finish_reason is not None for delta in deltas) == 1

    installed()
    with_parts(body)


def test_an_idle_model_that_another_process_replaces_leaves(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        await parts.inference.load("echo", KeepAlive(None))
        Store(parts.settings.store_dir).remove(ModelName.parse("echo"))
        unloading = asyncio.create_task(parts.pool.run(look_every_s=0.01))
        while parts.pool.loaded():  # noqa: ASYNC110 - it leaves by itself
            await asyncio.sleep(0.01)
        unloading.cancel()

    installed()
    with_parts(body)
