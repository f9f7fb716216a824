"""What the app does before its first request and after its last."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.echo import Gate
from vmm_adapters.types import SamplingParams
from vmm_server.errors import ShuttingDown
from vmm_server.lifecycle import preload
from vmm_server.requests import GenerateRequest, TextPrompt

ASKED = GenerateRequest("echo", TextPrompt("ab"), SamplingParams(max_tokens=3))


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test, 60)

    asyncio.run(bounded())


async def text_of(completion: AsyncIterable[Any]) -> str:
    return "".join([delta.text async for delta in completion])


def test_the_end_waits_for_what_runs_and_then_unloads(make_app: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        app = make_app(gate=gate)
        parts = app.state.parts
        async with app.lifespan():
            completion = await parts.inference.generate(ASKED)
            reading = asyncio.create_task(text_of(completion))
            reading.add_done_callback(lambda _: closing.append(asyncio.create_task(completion.aclose())))
            closing: list[asyncio.Task[None]] = []
            await asyncio.to_thread(gate.wait_entered)
            gate.open()
        assert reading.done()
        assert reading.result() == "cde"
        assert parts.pool.loaded() == []
        with pytest.raises(ShuttingDown):
            await parts.inference.generate(ASKED)
        await asyncio.gather(*closing)

    run(test())


def test_what_outlasts_the_shutdown_timeout_is_broken_off(make_app: Callable[..., Any], gate: Gate) -> None:
    async def test() -> None:
        app = make_app({"shutdown_timeout_s": 0.0}, gate=gate)
        parts = app.state.parts
        async with app.lifespan():
            completion = await parts.inference.generate(ASKED)
            reading = asyncio.create_task(text_of(completion))
            await asyncio.to_thread(gate.wait_entered)
            asyncio.get_running_loop().call_later(0.01, gate.open)  # the end waits for the step under way
        with pytest.raises(ShuttingDown):
            await reading
        await completion.aclose()
        assert parts.pool.loaded() == []

    run(test())


def test_the_default_model_is_loaded_at_the_start(make_app: Callable[..., Any]) -> None:
    async def test() -> None:
        app = make_app({"default_model": "echo"})
        parts = app.state.parts
        assert parts.readiness.waiting_for == "loading echo"
        async with app.lifespan():
            while parts.readiness.waiting_for:  # noqa: ASYNC110 - /health/ready is polled too
                await asyncio.sleep(0)
            assert [loaded.model.name for loaded in parts.pool.loaded()] == ["echo:latest"]

    run(test())


def test_a_default_model_that_could_not_be_loaded_is_tried_again(make_app: Callable[..., Any], tmp_path: Path) -> None:
    async def test() -> None:
        parts = make_app({"default_model": "echo"}).state.parts
        reasons: list[str | None] = []

        def pauses() -> Iterator[float]:
            tokenizer, aside = tmp_path / "echo" / "tokenizer.json", tmp_path / "aside.json"
            tokenizer.rename(aside)
            yield 0.0
            reasons.append(parts.readiness.waiting_for)
            aside.rename(tokenizer)
            yield 0.0

        await preload(parts, pauses())
        reasons.append(parts.readiness.waiting_for)
        assert "are not as they were installed" in (reasons[0] or "")
        assert reasons[1] is None
        await parts.pool.aclose()

    run(test())


@pytest.mark.parametrize(("calibrate", "num_tasks"), [("auto", 1), ("off", 0)])
def test_models_are_measured_while_the_app_lives_unless_that_is_off(
    make_app: Callable[..., Any], calibrate: str, num_tasks: int
) -> None:
    def tasks() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "measuring models"]

    async def test() -> None:
        app = make_app({"calibrate": calibrate})
        async with app.lifespan():
            assert len(tasks()) == num_tasks
        assert tasks() == []
        parts = app.state.parts
        with pytest.raises(ShuttingDown):
            await anext(parts.calibrator.calibrate(parts.registry.resolve("echo")))

    run(test())


def test_idle_models_are_unloaded_while_the_app_lives(make_app: Callable[..., Any]) -> None:
    async def test() -> None:
        app = make_app({"keep_alive": 0})
        parts = app.state.parts
        async with app.lifespan():
            completion = await parts.inference.generate(ASKED)
            assert len(parts.pool.loaded()) == 1
            await text_of(completion)
            await completion.aclose()
            while parts.pool.loaded():  # noqa: ASYNC110 - the pool's task does it in its own time
                await asyncio.sleep(0)

    run(test())
