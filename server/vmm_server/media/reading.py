"""The images of a request → pixels, off the event loop, and bounded together with those of all other requests.

In two steps, for a model is loaded in between: `open` fetches, and believes each file's header; `decoded` makes pixels
of them once there is room, and they count until its context ends.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vmm_server.media.budget import PixelBudget
from vmm_server.media.fetching import Fetcher
from vmm_server.media.images import LIMITS, ImageLimits, count_pixels, decode, file_of, is_url
from vmm_server.requests import GivenImage

MAX_PIXELS_IN_MEMORY = 100_000_000
"""Of all requests together; 300 MB as arrays. One request may have as many: it then waits until it is alone."""
MIN_THREADS = 2
"""One a core on larger machines. They are the images' own: a text's tokens do not wait behind a hundred photographs."""


@dataclass(frozen=True, slots=True)
class OpenedImages:
    """Files that say what they are, and how many pixels will come of them."""

    _files: tuple[tuple[IO[bytes], str], ...]
    """With the request's field of each."""
    num_pixels: int
    _budget: PixelBudget
    _limits: ImageLimits
    _threads: Executor

    @asynccontextmanager
    async def decoded(self) -> AsyncIterator[tuple[NDArray[np.uint8], ...]]:
        """RGB `[height, width, 3]` of each, in their order, for as long as the context lasts.

        Raises `InvalidRequest` for a damaged one, `Overloaded` when too many requests wait for room.
        """
        async with self._budget.hold(self.num_pixels):
            loop = asyncio.get_running_loop()
            decoding = (
                loop.run_in_executor(self._threads, decode, file, param, self._limits) for file, param in self._files
            )
            done = await asyncio.gather(*decoding, return_exceptions=True)
            if (failed := next((one for one in done if isinstance(one, BaseException)), None)) is not None:
                raise failed
            yield tuple(one for one in done if not isinstance(one, BaseException))


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
        """`max_waiting`: requests that may wait for room."""
        self._fetcher = fetcher
        self._limits = limits
        self._budget = PixelBudget(max_pixels_in_memory, max_waiting=max_waiting)
        self._threads = ThreadPoolExecutor(max(MIN_THREADS, os.cpu_count() or 1), "vmm-images")

    async def open(self, given: Sequence[GivenImage]) -> OpenedImages:
        """Fetch those that are elsewhere, and look at every header.

        Raises `InvalidRequest` naming the field and the limit, `UnsupportedParameter` for a URL where none is fetched.
        """
        if any(is_url(image) for image in given):
            given = await self._fetcher.fetched(given, self._limits)
        loop = asyncio.get_running_loop()
        files, num_pixels = await loop.run_in_executor(self._threads, _opened, given, self._limits)
        return OpenedImages(files, num_pixels, self._budget, self._limits, self._threads)

    async def aclose(self) -> None:
        """Close what is open. Idempotent."""
        await self._fetcher.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _opened(given: Sequence[GivenImage], limits: ImageLimits) -> tuple[tuple[tuple[IO[bytes], str], ...], int]:
    files: list[tuple[IO[bytes], str]] = []
    num_pixels = 0
    for image in given:
        file = file_of(image, limits)
        num_pixels += count_pixels(file, image.param, limits, limits.max_total_pixels - num_pixels)
        files.append((file, image.param))
    return tuple(files), num_pixels
