"""Images as requests send them → bounded arrays."""

import base64
import io
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.media.images import ImageLimits, read_image, read_images
from vmm_server.requests import GivenImage

WHERE = "messages[0].content[1].image_url.url"


def file_of(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def given_image(file: bytes, prefix: str = "data:image/png;base64,") -> GivenImage:
    return GivenImage(prefix + base64.b64encode(file).decode(), WHERE)


def colours(*pixels: tuple[int, ...], mode: str = "RGB") -> Any:
    """An image of one row."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


RED_BLUE = [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
@pytest.mark.parametrize(
    "prefix", ["data:image/png;base64,", "data:;base64,", "DATA:image/x;charset=utf-8;base64,", ""]
)
def test_pixels_come_out_as_rows_of_rgb(kind: str, prefix: str) -> None:
    pixels = read_image(given_image(file_of(colours((255, 0, 0), (0, 0, 255)), kind), prefix))
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == RED_BLUE


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_pixels_come_out_nearly(kind: str) -> None:
    pixels = read_image(given_image(file_of(Image.new("RGB", (32, 16), (200, 30, 60)), kind)))
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels.astype(int) - [200, 30, 60]).max() < 12


def test_base64_may_be_in_lines() -> None:
    text = base64.encodebytes(file_of(Image.new("RGB", (50, 50)))).decode()
    assert "\n" in text.strip()
    assert read_image(GivenImage(text, WHERE)).shape == (50, 50, 3)


def test_what_is_transparent_is_white() -> None:
    file = file_of(colours((255, 0, 0, 255), (9, 9, 9, 0), mode="RGBA"))
    assert read_image(given_image(file)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_transparency_of_a_palette_is_white_too() -> None:
    image = colours((255, 0, 0), (0, 0, 255)).quantize(2)
    pixels = read_image(given_image(file_of(image, "PNG", transparency=image.getpixel((1, 0)))))
    assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK", "I;16"])
def test_other_kinds_of_pixels_become_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert read_image(given_image(file_of(Image.new(mode, (4, 3)), kind))).shape == (3, 4, 3)


def test_16_bits_of_grey_are_scaled() -> None:
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    assert read_image(given_image(file_of(image)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, ["abc", "def"]),
        (2, ["cba", "fed"]),
        (3, ["fed", "cba"]),
        (4, ["def", "abc"]),
        (5, ["ad", "be", "cf"]),
        (6, ["da", "eb", "fc"]),
        (7, ["fc", "eb", "da"]),
        (8, ["cf", "be", "ad"]),
        (9, ["abc", "def"]),
    ],
)
def test_a_photograph_is_upright(orientation: int, rows: list[str]) -> None:
    """As the table of the Exif standard says where the first row and the first column of what is stored belong."""
    image = Image.fromarray(np.array([[ord(letter) for letter in row] for row in ("abc", "def")], np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    pixels = read_image(given_image(file_of(image, "PNG", exif=exif)))
    assert ["".join(map(chr, row)) for row in pixels[..., 0].tolist()] == rows


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it leaves out
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_exif_data_is_no_failure(data: st.DataObject) -> None:
    image = Image.radial_gradient("L").resize((24, 24)).convert("RGB")
    exif = image.getexif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    file = bytearray(file_of(image, "JPEG", exif=exif))
    for place, value in data.draw(st.dictionaries(st.integers(2, 130), st.integers(0, 255), max_size=9)).items():
        file[place] = value
    with suppress(InvalidRequest):
        assert read_image(given_image(bytes(file))).shape == (24, 24, 3)


def test_of_several_pictures_the_first_is_seen() -> None:
    first, second = Image.new("RGB", (3, 3), "red"), Image.new("RGB", (3, 3), "blue")
    file = file_of(first, "GIF", save_all=True, append_images=[second])
    assert read_image(given_image(file))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "data:image/png,abc", "ftp://x"])
def test_nothing_is_fetched(url: str) -> None:
    with pytest.raises(UnsupportedParameter, match="not fetched") as caught:
        read_image(GivenImage(url, WHERE))
    assert caught.value.param == WHERE


def test_a_file_over_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidRequest, match="the limit is 100") as caught:
        read_image(GivenImage("!" * 1000, WHERE), ImageLimits(max_bytes=100))
    assert caught.value.param == WHERE


def test_a_file_at_the_limit_is_taken() -> None:
    file = file_of(Image.new("RGB", (7, 7)))
    assert read_image(given_image(file), ImageLimits(max_bytes=len(file))).shape == (7, 7, 3)


@pytest.mark.parametrize("size", [(11, 10), (110, 1), (60000, 60000)])
def test_pixels_over_the_limit_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    file = bytearray(file_of(Image.new("RGB", (1, 1)), "BMP"))
    file[18:26] = size[0].to_bytes(4, "little") + size[1].to_bytes(4, "little")  # no pixels behind that header
    with pytest.raises(InvalidRequest, match="the limit is 100 pixels"):
        read_image(given_image(bytes(file)), ImageLimits(max_pixels=100))


def test_pixels_at_the_limit_are_taken() -> None:
    file = file_of(Image.new("RGB", (10, 10)))
    assert read_image(given_image(file), ImageLimits(max_pixels=100)).shape == (10, 10, 3)


def test_the_images_of_a_request_are_bounded_together() -> None:
    images = [GivenImage(given_image(file_of(Image.new("RGB", (10, 10)))).data, f"image{index}") for index in range(3)]
    assert len(read_images(images, ImageLimits(max_total_pixels=300))) == 3
    with pytest.raises(InvalidRequest, match="more than 299 pixels together") as caught:
        read_images(images, ImageLimits(max_total_pixels=299))
    assert caught.value.param == "image2"


def test_a_path_is_not_opened_and_the_error_says_what_to_send() -> None:
    with pytest.raises(InvalidRequest, match="not base64") as caught:
        read_image(GivenImage("cat.jpg", WHERE))
    assert "not its path" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("data:image/png;base64,!!!!", "not base64"),
        ("", "known kind"),
        (base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "known kind"),
        (base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(), "known kind"),
    ],
)
def test_what_is_no_image_is_refused(data: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read_image(GivenImage(data, WHERE))
    assert caught.value.param == WHERE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@settings(max_examples=60)
@given(data=st.data())
def test_damage_is_an_invalid_request_and_nothing_else(kind: str, data: st.DataObject) -> None:
    file = bytearray(file_of(Image.radial_gradient("L").resize((24, 24)).convert("RGB"), kind))
    for place, value in data.draw(
        st.dictionaries(st.integers(0, len(file) - 1), st.integers(0, 255), max_size=9)
    ).items():
        file[place] = value
    cut = data.draw(st.integers(0, len(file)))
    with suppress(InvalidRequest):
        pixels = read_image(given_image(bytes(file[:cut])), ImageLimits(max_pixels=10_000))
        assert pixels.ndim == 3
        assert pixels.size <= 30_000
