"""Live figures: made once for all who listen, and never for nobody; nothing piles up for one who is slow."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmm_server.errors import Overloaded
from vmm_server.metrics.events import ModelEvent, ModelEvents
from vmm_server.metrics.figures import Figures
from vmm_server.metrics.live import MAX_EVENTS, MAX_LISTENERS, WINDOW_S, Listener, LiveFigures, Window
from vmm_server.metrics.snapshot import Look

ECHO = ("echo:latest", "echo", "CPU", "")
WAIT_S = 30.0


class House:
    """A server that draws a hundred tokens a second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.num_looks = 0
        self.events = ModelEvents()
        self.live = LiveFigures(self.look, self.events, lambda: {"status": "ok"}, lambda: self.now)

    def look(self) -> Look:
        self.num_looks += 1
        figures = Figures()
        figures.add("vmm_model_memory_bytes", ECHO, 1000)
        figures.add("vmm_tokens_generated", ECHO, round(self.now * 100))
        return Look(self.now, figures, 5000)


@pytest.fixture
def house() -> House:
    return House()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work(), WAIT_S)

    asyncio.run(bounded())


async def figures(listener: Listener) -> Any:
    told = json.loads(await listener.next())
    assert told["type"] == "figures"
    return told


def test_figures_come_at_once_and_rates_with_the_next(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as listener:
            first = await figures(listener)
            house.now += 1.0
            second = await figures(listener)
        assert (first["status"], first["interval_s"], first["total"]["tokens_per_second"]) == ("ok", None, None)
        assert (second["interval_s"], second["models"][0]["tokens_per_second"]) == (1.0, 100.0)

    run(body)


def test_those_who_listen_at_the_same_pace_get_the_same_figures(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as one, house.live.listening(1.0) as other:
            for num_looks in (1, 2, 3):
                told = await asyncio.gather(one.next(), other.next())
                assert told[0] == told[1]
                assert house.num_looks == num_looks
                house.now += 1.0

    run(body)


def test_each_has_the_pace_that_it_asked_for(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as quick, house.live.listening(4.0) as calm:
            await figures(quick)
            await figures(calm)
            for _ in range(4):
                house.now += 1.0
                assert (await figures(quick))["interval_s"] == 1.0
            assert (await figures(calm))["interval_s"] == 4.0

    run(body)


def test_one_who_is_slow_gets_the_newest(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as quick, house.live.listening(1.0) as slow:
            await asyncio.gather(quick.next(), slow.next())
            for _ in range(50):
                house.now += 1.0
                newest = await quick.next()
            assert await slow.next() == newest
            assert house.num_looks == 51

    run(body)


def test_one_who_is_late_alone_gets_figures_of_now(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as listener:
            await figures(listener)
            house.now += 30.0
            assert (await figures(listener))["interval_s"] == 30.0
            assert house.num_looks == 2

    run(body)


def test_one_who_is_late_does_not_get_what_is_old(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as late:
            with house.live.listening(1.0) as quick:
                await asyncio.gather(quick.next(), late.next())
                house.now += 1.0
                await quick.next()
            house.now += 30.0
            assert (await figures(late))["interval_s"] == 30.0

    run(body)


def test_nothing_is_kept_when_nobody_listens(house: House) -> None:
    async def body() -> None:
        for _ in range(2):
            with house.live.listening(1.0) as listener:
                assert house.live.num_listeners == 1
                assert (await figures(listener))["interval_s"] is None
            house.now += 1.0
            assert house.live.num_listeners == 0
        house.events.tell(ModelEvent("loaded", ECHO))
        assert house.num_looks == 2

    run(body)


def test_listeners_are_bounded(house: House) -> None:
    async def body() -> None:
        with ExitStack() as entered:
            for number in range(MAX_LISTENERS):
                entered.enter_context(house.live.listening(1.0 + number % 3))
            with pytest.raises(Overloaded), house.live.listening(1.0):
                pass
            assert house.live.num_listeners == MAX_LISTENERS
        with house.live.listening(1.0):
            pass

    run(body)


def test_a_model_that_comes_is_told_at_once_from_any_thread(house: House) -> None:
    async def body() -> None:
        with house.live.listening(60.0) as listener:
            await figures(listener)
            waiting = asyncio.create_task(listener.next())
            await asyncio.to_thread(house.events.tell, ModelEvent("loaded", ECHO, seconds=1.5))
            told = json.loads(await waiting)
            assert told.pop("time").endswith("Z")
            place = {"model": "echo:latest", "backend": "echo", "device": "CPU", "variant": ""}
            assert told == {"type": "loaded", **place, "reason": None, "seconds": 1.5}
            waiting = asyncio.create_task(listener.next())
            for _ in range(5):
                await asyncio.sleep(0)
            assert house.num_looks == 1  # figures have their time
            waiting.cancel()

    run(body)


def test_of_events_the_last_ones_are_kept_and_figures_follow(house: House) -> None:
    async def body() -> None:
        with house.live.listening(1.0) as listener:
            await figures(listener)
            for number in range(MAX_EVENTS + 20):
                house.events.tell(ModelEvent("unloaded", ECHO, reason=str(number)))
            house.now += 1.0
            await asyncio.sleep(0)  # what a thread tells comes with the loop's next turn
            told = [json.loads(await listener.next())["reason"] for _ in range(MAX_EVENTS)]
            assert told == [str(number) for number in range(20, MAX_EVENTS + 20)]
            await figures(listener)

    run(body)


def test_a_look_that_fails_is_told_to_each_who_listens(house: House) -> None:
    def fail() -> Look:
        raise OSError("no figures")

    async def body() -> None:
        live = LiveFigures(fail, house.events, dict)
        with live.listening(1.0) as one, live.listening(1.0) as other:
            for listener in (one, other):
                with pytest.raises(OSError, match="no figures"):
                    await listener.next()

    run(body)


@given(st.lists(st.floats(0.01, 90.0) | st.floats(0.01, 2.0), max_size=200))
@example([0.2] * 400)
def test_the_window_is_the_last_minute_in_few_looks(pauses: list[float]) -> None:
    window, now, looks = Window(), 0.0, [0.0]
    assert window.oldest(Look(0.0, Figures(), None)) is None
    for pause in pauses:
        now += pause
        found = window.oldest(Look(now, Figures(), None))
        assert found is not None
        if now - looks[0] >= WINDOW_S:
            exact = max(at for at in looks if now - at >= WINDOW_S)
            assert exact - 5.0 <= found.at_s <= exact  # one look in five seconds is kept
        else:
            assert found.at_s == 0.0
        assert len(window.looks) <= 14
        looks.append(now)
