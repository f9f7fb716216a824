"""What waits between a camera and a model: the newest frame, and nothing else."""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Frame(Generic[Options]):
    """A picture of a stream."""

    number: int
    """From 0; those that were left out count."""
    content: bytes
    options: Options
    """What was asked for when it came."""
    num_dropped: int
    """Frames left out between the last one taken and this one."""


class LatestFrame(Generic[Options]):
    """Room for one frame: a newer one takes its place. For one event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        """Of the frames to come."""
        self._waiting: Frame[Options] | None = None
        self._num_frames = 0
        self._changed = asyncio.Event()

    def put(self, content: bytes) -> None:
        """A new frame. The one that waits is left out."""
        old = self._waiting
        num_dropped = 0 if old is None else old.num_dropped + 1
        self._waiting = Frame(self._num_frames, content, self.options, num_dropped)
        self._num_frames += 1
        self._changed.set()

    async def take(self) -> Frame[Options]:
        """The newest frame, once there is one that was not taken yet."""
        while (frame := self._waiting) is None:
            self._changed.clear()
            await self._changed.wait()
        self._waiting = None
        return frame
