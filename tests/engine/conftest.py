"""The echo model, engines over it, and a way to run a coroutine that cannot hang a test."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tokenizers import Tokenizer

from vmm_adapters.echo import END, EchoRunner, write_echo_model
from vmm_server.engine import Engine, EngineOptions


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("echo")
    write_echo_model(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine on a fresh event loop, at most 60 s."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(coroutine, 60)

        return asyncio.run(bounded())

    return run


@pytest.fixture
def engine_over(tokenizer: Tokenizer) -> Callable[..., Any]:
    """`async with engine_over(runner, max_sequences=1, …) as engine`: an open engine, closed afterwards."""

    @asynccontextmanager
    async def engine_over(
        runner: EchoRunner, *, clock: Callable[[], float] | None = None, **options: int
    ) -> AsyncIterator[Engine]:
        engine = Engine(
            runner,
            tokenizer,
            eos_token_ids=frozenset({END}),
            options=EngineOptions(**options),
            context_length=runner.context_length,
            **({"clock": clock} if clock else {}),
        )
        try:
            yield engine
        finally:
            if callable(release := getattr(runner.gate, "open", None)):
                release()
            await engine.aclose()

    return engine_over
