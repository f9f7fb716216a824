"""The images of a request → pixels, off the event loop and bounded over all requests."""

import asyncio
import base64
import gc
import io
import math
import struct
import threading
import weakref
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vmm_server.engine.batcher import Batcher
from vmm_server.errors import InvalidRequest, Overloaded, UnsupportedParameter
from vmm_server.media.fetching import Fetcher
from vmm_server.media.images import ImageLimits
from vmm_server.media.reading import AT_ONCE_CHARACTERS, AT_ONCE_PIXELS, ImageReader
from vmm_server.requests import GivenImage

Result = TypeVar("Result")


def file_of(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def square(side: int, colour: str = "red") -> GivenImage:
    return GivenImage(io.BytesIO(file_of(Image.new("RGB", (side, side), colour))), f"file{side}")


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.array(image)


def with_reader(work: Callable[[ImageReader], Awaitable[Result]], **options: Any) -> Result:
    async def run() -> Result:
        reader = ImageReader(Fetcher("off"), **options)
        try:
            return await work(reader)
        finally:
            await reader.aclose()

    return asyncio.run(run())


def test_files_and_data_uris_come_out_in_their_order() -> None:
    text = base64.b64encode(file_of(Image.new("RGB", (3, 2), "blue"))).decode()

    async def work(reader: ImageReader) -> list[tuple[tuple[int, ...], list[int]]]:
        given = [square(4), GivenImage(f"data:image/png;base64,{text}", "image"), GivenImage(text, "image")]
        opened = await reader.open(given)
        assert [image.num_pixels for image in opened] == [16, 6, 6]
        pictures = [await image.made(pixels_of) for image in opened]
        return [(picture.shape, picture[0, 0].tolist()) for picture in pictures]

    red, blue = [255, 0, 0], [0, 0, 255]
    assert with_reader(work) == [((4, 4, 3), red), ((2, 3, 3), blue), ((2, 3, 3), blue)]


def test_pictures_can_be_decoded_again() -> None:
    """A request whose device fails begins anew on another."""

    async def work(reader: ImageReader) -> None:
        (opened,) = await reader.open([square(4)])
        for _ in range(2):
            assert (await opened.made(pixels_of)).shape == (4, 4, 3)

    with_reader(work)


def test_headers_are_believed_before_anything_is_decoded() -> None:
    whole = file_of(Image.effect_noise((64, 64), 50))
    broken = GivenImage(io.BytesIO(whole[: len(whole) // 2]), "file")

    async def work(reader: ImageReader) -> None:
        opened = await reader.open([square(2), broken])
        assert [image.num_pixels for image in opened] == [4, 64 * 64]
        with pytest.raises(InvalidRequest, match="damaged") as caught:
            await opened[1].made(lambda image: pytest.fail("it was decoded"))
        assert caught.value.param == "file"

    with_reader(work)


def test_an_unopened_picture_is_read_and_decoded_in_one_go() -> None:
    async def work(reader: ImageReader) -> None:
        picture = reader.unopened(square(4))
        for _ in range(2):  # a request whose device fails begins anew on another
            assert (await picture.made(pixels_of)).shape == (4, 4, 3)
        text = base64.b64encode(file_of(Image.new("RGB", (3, 2), "blue"))).decode()
        assert (await reader.unopened(GivenImage(text, "image")).made(pixels_of)).shape == (2, 3, 3)

    with_reader(work)


def plain(side: int = 4) -> bytes:
    """A file that takes no time."""
    return file_of(Image.new("RGB", (side, side), "red"), "JPEG")


def in_text(file: bytes) -> str:
    return base64.b64encode(file).decode()


async def here(work: Callable[[], Any]) -> tuple[str, Any]:
    return "here", work()


def shape_of(picture: Any) -> tuple[int, ...]:
    return np.shape(picture)[:2]


@pytest.mark.parametrize("given", [io.BytesIO(plain()), in_text(plain()), f"data:image/jpeg;base64,{in_text(plain())}"])
def test_a_plain_picture_can_be_made_in_anothers_thread(given: Any) -> None:
    async def work(reader: ImageReader) -> None:
        picture = reader.unopened(GivenImage(given, "image"))
        for _ in range(2):
            assert await picture.made_by(here, shape_of) == ("here", (4, 4))

    with_reader(work)


LARGE = math.isqrt(AT_ONCE_PIXELS) + 1


@pytest.mark.parametrize(
    ("given", "side"),
    [
        (square(4).data, 4),
        (io.BytesIO(plain(LARGE)), LARGE),
        (io.BytesIO(plain() + bytes(1 << 20)), 4),
        (in_text(file_of(Image.new("RGB", (4, 4)))), 4),
        (in_text(plain()) + "\n" * AT_ONCE_CHARACTERS, 4),
    ],
)
def test_what_may_take_long_there_is_made_as_ever(given: Any, side: int) -> None:
    async def work(reader: ImageReader) -> None:
        picture = reader.unopened(GivenImage(given, "image"))
        assert await picture.made_by(here, shape_of) is None
        assert await picture.made(shape_of) == (side, side)

    with_reader(work)


def test_nothing_is_kept_of_a_picture_that_was_not_for_it() -> None:
    """Neither until the collector comes by: such files may be large."""

    class File(io.BytesIO):
        pass

    async def work(reader: ImageReader) -> weakref.ref[File]:
        batcher: Batcher[Any, Any] = Batcher(lambda items: items, size=lambda item: 1, close=lambda: None)
        file = File(file_of(Image.new("RGB", (4, 4))))
        picture = reader.unopened(GivenImage(file, "image"))
        assert await picture.made_by(batcher.made_call, shape_of) is None
        assert await picture.made(shape_of) == (4, 4)
        await batcher.aclose()
        return weakref.ref(file)

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        assert with_reader(work)() is None
    finally:
        if was_enabled:
            gc.enable()


def test_what_is_wrong_with_a_picture_is_told_wherever_it_is_made() -> None:
    async def work(reader: ImageReader) -> None:
        for data, words in (
            (io.BytesIO(plain(64)[:-40]), "damaged"),
            (io.BytesIO(plain(101)), "the limit is 10000 pixels"),
            ("https://example.com/a.jpg", "not fetched"),
        ):
            picture = reader.unopened(GivenImage(data, "file11"))
            assert await picture.made_by(here, shape_of) is None
            with pytest.raises(InvalidRequest, match=words):
                await picture.made(shape_of)
        with pytest.raises(InvalidRequest, match="not base64"):
            await reader.unopened(GivenImage("a.jpg", "file11")).made_by(here, shape_of)
        with pytest.raises(ZeroDivisionError):
            await reader.unopened(GivenImage(io.BytesIO(plain()), "file11")).made_by(here, lambda picture: 1 // 0)
        (opened,) = await reader.open([GivenImage(io.BytesIO(plain()), "file11")])
        assert await opened.made_by(here, shape_of) is None

    with_reader(work, limits=ImageLimits(max_pixels=10_000))


def test_room_is_held_for_what_is_made_in_anothers_thread() -> None:
    async def work(reader: ImageReader) -> None:
        pictures = [reader.unopened(GivenImage(io.BytesIO(plain()), "image")) for _ in range(2)]
        gate = asyncio.Event()

        async def slowly(work: Callable[[], Any]) -> Any:
            await gate.wait()
            return work()

        task = asyncio.create_task(pictures[0].made_by(slowly, shape_of))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pictures[1].made_by(here, shape_of)
        gate.set()
        assert await task == (4, 4)

    with_reader(work, max_waiting=0, max_pixels_in_memory=AT_ONCE_PIXELS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: square(11), "the limit is 100 pixels"),
        (lambda: GivenImage(io.BytesIO(bytes(10_001)), "file11"), "the limit is 10000"),
        (lambda: GivenImage(io.BytesIO(b"hello"), "file11"), "no image"),
        (lambda: GivenImage("https://example.com/a.png", "file11"), "not fetched"),
    ],
)
def test_an_unopened_picture_is_refused_as_an_opened_one_is(given: Callable[[], GivenImage], words: str) -> None:
    async def work(reader: ImageReader) -> None:
        for read in (
            lambda: reader.open([given()]),
            lambda: reader.unopened(given()).made(lambda image: pytest.fail("it was decoded")),
        ):
            with pytest.raises(InvalidRequest, match=words) as caught:
                await read()
            assert caught.value.param == "file11"

    with_reader(work, limits=ImageLimits(max_pixels=100, max_bytes=10_000))


class Counter:
    """How many pictures are in somebody's hands at a time, at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def make(self, image: Image.Image) -> None:
        """Work for a while, without the interpreter's lock: others would come if they could."""
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        image.resize((1024, 1024), Image.Resampling.LANCZOS)
        with self._lock:
            self._inside -= 1


def test_a_large_picture_waits_for_room_once_its_header_is_read() -> None:
    side = math.isqrt(AT_ONCE_PIXELS) + 1
    counter = Counter()

    async def work(reader: ImageReader) -> None:
        await asyncio.gather(*(reader.unopened(square(side)).made(counter.make) for _ in range(6)))

    with_reader(work, max_pixels_in_memory=side**2 + 1)
    assert counter.most == 1


def test_what_a_header_promises_beyond_the_limit_is_refused_at_once() -> None:
    limits = ImageLimits(max_pixels=100, max_total_pixels=150, max_bytes=10_000)

    async def work(reader: ImageReader) -> None:
        with pytest.raises(InvalidRequest, match="the limit is 100 pixels"):
            await reader.open([square(11)])
        with pytest.raises(InvalidRequest, match="more than 150 pixels together"):
            await reader.open([square(10), square(10)])
        with pytest.raises(InvalidRequest, match="the limit is 10000"):
            await reader.open([GivenImage(io.BytesIO(bytes(10_001)), "file")])

    with_reader(work, limits=limits)


def test_a_url_is_the_fetchers_business() -> None:
    async def work(reader: ImageReader) -> None:
        with pytest.raises(UnsupportedParameter, match="not fetched"):
            await reader.open([GivenImage("https://example.com/a.png", "image")])

    with_reader(work)


def test_pixels_of_all_requests_are_bounded_together() -> None:
    counter = Counter()

    async def work(reader: ImageReader) -> None:
        opened = await reader.open([square(10)] * 40)
        await asyncio.gather(*(image.made(counter.make) for image in opened))

    with_reader(work, max_pixels_in_memory=150)
    assert counter.most == 1


def test_more_who_wait_than_may_are_told_to_come_again() -> None:
    async def work(reader: ImageReader) -> None:
        gate = threading.Event()
        first, second = await reader.open([square(10), square(10)])
        task = asyncio.create_task(first.made(lambda image: gate.wait(10)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await second.made(pixels_of)
        gate.set()
        assert await task
        assert (await second.made(pixels_of)).shape == (10, 10, 3)

    with_reader(work, max_waiting=0, max_pixels_in_memory=100)


COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "white": (255, 255, 255), "black": (0, 0, 0)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_stay_what_they_are_in_every_kind_of_file(mode: str, colour: str) -> None:
    image = Image.new("RGB", (16, 16), colour).convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    if mode == "HSV":
        image, kind = image.convert("RGB"), "WEBP"

    async def work(reader: ImageReader) -> Any:
        (opened,) = await reader.open([GivenImage(io.BytesIO(file_of(image, kind)), "file")])
        return (await opened.made(pixels_of))[8, 8]

    assert np.abs(with_reader(work).astype(int) - COLOURS[colour]).max() <= 4


def test_16_bits_of_colour_become_8() -> None:
    """A PNG by hand, since Pillow writes none: 2 by 1, RGB, 16 bits a sample."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 65535, 32768, 0, 257, 0, 65535)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")

    async def work(reader: ImageReader) -> Any:
        (opened,) = await reader.open([GivenImage(io.BytesIO(file), "file")])
        return (await opened.made(pixels_of)).tolist()

    assert with_reader(work) == [[[255, 128, 0], [1, 0, 255]]]
