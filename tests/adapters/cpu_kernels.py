"""The CPU adapter's kernels as functions of numpy arrays."""

from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_float, c_int64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from vmm_adapters.cpu.codegen.kernels import (
    CAP,
    COPY,
    FLOATS,
    NUM_KERNELS,
    PANELS,
    QUANTIZE,
    SIZES,
    SUM_OF_SQUARES,
    compile_object,
)
from vmm_adapters.cpu.codegen.numerics import GATED, NORMALIZED, PLAIN
from vmm_adapters.cpu.formats import BLOCK, FORMS, KERNEL, PANEL, WIDTH, Element, Form
from vmm_adapters.cpu.isa import InstructionSet, Target
from vmm_adapters.cpu.kernels import Kernels
from vmm_adapters.cpu.objects import Code
from vmm_adapters.cpu.plan import Activation

from . import cpu_reference

Array = NDArray[Any]
UNTOUCHED = np.float32(-12345.0)
"""What lies beside results before, and must lie there afterwards."""
EPSILON = 2.0**-24
"""Half a unit in the last place of float32: the relative error of one operation."""
TINY = 2.0**-149
"""The least number above 0: what rounding costs near it."""


@dataclass(frozen=True)
class Subject:
    """Kernels under test, and where the buffers that they work in shall lie."""

    isa: InstructionSet
    table: Array
    """Addresses of kernels, by place."""
    owner: object
    """They live as long as this does."""
    move: Callable[[Array], Array] = np.ascontiguousarray

    def call(self, place: int, *words: Array | int, number: float = 0.0) -> None:
        """Call a kernel with addresses of arrays, and counts."""
        kind = CFUNCTYPE(None, *[c_int64] * len(words), c_float)
        kind(int(self.table[place]))(*(w if isinstance(w, int) else w.ctypes.data for w in words), number)

    def room(self, *shape: int) -> Array:
        """A float32 buffer with nothing to rely on in it."""
        return self.move(np.full(shape, UNTOUCHED, np.float32))


@cache
def subject(isa: InstructionSet, folder: Path) -> Subject:
    """All kernels of an instruction set, compiled once and kept in a folder."""
    with FileLock(folder / f"{isa.name}.lock".lower()):
        kernels = Kernels(isa, range(len(FORMS)), folder)
    return Subject(isa, kernels.table, kernels)


def link(isa: InstructionSet, target: Target, places: Sequence[int]) -> Subject:
    """Some kernels that were compiled for a processor that this one can stand in for."""
    code = Code(compile_object(isa, target, places))
    table = np.zeros(NUM_KERNELS, np.int64)
    table[places] = [code.addresses[KERNEL.format(place)] for place in places]
    return Subject(isa, table, code)


def size_index(rows: int) -> int:
    """Of the kernel that computes so many rows, or more."""
    return next(index for index, size in enumerate(SIZES) if size >= rows)


