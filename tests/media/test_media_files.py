"""The made pictures and sounds are what they say: tests elsewhere rely on it."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageOps
from tests import media_files


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def colours(picture: Image.Image) -> np.ndarray:
    return np.array(media_files.corners(np.asarray(picture.convert("RGB"))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_turns_the_picture_upright(orientation: int) -> None:
    picture = opened(media_files.jpeg(orientation=orientation))
    assert picture.size == ((48, 64) if orientation >= 5 else (64, 48))
    assert picture.getexif()[0x0112] == orientation
    upright = ImageOps.exif_transpose(picture)
    assert np.abs(colours(upright) - media_files.QUADRANTS).max() <= media_files.TOLERANCE
    if orientation > 1:
        assert np.abs(colours(picture) - media_files.QUADRANTS).max() > 100


def test_pictures_have_the_modes_they_are_named_for() -> None:
    assert opened(media_files.cmyk_jpeg()).mode == "CMYK"
    assert np.abs(colours(opened(media_files.cmyk_jpeg())) - media_files.QUADRANTS).max() <= media_files.TOLERANCE
    assert opened(media_files.one_bit_png()).mode == "1"
    assert opened(media_files.sixteen_bit_grey_png()).mode == "I;16"
    assert (media_files.sixteen_bit_png()[24], media_files.sixteen_bit_png()[25]) == (16, 2)
    assert (colours(opened(media_files.sixteen_bit_png())) == media_files.QUADRANTS).all()
    palette = opened(media_files.palette_png())
    assert (palette.mode, palette.info["transparency"]) == ("P", 3)
    assert (colours(palette) == media_files.QUADRANTS).all()
    assert opened(media_files.animated_gif()).n_frames == 3  # type: ignore[attr-defined]


def test_the_huge_picture_is_small_and_its_header_sound() -> None:
    data = media_files.huge_png()
    assert len(data) < 200
    with pytest.raises(Image.DecompressionBombError, match="900000000 pixels"):
        opened(data)
    assert opened(media_files.huge_png(640, 480)).size == (640, 480)


def test_the_truncated_picture_opens_but_does_not_load() -> None:
    picture = opened(media_files.truncated_jpeg())
    with pytest.raises(OSError, match="truncated"):
        picture.load()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_a_tone_survives_every_encoding(subtype: str) -> None:
    samples, rate = soundfile.read(io.BytesIO(media_files.wav(media_files.tone(0.1), subtype)), dtype="float32")
    assert rate == media_files.RATE
    np.testing.assert_allclose(samples, media_files.tone(0.1), atol=0.02)


def test_sounds_have_the_lengths_they_are_named_for(tmp_path: Path) -> None:
    def frames(data: bytes) -> int:
        return int(soundfile.info(io.BytesIO(data)).frames)

    assert frames(media_files.silent_wav(0.5)) == 8000
    assert frames(media_files.one_sample_wav()) == 1
    assert frames(media_files.no_samples_wav()) == 0
    assert frames(media_files.piped_wav(0.5)) == 8000
    assert media_files.five_hours_wav_header()[40:44] == (5 * 3600 * 32_000).to_bytes(4, "little")
    path = media_files.write_five_hours_wav(tmp_path / "long.wav")
    assert soundfile.info(path).duration == 5 * 3600
    assert path.stat().st_blocks * 512 < 1024**2
