"""The images of a request → pixels, off the event loop, and bounded together with those of all other requests.

In two steps, for a model is loaded in between: `open` fetches, and believes each file's header; `made` decodes one once
there is room, and makes what is wanted of its pixels at once: these are never handed about. Where there is nothing in
between, a small picture goes through both in one go: each trip to a thread takes longer than reading a header. Whoever
has a thread with nothing to do may have it done there, and go on with what was made (`made_by`): one trip less.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, TypeVar

from PIL import Image

from vmm_server.media.budget import PixelBudget
from vmm_server.media.fetching import Fetcher
from vmm_server.media.images import (
    LIMITS,
    ImageLimits,
    count_pixels,
    decode,
    decode_quickly,
    decode_small,
    file_of,
    is_url,
)
from vmm_server.media.pixels import Pixels
from vmm_server.requests import GivenImage

MAX_PIXELS_IN_MEMORY = 100_000_000
"""Of all requests together; 400 MB, as Pillow keeps them."""
MIN_THREADS = 2
"""One a core on larger machines. They are the images' own: a text's tokens do not wait behind a hundred photographs."""

AT_ONCE_PIXELS = 1 << 20
"""Of a picture that is decoded as soon as its header is read: room is held for so many before that."""
AT_ONCE_CHARACTERS = 1 << 21
"""Of one that was sent as text, and is decoded in another's thread."""

Made = TypeVar("Made")
Told = TypeVar("Told")

Make = Callable[[Image.Image | Pixels], Made]
"""Makes something of a picture, whether Pillow decoded it or nobody had to."""
Run = Callable[[Callable[[], Made]], Awaitable[Told]]
"""Calls what it gets where that may block, and gives what became of it, or raises what it raised."""


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A file that says what it is, and how many pixels will come of it."""

    _file: IO[bytes]
    _param: str
    """The request's field it came in."""
    num_pixels: int
    _reader: "ImageReader"

    async def made(self, make: Callable[[Image.Image], Made]) -> Made:
        """What `make` makes of the picture, RGB and upright, in one thread with the decoding.

        Raises `InvalidRequest` for a damaged one, `Overloaded` when too many wait for room, and as `make` does.
        """
        return await self._reader.made(self._file, self._param, self.num_pixels, make)

    async def made_by(self, run: Run[Made, Told], make: Make[Made]) -> Told | None:
        """See `UnopenedImage`. Not this one: it has been through a thread already."""
        return None


@dataclass(frozen=True, slots=True)
class UnopenedImage:
    """An image of which nothing is known yet."""

    _given: GivenImage
    _reader: "ImageReader"

    async def made(self, make: Callable[[Image.Image], Made]) -> Made:
        """Raises as `ImageReader.open` and `OpenedImage.made` do."""
        return await self._reader.made_at_once(self._given, make)

    async def made_by(self, run: Run[Made, Told], make: Make[Made]) -> Told | None:
        """What `run` gives, which has it made in a thread of its own and goes on with that. `None`: it might take long
        there, or something is wrong with it; it is to be `made`. Raises as `run` does, and `Overloaded`."""
        return await self._reader.made_by(self._given, run, make)


class ImageReader:
    """Reads the images of all requests."""

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        max_waiting: int = 512,
        max_pixels_in_memory: int = MAX_PIXELS_IN_MEMORY,
        limits: ImageLimits = LIMITS,
    ) -> None:
        """`max_waiting`: images that may wait for room."""
        self._fetcher = fetcher
        self._limits = limits
        self._budget = PixelBudget(max_pixels_in_memory, max_waiting=max_waiting)
        self._threads = ThreadPoolExecutor(max(MIN_THREADS, os.cpu_count() or 1), "vmm-images")

    async def open(self, given: Sequence[GivenImage]) -> tuple[OpenedImage, ...]:
        """Fetch those that are elsewhere, and look at every header.

        Raises `InvalidRequest` naming the field and the limit, `UnsupportedParameter` for a URL where none is fetched.
        """
        if any(is_url(image) for image in given):
            given = await self._fetcher.fetched(given, self._limits)
        files = await self._run(partial(_opened, given, self._limits))
        return tuple(
            OpenedImage(file, image.param, count, self) for image, (file, count) in zip(given, files, strict=True)
        )

    def unopened(self, given: GivenImage) -> UnopenedImage:
        """The one image of a request, to be opened when it is decoded."""
        return UnopenedImage(given, self)

    async def made_at_once(self, given: GivenImage, make: Callable[[Image.Image], Made]) -> Made:
        """See `UnopenedImage`."""
        if is_url(given):
            (opened,) = await self.open([given])
            return await opened.made(make)
        async with self._budget.hold(AT_ONCE_PIXELS):
            done = await self._run(partial(_made_if_small, given, self._limits, make))
        return await self.made(done.file, given.param, done.num_pixels, make) if isinstance(done, _Large) else done

    async def made_by(self, given: GivenImage, run: Run[Made, Told], make: Make[Made]) -> Told | None:
        """See `UnopenedImage`."""
        if isinstance(given.data, str) and (len(given.data) > AT_ONCE_CHARACTERS or is_url(given)):
            return None
        try:
            async with self._budget.hold(AT_ONCE_PIXELS):
                return await run(partial(_made_if_quick, given, self._limits, make))
        except _NotQuick as error:
            error.__traceback__ = None  # or the file would be there until the collector comes by
            return None

    async def made(self, file: IO[bytes], param: str, num_pixels: int, make: Callable[[Image.Image], Made]) -> Made:
        """See `OpenedImage`. The pixels count until `make` is done with them."""
        async with self._budget.hold(num_pixels):
            return await self._run(lambda: make(decode(file, param, self._limits)))

    async def _run(self, work: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def aclose(self) -> None:
        """Close what is open. Idempotent."""
        await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Large:
    """A file of more than `AT_ONCE_PIXELS`: there has to be room for them first."""

    file: IO[bytes]
    num_pixels: int


def _made_if_small(given: GivenImage, limits: ImageLimits, make: Callable[[Image.Image], Made]) -> Made | _Large:
    file = file_of(given, limits)
    found = decode_small(file, given.param, limits, AT_ONCE_PIXELS)
    return _Large(file, found) if isinstance(found, int) else make(found)


class _NotQuick(Exception):
    """A file that is not for other threads than the images'."""


def _made_if_quick(given: GivenImage, limits: ImageLimits, make: Make[Made]) -> Made:
    if (pixels := decode_quickly(file_of(given, limits), limits, AT_ONCE_PIXELS)) is None:
        raise _NotQuick
    return make(pixels)


def _opened(given: Sequence[GivenImage], limits: ImageLimits) -> list[tuple[IO[bytes], int]]:
    files: list[tuple[IO[bytes], int]] = []
    left = limits.max_total_pixels
    for image in given:
        file = file_of(image, limits)
        files.append((file, count_pixels(file, image.param, limits, left)))
        left -= files[-1][1]
    return files