@dataclass(frozen=True)
class Panel:
    """16 rows of weights in blocks of 32 columns, and inputs in the same blocks."""

    form: Form
    levels: Array
    """uint8 `[16, columns]`."""
    factors: Array
    """`[blocks, halves, 16]`, as the kernel reads them."""
    biases: Array | None
    inputs: Array
    """int8 `[inputs, columns]`."""
    steps: Array
    """float32 `[inputs, blocks]`."""
    added: Array
    """float32 `[16]`."""

    def packed_levels(self) -> Array:
        """uint8 `[blocks, 4 or 8, 16, 4]`."""
        groups = self.levels.reshape(PANEL, -1, BLOCK // 4, 4).transpose(1, 2, 0, 3)
        return groups if self.form.bits == 8 else groups[:, 0::2] | groups[:, 1::2] << 4

    def multiply(
        self, subject: Subject, rows: slice, *, at: int = 0, scale: float = 1.0, before: Array | None = None
    ) -> Array:
        """Products of some of the inputs, float32 `[inputs, 16]`, added to `before` if there is something.

        `at`: the place of the first one in the tile.
        """
        inputs, steps = self.inputs[rows], self.steps[rows]
        num_inputs, num_blocks = steps.shape
        computed = SIZES[size_index(num_inputs)]
        tile = np.full((num_blocks, PANEL, BLOCK), 99, np.int8)
        tile[:, at : at + num_inputs] = inputs.reshape(num_inputs, num_blocks, BLOCK).transpose(1, 0, 2)
        scales = np.full((num_blocks, PANEL), np.nan, np.float32)
        scales[:, at : at + num_inputs] = steps.T
        with np.errstate(all="ignore"):
            sums = scales * tile.sum(2, np.int32).astype(np.float32)
        stride = PANEL + 5
        # what a kernel computes beside the rows that were asked for may be anything, beside the columns nothing
        out = np.full((computed, stride), UNTOUCHED, np.float32)
        out[:num_inputs, :PANEL] = np.nan if before is None else before[rows]
        out = subject.move(out.reshape(-1)[: computed * stride - 5])
        tile, scales, sums = (subject.move(part) for part in (tile, scales, sums))
        words: list[Array | int] = [subject.move(self.packed_levels()), subject.move(self.factors)]
        words.append(0 if self.biases is None else subject.move(self.biases))
        first: list[Array | int] = [tile[0, at:], scales[0, at:], sums[0, at:]]
        target: list[Array | int] = [out, 4 * stride, subject.move(self.added), int(before is not None)]
        place = PANELS + len(SIZES) * FORMS.index(self.form) + size_index(num_inputs)
        subject.call(place, *words, *first, num_blocks, *target, number=scale)
        lines = np.append(out, np.full(5, UNTOUCHED, np.float32)).reshape(computed, stride)
        assert (lines[:, PANEL:] == UNTOUCHED).all()
        return lines[:num_inputs, :PANEL].copy()

    def expected(self) -> tuple[Array, Array]:
        """Products in float64, and how far float32 may be off."""
        num_inputs, num_blocks = self.steps.shape
        halves = self.form.num_factors
        factors = self.factors.astype(np.float64).transpose(2, 0, 1)
        middle = 1 << (self.form.bits - 1)
        biases = -middle * factors if self.biases is None else self.biases.astype(np.float64).transpose(2, 0, 1)
        levels = self.levels.reshape(PANEL, num_blocks, halves, -1).astype(np.int64)
        inputs = self.inputs.reshape(num_inputs, num_blocks, halves, -1).astype(np.int64)
        dots = np.einsum("nbhk,ibhk->inbh", levels, inputs)
        sums = inputs.sum(3)[:, None]
        steps = self.steps.astype(np.float64)[:, None, :, None]
        products, shifts = factors * steps * dots, biases * steps * sums
        exact = (products + shifts).sum((2, 3)) + self.added
        # a term is rounded at most twice before it is added, each addition rounds the sum, `added` and scale twice more
        size = (np.abs(products) + np.abs(shifts)).sum((2, 3)) + np.abs(self.added)
        return exact, (2 * num_blocks * halves + 5) * EPSILON * size


def _integers(rng: np.random.Generator, kind: str, low: int, high: int, shape: tuple[int, ...]) -> Array:
    """All of a kind."""
    if kind == "any":
        return rng.integers(low, high, shape, endpoint=True)
    if kind == "ends":
        return rng.choice([low, high], shape)
    return np.full(shape, {"zero": 0, "lowest": low, "highest": high}[kind])


def _floats(rng: np.random.Generator, ends: tuple[float, float], shape: tuple[int, ...]) -> Array:
    """Of every size between two, and of both signs."""
    low, high = ends
    sizes = np.exp(rng.uniform(np.log(low), np.log(high), shape)) if low else np.zeros(shape)
    return np.asarray(sizes * rng.choice([-1, 1], shape))


def make_panel(
    form: Form,
    seed: int,
    num_blocks: int,
    kinds: tuple[str, str],
    steps: tuple[float, float],
    ends: tuple[float, float],
) -> Panel:
    """8 inputs, and 16 rows of weights with some of another kind."""
    rng = np.random.default_rng(seed)
    columns = num_blocks * BLOCK
    levels = _integers(rng, kinds[0], 0, (1 << form.bits) - 1, (PANEL, columns))
    levels[rng.integers(PANEL)] = rng.integers(0, 1 << form.bits, columns)
    inputs = _integers(rng, kinds[1], -127, 127, (8, columns))
    inputs[rng.integers(8)] = rng.integers(-127, 128, columns)
    dtype = np.float32 if form.has_wide_factors else np.float16
    shape = (num_blocks, form.num_factors, PANEL)
    return Panel(
        form,
        levels.astype(np.uint8),
        _floats(rng, ends, shape).astype(dtype),
        _floats(rng, ends, shape).astype(dtype) if form.has_biases else None,
        inputs.astype(np.int8),
        np.abs(_floats(rng, steps, (8, num_blocks))).astype(np.float32),
        _floats(rng, (1e-3, 1e3), (PANEL,)).astype(np.float32),
    )


def multiply_floats(subject: Subject, element: Element, a: Array, b: Array) -> Array:
    """`a [rows, length] @ b [length, 32]`."""
    rows, length = a.shape
    computed = SIZES[size_index(rows)]
    padded = np.full((computed, length + 3), np.nan, np.float32)
    padded[:rows, :length] = a
    mine = subject.move(padded.reshape(-1)[: computed * (length + 3) - 3])
    stride = WIDTH + 4
    out = subject.room(computed * stride - 4)
    place = FLOATS + len(SIZES) * element + size_index(rows)
    weights = subject.move(b)
    subject.call(place, mine, 4 * (length + 3), weights, WIDTH * element.num_bytes, length, out, 4 * stride)
    lines = np.append(out, np.full(4, UNTOUCHED, np.float32)).reshape(computed, stride)
    assert (lines[:, WIDTH:] == UNTOUCHED).all()
    return lines[:rows, :WIDTH].copy()


def quantize(
    subject: Subject, source: int, values: Array, second: Array, *, first: int, place: int, factor: float
) -> tuple[Array, Array, Array]:
    """Levels `[blocks, 32]`, scales and sums `[blocks]` of the blocks from `first` on."""
    num_blocks = len(values) // BLOCK
    tile = subject.move(np.full((num_blocks, PANEL, BLOCK), 99, np.int8))
    scales, sums = subject.room(num_blocks, PANEL), subject.room(num_blocks, PANEL)
    words = (subject.move(values), subject.move(second), first, num_blocks - first, place, tile, scales, sums)
    subject.call(QUANTIZE + source, *words, number=factor)
    others = np.ones((num_blocks, PANEL), bool)
    others[first:, place] = False
    assert (tile[others] == 99).all()
    assert (scales[others] == UNTOUCHED).all()
    assert (sums[others] == UNTOUCHED).all()
    return tile[first:, place].copy(), scales[first:, place].copy(), sums[first:, place].copy()


def copy(subject: Subject, source: int, values: Array, second: Array, *, first: int, factor: float) -> Array:
    """The numbers of the blocks from `first` on, as float32."""
    target = subject.room(len(values))
    blocks = len(values) // BLOCK - first
    subject.call(COPY + source, subject.move(values), subject.move(second), first, blocks, target, number=factor)
    assert (target[: first * BLOCK] == UNTOUCHED).all()
    return target[first * BLOCK :].copy()


def expected_copy(source: int, x: Array, second: Array, factor: float) -> tuple[Array, Array]:
    """In float64, and how far float32 may be off."""
    x, second = x.astype(np.float64), second.astype(np.float64)
    if source == PLAIN:
        return x, np.zeros_like(x)
    if source == NORMALIZED:
        exact = x * float(np.float32(factor)) * second
        return exact, 2 * EPSILON * np.abs(exact) + TINY * (1 + np.abs(second))
    with np.errstate(over="ignore"):
        gate = cpu_reference.activate(Activation(source - GATED), x)
    # of SiLU an exponential's error, relative, and e^88 in place of what is greater; of gelu that of tanh or erf, below
    # 5e-7, times x / 2
    error = 1e-6 * np.abs(gate) + 1e-38 * np.abs(x) if source == GATED + Activation.SILU else 3e-7 * np.abs(x)
    return gate * second, error * np.abs(second) + TINY


def check_quantised(plain: Array, levels: Array, scales: Array, sums: Array) -> None:
    """The greatest becomes 127, all are within half a step, and the sum is that of what was quantised."""
    peaks = np.abs(plain).max(1)
    # so small that a float32 cannot hold 127 over it: as good as nothing
    is_zero = peaks < 2.0**-119
    assert (scales[is_zero] == 0).all()
    assert (levels[is_zero] == 0).all()
    assert (np.abs(levels).max(1)[~is_zero] == 127).all()
    assert np.allclose(scales[~is_zero], peaks[~is_zero] / 127, rtol=2 * EPSILON, atol=0)
    steps = np.where(is_zero, 1, peaks / 127)
    # the product that is rounded to a level is off by two roundings of at most 127
    off = np.abs(plain / steps[:, None] - levels)[~is_zero]
    assert (off <= 0.5 + 127 * 4 * EPSILON).all()
    exact = scales.astype(np.float64) * levels.sum(1, dtype=np.int64)
    assert np.allclose(sums, exact, rtol=EPSILON, atol=TINY)


def sum_of_squares(subject: Subject, values: Array) -> float:
    """Of a whole number of 16s."""
    target = subject.room(1)
    subject.call(SUM_OF_SQUARES, subject.move(values), len(values) // 16, target)
    return float(target[0])


def cap(subject: Subject, values: Array, limit: float) -> Array:
    """`limit · tanh(values / limit)`."""
    mine = subject.move(values.copy())
    subject.call(CAP, mine, len(values) // 16, number=limit)
    return mine.copy()
