"""JPEG files come out as Pillow decodes them, whoever does."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from vmm_server.media.jpeg import decode_jpeg, decode_plain_jpeg


def smooth(seed: int, width: int, height: int) -> Image.Image:
    """Noise of a few pixels, drawn out: what is between its colours is upsampled."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (max(1, height // 5), max(1, width // 5), 3), np.uint8)
    return Image.fromarray(few).resize((width, height))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_us(file: bytes) -> Image.Image | None:
    source = io.BytesIO(file)
    with Image.open(source) as image:
        return decode_jpeg(image, source)


@given(
    st.integers(0, 1 << 32),
    st.integers(1, 100),
    st.integers(1, 100),
    st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.integers(0, 2),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "keep_rgb": st.booleans(),
            "restart_marker_blocks": st.integers(0, 3),
        }
    ),
)
def test_pixels_are_those_of_pillow(seed: int, width: int, height: int, options: dict[str, Any]) -> None:
    if options["keep_rgb"]:
        del options["subsampling"]  # of colours that are not told apart from brightness there is none
    file = jpeg(smooth(seed, width, height), **options)
    made = by_us(file)
    assert made is not None
    assert (made.mode, made.size) == ("RGB", (width, height))
    np.testing.assert_array_equal(np.asarray(made), np.asarray(Image.open(io.BytesIO(file))))
    assert made.transpose(Image.Transpose.ROTATE_90).convert("RGBA").getextrema()[3] == (255, 255)
    plain = decode_plain_jpeg(file, width * height)
    assert (plain is None) == (options["progressive"] or options["keep_rgb"])
    if plain is not None:
        np.testing.assert_array_equal(plain[..., :3], np.asarray(made))
    assert decode_plain_jpeg(file, width * height - 1) is None


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_for_pillow(mode: str) -> None:
    assert by_us(jpeg(smooth(1, 20, 20).convert(mode))) is None


def test_other_formats_are_for_pillow() -> None:
    file = io.BytesIO()
    smooth(1, 20, 20).save(file, "PNG")
    assert by_us(file.getvalue()) is None


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_what_is_cut_off_is_for_pillow_to_refuse(kept: float) -> None:
    file = jpeg(smooth(1, 200, 200))
    source = io.BytesIO(file[: int(kept * len(file))])
    with Image.open(source) as image:
        assert decode_jpeg(image, source) is None
        with pytest.raises(OSError, match="truncated"):
            image.load()


@given(st.binary(min_size=1, max_size=8), st.floats(0, 1), st.booleans(), st.booleans())
def test_a_damaged_file_is_what_pillow_makes_of_it(
    damage: bytes, place: float, inserts: bool, progressive: bool
) -> None:
    """Or it is left to Pillow, which is not strict about all that is wrong."""
    whole = jpeg(smooth(1, 60, 50), progressive=progressive)
    at = 2 + int(place * (len(whole) - 2))
    file = whole[:at] + damage + whole[at + (0 if inserts else len(damage)) :]
    try:
        made = by_us(file)
    except (OSError, SyntaxError, ValueError):  # its header is damaged, as Pillow says
        return
    if made is not None:
        np.testing.assert_array_equal(np.asarray(made), np.asarray(Image.open(io.BytesIO(file))))


@given(st.binary(min_size=1, max_size=8), st.floats(0, 1), st.booleans(), st.integers(0, 700))
def test_a_damaged_plain_file_is_what_pillow_makes_of_it(
    damage: bytes, place: float, inserts: bool, num_kept: int
) -> None:
    """Or it is no plain one."""
    whole = jpeg(smooth(1, 60, 50))
    at = int(place * len(whole))
    for file in (whole[:at] + damage + whole[at + (0 if inserts else len(damage)) :], whole[:num_kept], damage):
        if (pixels := decode_plain_jpeg(file, 60 * 50)) is not None:
            np.testing.assert_array_equal(pixels[..., :3], np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def segments(file: bytes) -> tuple[dict[int, bytes], bytes]:
    """Those before the first scan by their markers, and what is in that scan."""
    found: dict[int, bytes] = {}
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", file, at)
        found[marker] = found.get(marker, b"") + file[at : at + 2 + length]
        at += 2 + length
        if marker == 0xFFDA:
            return found, file[at:-2]


def in_three_scans(image: Image.Image) -> bytes:
    """A scan a colour: each that of a grey file, whose tables are the same."""
    colours = [segments(jpeg(colour)) for colour in image.convert("YCbCr").split()]
    found, _ = colours[0]
    head = struct.pack(">HHBHHB", 0xFFC0, 17, 8, image.height, image.width, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    scans = b"".join(
        struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1 + place, 0, 0, 63, 0) + content
        for place, (_, content) in enumerate(colours)
    )
    return b"\xff\xd8" + found[0xFFDB] + head + found[0xFFC4] + scans + b"\xff\xd9"


def test_colours_in_scans_of_their_own_are_for_pillow() -> None:
    """There can be any number of them."""
    image = smooth(1, 40, 30)
    file = in_three_scans(image)
    assert decode_plain_jpeg(file, 1 << 20) is None
    made = by_us(file)
    assert made is not None
    assert np.abs(np.asarray(made).astype(int) - np.asarray(image)).mean() < 5


PLAIN = jpeg(smooth(1, 20, 30))


@pytest.mark.parametrize(
    ("file", "is_plain"),
    [
        (PLAIN, True),
        (jpeg(smooth(1, 20, 30), comment=b"hello", restart_marker_blocks=2), True),
        (jpeg(smooth(1, 20, 30), exif=turned(6)), False),
        (jpeg(smooth(1, 20, 30), icc_profile=b"a profile"), False),
        (jpeg(smooth(1, 20, 30), progressive=True), False),
        (jpeg(smooth(1, 20, 30).convert("L")), False),
        (jpeg(smooth(1, 20, 30).convert("CMYK")), False),
        (PLAIN[:-2].replace(b"\xff\xdb", b"\xff\xff\xdb", 1), False),
        (PLAIN[: len(PLAIN) // 2], False),
        (PLAIN[1:], False),
        (b"", False),
    ],
)
def test_what_takes_long_or_needs_care_is_no_plain_file(file: bytes, is_plain: bool) -> None:
    assert (decode_plain_jpeg(file, 1 << 20) is not None) == is_plain


def test_large_pictures_are_for_pillow() -> None:
    """What it keeps in several pieces."""
    assert by_us(jpeg(Image.new("RGB", (2100, 2100)))) is None
    assert by_us(jpeg(Image.new("RGB", (1900, 1900)))) is not None
