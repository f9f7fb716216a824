"""Pictures that are there already, as models take them: `from tests.shown_pictures import shown`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Made = TypeVar("Made")
Told = TypeVar("Told")


@dataclass(frozen=True)
class Shown:
    """One picture: RGB `[height, width, 3]`."""

    pixels: NDArray[np.uint8]

    async def made(self, make: Callable[[Image.Image], Made]) -> Made:
        return await asyncio.to_thread(make, Image.fromarray(self.pixels))

    async def made_by(
        self, run: Callable[[Callable[[], Made]], Awaitable[Told]], make: Callable[[Image.Image], Made]
    ) -> Told | None:
        return await run(lambda: make(Image.fromarray(self.pixels)))


def shown(pixels: Sequence[NDArray[np.uint8]]) -> list[Shown]:
    return [Shown(each) for each in pixels]
