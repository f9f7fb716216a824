"""Live figures for dashboards: what `snapshot` makes of looks, again and again while somebody listens.

Listeners with the same interval share a `_Beat`: the first of them that wants its next figures has them made, and the
others get the same bytes. So figures are made once an interval however many listen, and never when nobody does. Nothing
is queued for a listener: one that comes late, because its client does not read, gets what is the newest by then.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from vmm_server.errors import Overloaded
from vmm_server.metrics.events import ModelEvent, ModelEvents
from vmm_server.metrics.families import PLACE
from vmm_server.metrics.snapshot import Look, snapshot

MAX_LISTENERS = 100
MAX_EVENTS = 100
"""Kept for a listener that does not take them; older ones are left out."""
WINDOW_S = 60.0
"""What quantiles are of."""
_KEEP_EVERY_S = 5.0
"""Looks are large: not each of the last minute is kept."""

Clock = Callable[[], float]
About = Callable[[], Mapping[str, object]]
"""What there is to say besides figures."""


@dataclass(frozen=True, slots=True)
class _Made:
    look: Look
    message: bytes


_Figures = Callable[[Look | None], Awaitable[_Made]]
"""Makes figures, given the look before."""


class LiveFigures:
    """The figures of one server. Belongs to its event loop."""

    def __init__(
        self, look: Callable[[], Look], events: ModelEvents, about: About, clock: Clock = time.monotonic
    ) -> None:
        """`look` is `Metrics.look`, and `clock` its clock."""
        self._look = look
        self._events = events
        self._about = about
        self._clock = clock
        self._beats: dict[float, _Beat] = {}
        self._window = Window()

    @property
    def num_listeners(self) -> int:
        """Now."""
        return sum(beat.num_listeners for beat in self._beats.values())

    @contextmanager
    def listening(self, interval_s: float) -> Iterator["Listener"]:
        """Whoever enters hears of everything until it leaves. Raises `Overloaded` beyond `MAX_LISTENERS`."""
        if self.num_listeners >= MAX_LISTENERS:
            raise Overloaded()
        beat = self._beats.setdefault(interval_s, _Beat(interval_s, self._figures, self._clock))
        listener = Listener(beat)
        beat.num_listeners += 1
        try:
            with self._events.heard(listener.hear):
                yield listener
        finally:
            beat.num_listeners -= 1
            if not beat.num_listeners:
                del self._beats[interval_s]
            if not self._beats:
                self._window = Window()

    async def _figures(self, before: Look | None) -> _Made:
        look = self._look()
        long_before = self._window.oldest(look)
        about = {"type": "figures", "time": in_words(datetime.now(UTC)), **self._about()}
        return _Made(look, await asyncio.to_thread(_encoded, about, look, before, long_before))


class Listener:
    """One who listens."""

    def __init__(self, beat: "_Beat") -> None:
        self._beat = beat
        self._num_seen = 0
        self._events: deque[ModelEvent] = deque(maxlen=MAX_EVENTS)
        self._came = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def hear(self, event: ModelEvent) -> None:
        """Of a model. Safe from any thread."""
        self._loop.call_soon_threadsafe(self._add, event)

    async def next(self) -> bytes:
        """The next message, JSON: figures at once and then each interval, events of models as they come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._beat.due_in(self._num_seen)):
                await self._came.wait()
        if self._events:
            event = self._events.popleft()
            if not self._events:
                self._came.clear()
            return _event(event)
        self._num_seen, message = await self._beat.newest(self._num_seen)
        return message

    def _add(self, event: ModelEvent) -> None:
        self._events.append(event)
        self._came.set()


class _Beat:
    """Figures of one interval."""

    def __init__(self, interval_s: float, figures: _Figures, clock: Clock) -> None:
        self.num_listeners = 0
        self._interval_s = interval_s
        self._figures = figures
        self._clock = clock
        self._making = asyncio.Lock()
        self._number = 0
        self._made: _Made | None = None

    def due_in(self, num_seen: int) -> float:
        """How long one has to wait for newer figures who has seen these."""
        return max(0.0, self._left_s()) if num_seen == self._number else 0.0

    async def newest(self, num_seen: int) -> tuple[int, bytes]:
        """Figures newer than those, made now unless somebody else had them made in this interval; and their number."""
        async with self._making:
            if self._made is None or num_seen == self._number or self._left_s() <= 0:
                self._made = await self._figures(self._made.look if self._made else None)
                self._number += 1
            return self._number, self._made.message

    def _left_s(self) -> float:
        return self._made.look.at_s + self._interval_s - self._clock() if self._made else 0.0


class Window:
    """Looks of the last minute, a few of them."""

    def __init__(self) -> None:
        self.looks: deque[Look] = deque()

    def oldest(self, now: Look) -> Look | None:
        """The newest look that is a minute old; until there is one, the first. Keeps `now` for later."""
        while len(self.looks) > 1 and now.at_s - self.looks[1].at_s >= WINDOW_S:
            self.looks.popleft()
        found = self.looks[0] if self.looks else None
        if not self.looks or now.at_s - self.looks[-1].at_s >= _KEEP_EVERY_S:
            self.looks.append(now)
        return found


def in_words(at: datetime) -> str:
    """As the log has it: UTC, in milliseconds."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event(event: ModelEvent) -> bytes:
    place = dict(zip(PLACE, event.place, strict=True))
    shown = {"type": event.type, "time": in_words(event.at), **place, "reason": event.reason, "seconds": event.seconds}
    return msgspec.json.encode(shown)


def _encoded(about: Mapping[str, object], now: Look, before: Look | None, long_before: Look | None) -> bytes:
    return msgspec.json.encode({**about, **snapshot(now, before, long_before)})
