"""Products of floats, and inputs as they are prepared for products, are those of float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_adapters.cpu.codegen.numerics import NUM_SOURCES, PLAIN
from vmm_adapters.cpu.formats import WIDTH, Element

from . import cpu_kernels
from .cpu_kernels import EPSILON, TINY, Array, Subject, check_quantised, expected_copy

quick = settings(max_examples=12, deadline=None, database=None)
seeds = st.integers(0, 2**32)
LARGEST = float(np.finfo(np.float32).max)
sources = pytest.mark.parametrize("source", range(NUM_SOURCES))


def weights(element: Element, rng: np.random.Generator, length: int) -> tuple[Array, Array]:
    """As the kernel reads them, and what they stand for; some so small or large as there are."""
    if element is Element.U8:
        stored = rng.integers(0, 256, (length, WIDTH), np.uint8)
        return stored, stored.astype(np.float64)
    numbers = rng.normal(0, 1, (length, WIDTH)).astype(np.float32)
    if element is Element.F16:
        stored = numbers.astype(np.float16)
        stored[0, :4] = [6e-8, -5e-5, 65504, 0]
        return stored, stored.astype(np.float64)
    if element is Element.BF16:
        stored = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return stored, (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    numbers[0, :4] = [1e-40, -1e30, 1e-20, 0]
    return numbers, numbers.astype(np.float64)


@pytest.mark.parametrize("element", Element)
def test_products_of_floats(cpu_subject: Subject, element: Element) -> None:
    @quick
    @given(seed=seeds, length=st.integers(1, 70))
    def check(seed: int, length: int) -> None:
        rng = np.random.default_rng(seed)
        a = rng.normal(0, 1, (8, length)).astype(np.float32)
        stored, exact = weights(element, rng, length)
        found = cpu_kernels.multiply_floats(cpu_subject, element, a, stored)
        # one rounding a column, and one of the smallest numbers
        error = length * (EPSILON * (np.abs(a) @ np.abs(exact)) + TINY)
        assert (np.abs(found - a @ exact) <= error).all()
        for rows in (1, 2, 3, 4, 7):
            part = cpu_kernels.multiply_floats(cpu_subject, element, a[8 - rows :], stored)
            assert part.tobytes() == found[8 - rows :].tobytes()

    check()


@st.composite
def values(draw: st.DrawFn) -> Array:
    """float32 in whole blocks: ordinary ones, some blocks of zeros, and the ends of what there is."""
    rng = np.random.default_rng(draw(seeds))
    blocks = rng.normal(0, draw(st.sampled_from([1, 20, 1e4])), (draw(st.integers(1, 4)), 32))
    special = draw(st.sampled_from([None, 0.0, -0.0, 1e-45, -1e-38, 3e-37, 1e-30, 1e33, -1e33]))
    if special is not None:
        blocks[rng.integers(len(blocks))] = rng.choice([special, 0.0, special / 3], 32)
    return blocks.astype(np.float32).reshape(-1)


@sources
def test_copies(cpu_subject: Subject, source: int) -> None:
    @quick
    @given(x=values(), seed=seeds, factor=st.floats(1e-3, 1e3))
    def check(x: Array, seed: int, factor: float) -> None:
        second = np.random.default_rng(seed).normal(0, 1e-4, len(x)).astype(np.float32)
        expected, error = expected_copy(source, x, second, factor)
        for first in range(len(x) // 32):
            found = cpu_kernels.copy(cpu_subject, source, x, second, first=first, factor=factor)
            assert (np.abs(found - expected[32 * first :]) <= error[32 * first :]).all()

    check()


@sources
def test_inputs_are_quantised(cpu_subject: Subject, source: int) -> None:
    @quick
    @given(x=values(), seed=seeds, place=st.integers(0, 15), factor=st.floats(1e-3, 1e3))
    def check(x: Array, seed: int, place: int, factor: float) -> None:
        second = np.random.default_rng(seed).normal(0, 1e-4, len(x)).astype(np.float32)
        first = len(x) // 32 // 2
        plain = cpu_kernels.copy(cpu_subject, source, x, second, first=first, factor=factor).reshape(-1, 32)
        levels, scales, sums = cpu_kernels.quantize(
            cpu_subject, source, x, second, first=first, place=place, factor=factor
        )
        check_quantised(plain.astype(np.float64), levels, scales, sums)

    check()


def test_ties_go_to_the_even_level(cpu_subject: Subject) -> None:
    """As numpy and ONNX Runtime round."""
    x = np.zeros(32, np.float32)
    x[:7] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    levels, _, _ = cpu_kernels.quantize(cpu_subject, PLAIN, x, x, first=0, place=3, factor=0)
    assert levels[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]


def test_sums_of_squares(cpu_subject: Subject) -> None:
    @quick
    @given(seed=seeds, count=st.integers(1, 40), scale=st.sampled_from([0.0, 1e-15, 1.0, 1e15]))
    def check(seed: int, count: int, scale: float) -> None:
        x = (scale * np.random.default_rng(seed).normal(0, 1, 16 * count)).astype(np.float32)
        exact = float((x.astype(np.float64) ** 2).sum())
        # each lane rounds `count` times, then 16 lanes are added in 4 steps
        assert math.isclose(cpu_kernels.sum_of_squares(cpu_subject, x), exact, rel_tol=(count + 4) * EPSILON)

    check()


def test_caps(cpu_subject: Subject) -> None:
    @quick
    @given(
        seed=seeds,
        count=st.integers(1, 5),
        limit=st.sampled_from([1.0, 30.0, 50.0]),
        scale=st.sampled_from([1e-3, 1, 1e6]),
    )
    def check(seed: int, count: int, limit: float, scale: float) -> None:
        x = (limit * scale * np.random.default_rng(seed).normal(0, 1, 16 * count)).astype(np.float32)
        x[:3] = [0, LARGEST, -LARGEST]
        found = cpu_kernels.cap(cpu_subject, x, limit)
        # an exponential's error of 3e-7 in a function of slope 1 / 2 at most, and roundings near 1
        assert (np.abs(found - limit * np.tanh(x.astype(np.float64) / limit)) <= 5e-7 * limit).all()

    check()
