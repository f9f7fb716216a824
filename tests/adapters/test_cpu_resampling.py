"""Pictures are resized as Pillow does it, to the last bit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llvmlite import binding
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters import catalog
from vmm_adapters.base import Resampler, Rows
from vmm_adapters.cpu.codegen.pictures import compile_pictures
from vmm_adapters.cpu.codegen.target import host, initialize
from vmm_adapters.cpu.formats import PICTURES
from vmm_adapters.cpu.isa import Target
from vmm_adapters.cpu.kernels import keep
from vmm_adapters.cpu.resampling import CPUResampler, PictureKernels, weights
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import Interpolation, Resize

from .test_cpu_targets import ARM, X86, missing_symbols

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PLAIN = Target(X86, "x86-64", "")
ONES, ZEROS = (1.0,) * 3, (0.0,) * 3
UNTOUCHED = np.float32(-12345.0)


@st.composite
def resizes(draw: st.DrawFn) -> Resize:
    """Anything that a resampler takes, or not."""
    size, full_size = (draw(st.tuples(st.integers(1, 90), st.integers(1, 90))) for _ in range(2))
    left, top = (draw(st.integers(0, side - 1)) for side in full_size)
    right, bottom = draw(st.integers(left + 1, full_size[0])), draw(st.integers(top + 1, full_size[1]))
    interpolation: Interpolation = draw(st.sampled_from(("bilinear", "bicubic")))
    return Resize(size, full_size, (left, top, right, bottom), interpolation, ONES, ZEROS)


def picture(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Noise, half of it as bright or as dark as can be: filters go beyond that."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    return np.where(rng.random(pixels.shape) < 0.5, np.where(pixels < 128, 0, 255), pixels).astype(np.uint8)


def pieces(pixels: NDArray[np.uint8], num_rows: int) -> Rows:
    """So many rows at a time."""

    def rows(first: int, end: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(first, end, num_rows):
            yield pixels[start : min(start + num_rows, end)]

    return rows


def by_pillow(pixels: NDArray[np.uint8], resize: Resize) -> NDArray[np.uint8]:
    whole = Image.fromarray(pixels[..., :3]).resize(resize.full_size, FILTERS[resize.interpolation])
    return np.asarray(whole.crop(resize.area)).transpose(2, 0, 1)


@pytest.fixture(scope="module", params=["this machine", "plain x86"])
def subject(request: pytest.FixtureRequest) -> CPUResampler:
    initialize()
    if request.param == "this machine":
        return CPUResampler(PictureKernels(compile_pictures(host())))
    if not host().triple.startswith("x86_64"):
        pytest.skip("this machine cannot stand in for x86 without AVX")
    return CPUResampler(PictureKernels(compile_pictures(PLAIN)))


@given(resizes(), st.integers(0, 1 << 32), st.integers(1, 99))
@example(Resize((640, 427), (416, 277), (0, 0, 416, 277), "bilinear", ONES, ZEROS), 1, 999)
@example(Resize((640, 427), (335, 224), (55, 0, 279, 224), "bicubic", ONES, ZEROS), 2, 100)
@example(Resize((64, 9), (64, 30), (3, 5, 50, 30), "bicubic", ONES, ZEROS), 3, 9)
@example(Resize((3000, 4), (97, 3), (0, 0, 97, 3), "bicubic", ONES, ZEROS), 4, 2)
def test_bytes_are_those_of_pillow(subject: CPUResampler, resize: Resize, seed: int, num_rows: int) -> None:
    """Whatever part of it, given in whatever pieces; nothing beside it is written to."""
    pixels = picture(seed, resize.size)
    expected = by_pillow(pixels, resize)
    room = np.full((3, expected.shape[1] + 2, expected.shape[2] + 3), UNTOUCHED, np.float32)
    out = room[:, 1:-1, 2:-1]
    if subject.takes(resize):
        subject(pieces(pixels, num_rows), resize, out)
        np.testing.assert_array_equal(out, expected)
        out[...] = UNTOUCHED
    assert (room == UNTOUCHED).all()


@given(st.integers(4, 500), st.integers(4, 500), st.sampled_from(("bilinear", "bicubic")))
def test_what_is_taken(width: int, full_width: int, interpolation: Interpolation) -> None:
    """Whatever has eight pixels and is resized to eight or more; no sum reads outside of the picture."""
    across = weights(width, full_width, 0, full_width, interpolation, 4)
    assert across.num_taps % 4 == 0
    if full_width >= 8 and width >= 8:
        assert across.num_taps <= width
    if across.num_taps <= width:
        assert (across.firsts >= 0).all()
        assert (across.firsts + across.num_taps <= width).all()


def test_what_is_not_taken(subject: CPUResampler) -> None:
    sizes = (640, 480), (64, 48), (0, 0, 64, 48)
    assert subject.takes(Resize(*sizes, "bilinear", ONES, ZEROS))
    assert not subject.takes(Resize(*sizes, "nearest", ONES, ZEROS))
    assert not subject.takes(Resize(*sizes, "lanczos", ONES, ZEROS))
    assert not subject.takes(Resize(*sizes[:2], (5, 0, 8, 48), "bilinear", ONES, ZEROS)), "three columns"
    assert not subject.takes(Resize((3, 48), *sizes[1:], "bilinear", ONES, ZEROS)), "three pixels"
    tall = (300, 900), (100, 300), (0, 0, 100, 300)
    assert not subject.takes(Resize(*tall, "bilinear", ONES, ZEROS)), "three times as high as wide"
    assert subject.takes(Resize((301, 600), (151, 300), (0, 0, 151, 300), "bilinear", ONES, ZEROS)), "twice as high"


def test_numbers_are_rounded_as_numpy_does(subject: CPUResampler) -> None:
    """A product and a difference, each rounded: not one fused operation."""
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(4, 2)
    factors, shifts = (1 / 255 / 0.26862954, 1 / 255 / 0.26130258, 0.3), (0.48145466 / 0.26862954, 0.1, -7.0)
    out = np.empty((3, 8, 32), np.float32)
    subject(pieces(pixels, 8), Resize((32, 8), (32, 8), (0, 0, 32, 8), "bicubic", factors, shifts), out)
    for plane, factor, shift in zip(out, factors, shifts, strict=True):
        expected = pixels[..., 0].astype(np.float32) * np.float32(factor) - np.float32(shift)
        np.testing.assert_array_equal(plane, expected)


def test_planes_may_lie_the_other_way_round(subject: CPUResampler) -> None:
    pixels = picture(5, (16, 16))
    resize = Resize((16, 16), (8, 8), (0, 0, 8, 8), "bilinear", ONES, ZEROS)
    out = np.empty((3, 8, 8), np.float32)
    subject(pieces(pixels, 16), resize, out[::-1])
    np.testing.assert_array_equal(out, by_pillow(pixels, resize)[::-1])


@pytest.mark.parametrize("target", [PLAIN, Target(ARM, "generic", ""), Target(ARM, "generic", "+neon,+dotprod")])
def test_they_call_nothing(target: Target) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    assert missing_symbols(compile_pictures(target)) == []


def test_they_are_compiled_once_and_kept(tmp_path: Path) -> None:
    first = catalog.load_resampler("cpu", tmp_path)
    (kept,) = tmp_path.rglob(f"*-{PICTURES}.o")
    before = kept.stat().st_mtime_ns
    second = catalog.load_resampler("cpu", tmp_path)
    assert kept.stat().st_mtime_ns == before
    resize = Resize((40, 30), (20, 15), (0, 0, 20, 15), "bicubic", ONES, ZEROS)
    made = [_made(resampler, resize) for resampler in (first, second)]
    np.testing.assert_array_equal(*made)


def _made(resampler: Resampler, resize: Resize) -> NDArray[np.float32]:
    out = np.empty((3, resize.full_size[1], resize.full_size[0]), np.float32)
    resampler(pieces(picture(6, resize.size), 7), resize, out)
    return out


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    catalog.load_resampler("cpu", tmp_path)
    (kept,) = tmp_path.rglob(f"*-{PICTURES}.o")
    keep(b"no object file", kept)
    with pytest.raises(RuntimeFailed, match=r"loading the kernels of pictures failed: .*(damaged|no ELF)"):
        catalog.load_resampler("cpu", tmp_path)
