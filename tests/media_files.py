"""Pictures and sounds that a server has to refuse or to read right, made in code: `from tests.media_files import ...`.

Pictures are of `quadrants()` where not said otherwise: whoever read one right finds `QUADRANTS` in its corners
(`corners(pixels)`), within `TOLERANCE` where JPEG or a colour space lies between. Sounds are 16 kHz mono.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

QUADRANTS = ((200, 30, 30), (30, 160, 40), (40, 50, 210), (235, 235, 235))
"""RGB of the corners: top left, top right, bottom left, bottom right."""
TOLERANCE = 12
RATE = 16_000
FIVE_HOURS_S = 5 * 3600

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is to be turned so that the EXIF orientation turns it back."""
_EXIF_ORIENTATION = 0x0112


def quadrants(width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """RGB `[height, width, 3]`: four colours, so that every turn and flip shows."""
    colours = np.array(QUADRANTS, np.uint8).reshape(2, 2, 3)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return colours[rows[:, None], columns]


def corners(pixels: NDArray[np.uint8]) -> tuple[tuple[int, ...], ...]:
    """The colours in the middle of each quadrant, in the order of `QUADRANTS`."""
    height, width = pixels.shape[:2]
    places = [(row, column) for row in (height // 4, 3 * height // 4) for column in (width // 4, 3 * width // 4)]
    return tuple(tuple(map(int, pixels[place])) for place in places)


def png(pixels: NDArray[np.uint8] | None = None) -> bytes:
    """An ordinary RGB PNG."""
    return _written(Image.fromarray(quadrants() if pixels is None else pixels), "PNG")


def jpeg(pixels: NDArray[np.uint8] | None = None, orientation: int | None = None) -> bytes:
    """An ordinary JPEG; with `orientation` (1 to 8) stored turned, and the EXIF tag that turns it upright."""
    picture = Image.fromarray(quadrants() if pixels is None else pixels)
    if orientation is None:
        return _written(picture, "JPEG", quality=95, subsampling=0)
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    return _written(picture, "JPEG", quality=95, subsampling=0, exif=exif)


def truncated_jpeg() -> bytes:
    """Ends in the middle of the picture's rows."""
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    whole = jpeg(noise)
    return whole[: len(whole) * 2 // 3]


def cmyk_jpeg() -> bytes:
    """A JPEG of four inks, as printers want it."""
    return _written(Image.fromarray(quadrants()).convert("CMYK"), "JPEG", quality=95)


def huge_png(width: int = 30_000, height: int = 30_000) -> bytes:
    """A valid header that promises these pixels, and next to no data behind it."""
    return _png(width, height, depth=8, colour_type=2, rows=b"\0" * 1000)


def sixteen_bit_png() -> bytes:
    """RGB with 16 bits a channel, whose upper bytes are the picture."""
    pixels = quadrants().astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return _png(pixels.shape[1], pixels.shape[0], depth=16, colour_type=2, rows=rows)


def sixteen_bit_grey_png() -> bytes:
    """Grey of 16 bits, from black on the left to 65535 on the right: 64 x 48."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    return _written(Image.fromarray(np.broadcast_to(ramp, (48, 64)).copy()), "PNG")


def palette_png() -> bytes:
    """Indices into a palette, of which the last, the bottom right, is transparent."""
    rows, columns = np.arange(48) * 2 // 48, np.arange(64) * 2 // 64
    picture = Image.fromarray((2 * rows[:, None] + columns).astype(np.uint8)).convert("P")
    picture.putpalette([channel for colour in QUADRANTS for channel in colour])
    return _written(picture, "PNG", transparency=3)


def one_bit_png() -> bytes:
    """Black on the left, white on the right: 64 x 48."""
    return _written(Image.fromarray(np.broadcast_to(np.arange(64) >= 32, (48, 64)).copy()), "PNG")


def animated_gif() -> bytes:
    """Three pictures of 64 x 48: all red, all green, all blue."""
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    return _written(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)


def text_file() -> bytes:
    """Neither a picture nor a sound, whatever it is called."""
    return b"This is a text.\n" * 40


def tone(seconds: float = 1.0, hertz: float = 440.0) -> NDArray[np.float32]:
    """A sine, half as loud as can be: float32 `[samples]`."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def wav(samples: NDArray[np.float32], subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    """Samples `[n]` or `[n, channels]` of -1..1 as a WAV: `PCM_U8`, `PCM_16`, `PCM_24`, `FLOAT`, `ULAW`, ..."""
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format="WAV", subtype=subtype)
    return written.getvalue()


def silent_wav(seconds: float = 1.0) -> bytes:
    """Zeros alone."""
    return wav(np.zeros(round(seconds * RATE), np.float32))


def one_sample_wav() -> bytes:
    """The shortest sound that there is."""
    return wav(np.array([0.25], np.float32))


def no_samples_wav() -> bytes:
    """A header alone."""
    return wav(np.zeros(0, np.float32))


def piped_wav(seconds: float = 1.0) -> bytes:
    """As programs write to a pipe: the header says 4 GiB, since the length was not known. A tone."""
    return _wav_header(2**32 - 1) + (tone(seconds) * 32767).astype("<i2").tobytes()


def five_hours_wav_header() -> bytes:
    """A header that promises five hours, and a tenth of a second behind it."""
    return _wav_header(FIVE_HOURS_S * RATE * 2) + b"\0" * (RATE // 10 * 2)


def write_five_hours_wav(path: Path) -> Path:
    """Five hours of silence, 576 MB, of which the disk keeps next to nothing (a sparse file)."""
    with path.open("wb") as file:
        file.write(_wav_header(FIVE_HOURS_S * RATE * 2))
        file.truncate(file.tell() + FIVE_HOURS_S * RATE * 2)
    return path


def _written(picture: Image.Image, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def _png(width: int, height: int, *, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of filtered rows: what Pillow cannot write, or would not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _wav_header(data_bytes: int) -> bytes:
    """Of 16-bit mono, with this length written in it."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    whole = min(4 + len(form) + 8 + data_bytes, 2**32 - 1)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)
