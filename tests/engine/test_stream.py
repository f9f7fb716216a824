"""From thread to loop: one wake-up a step, nothing lost, nothing piled up."""

import asyncio
from collections.abc import Callable

import pytest

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.engine.stream import Delta, Outbox, TokenStream, Usage, merge
from vmm_server.errors import GenerationFailed


def test_merged_deltas_say_the_same() -> None:
    usage = Usage(1, 0, 3, 0.0, 0.0, 0.0)
    one, two, three = (TokenLogprob(i, -0.5) for i in range(3))
    deltas = [
        Delta("a", (1,), (one,)),
        Delta("", (2,), (two,)),
        Delta("bc", (3,), (three,), FinishReason.STOP, usage),
    ]
    assert merge(deltas) == Delta("abc", (1, 2, 3), (one, two, three), FinishReason.STOP, usage)


def test_a_slow_reader_gets_everything_in_one_piece(run: Callable[..., object]) -> None:
    async def scenario() -> None:
        stream = TokenStream()
        for i in range(1_000):
            stream.put(Delta("x", (i,)))
        assert len(stream._waiting) <= TokenStream._MAX_WAITING
        delta = await stream.get()
        assert delta == Delta("x" * 1_000, tuple(range(1_000)))

    run(scenario())


def test_an_error_comes_after_what_was_said_before_it(run: Callable[..., object]) -> None:
    async def scenario() -> None:
        stream = TokenStream()
        stream.put(Delta("a"))
        stream.put(GenerationFailed("broken"))
        assert await stream.get() == Delta("a")
        for _ in range(2):
            with pytest.raises(GenerationFailed):
                await stream.get()

    run(scenario())


def test_closing_wakes_a_reader_and_drops_what_comes_later(run: Callable[..., object]) -> None:
    async def scenario() -> None:
        stream = TokenStream()
        reader = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        stream.close()
        assert await reader is None
        stream.put(Delta("late"))
        assert stream._waiting == []
        assert await stream.get() is None

    run(scenario())


class LateLoop:
    """An event loop that runs its callbacks when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.num_wakeups = 0

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.calls.append(callback)
        self.num_wakeups += 1

    def run_callbacks(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


def test_one_wakeup_a_step_and_none_while_the_loop_is_late(run: Callable[..., object]) -> None:
    async def scenario() -> None:
        loop = LateLoop()
        outbox = Outbox(loop)  # type: ignore[arg-type]
        streams = [TokenStream() for _ in range(16)]
        outbox.post([(stream, Delta("a")) for stream in streams])
        assert loop.num_wakeups == 1
        outbox.post([(stream, Delta("b")) for stream in streams])
        assert loop.num_wakeups == 1
        loop.run_callbacks()
        outbox.post([(stream, Delta("c")) for stream in streams])
        assert loop.num_wakeups == 2
        loop.run_callbacks()
        assert [await stream.get() for stream in streams] == [Delta("abc")] * 16

    run(scenario())


def test_a_closed_loop_is_reported() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    assert not Outbox(loop).post([])
