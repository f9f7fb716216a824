"""Matrices as the kernels read them: see `formats`."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.formats import BLOCK, FORMS, PANEL, WIDTH, Element, Form
from vmm_adapters.cpu.plan import DenseMatrix, Matrix, QuantizedMatrix
from vmm_adapters.errors import UnsupportedModel

_ROUNDING = 2.0**-21
"""A float32 quotient times its divisor is that near to the dividend."""
_ALIGNMENT = 64
_CACHED_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix in panels."""

    form: Form | None
    """`None`: floats."""
    element: Element
    """Of floats."""
    levels: NDArray[np.generic]
    factors: NDArray[np.generic] | None
    biases: NDArray[np.generic] | None
    num_panels: int
    panel_rows: int

    @property
    def num_bytes(self) -> int:
        """In memory."""
        return sum(each.nbytes for each in (self.levels, self.factors, self.biases) if each is not None)

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of levels, factors and biases; 0 for none."""
        parts = (self.levels, self.factors, self.biases)
        levels, factors, biases = (0 if each is None else int(each.ctypes.data) for each in parts)
        return levels, factors, biases

    @property
    def panel_bytes(self) -> int:
        """From one panel's levels to the next one's."""
        return self.levels.nbytes // self.num_panels

    @property
    def factor_bytes(self) -> int:
        """From one panel's factors, or biases, to the next one's."""
        return 0 if self.factors is None else self.factors.nbytes // self.num_panels


def pack_matrix(matrix: Matrix) -> PackedMatrix:
    """Copy a matrix into panels, exactly. Raises `UnsupportedModel` for bits and blocks that there is no kernel for."""
    return _pack_floats(matrix) if isinstance(matrix, DenseMatrix) else _pack_blocks(matrix)


def release_pages(matrix: Matrix) -> None:
    """Let go what was read of the matrix's file: it would stay in memory beside the packed copy."""
    array = matrix.values if isinstance(matrix, DenseMatrix) else matrix.levels
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _pack_floats(matrix: DenseMatrix) -> PackedMatrix:
    element = Element.BF16 if matrix.is_bfloat16 else {4: Element.F32, 2: Element.F16}[matrix.values.dtype.itemsize]
    num_panels = -(-matrix.rows // WIDTH)
    packed = _aligned((num_panels, matrix.columns, WIDTH), matrix.values.dtype)
    for panel in range(num_panels):
        rows = matrix.values[panel * WIDTH : (panel + 1) * WIDTH]
        packed[panel, :, : len(rows)] = rows.T
        packed[panel, :, len(rows) :] = 0
    return PackedMatrix(None, element, packed, None, None, num_panels, WIDTH)


def _pack_blocks(matrix: QuantizedMatrix) -> PackedMatrix:
    size = matrix.block_size
    if matrix.bits not in (4, 8) or size < BLOCK // 2 or size & (size - 1):
        raise UnsupportedModel(f"{matrix.name!r} has {matrix.bits} bits in blocks of {size}: there is no kernel for it")
    scales = np.asarray(matrix.scales, np.float32)
    biases = _biases(matrix, scales)
    form = _form(matrix, scales, biases)
    if biases is None and form.has_biases:
        biases = scales * np.float32(-(1 << (matrix.bits - 1)))
    num_panels, num_blocks = -(-matrix.rows // PANEL), -(-matrix.columns // BLOCK)
    levels = _aligned((num_panels, num_blocks, matrix.bits, PANEL, 4), np.dtype(np.uint8))
    source = np.ascontiguousarray(matrix.levels).reshape(matrix.rows, -1)
    (_pack_nibbles if matrix.bits == 4 else _pack_bytes)(source, levels)
    return PackedMatrix(
        form,
        Element.U8,
        levels,
        _pack_factors(scales, form, num_blocks, size),
        None if biases is None else _pack_factors(biases, form, num_blocks, size),
        num_panels,
        PANEL,
    )


def _biases(matrix: QuantizedMatrix, scales: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """What a level of 0 stands for, float32 `[rows, groups]`; `None` where the middle level stands for 0."""
    middle = 1 << (matrix.bits - 1)
    zeros, offsets = matrix.zero_points, matrix.offsets
    if zeros is not None and (zeros == middle).all():
        zeros = None
    if zeros is None and offsets is None:
        return None
    biases: NDArray[np.float32] = scales * np.float32(-middle) if zeros is None else -scales * zeros.astype(np.float32)
    return biases if offsets is None else biases + offsets.astype(np.float32)


def _form(matrix: QuantizedMatrix, scales: NDArray[np.float32], biases: NDArray[np.float32] | None) -> Form:
    """The narrowest form that holds it."""
    has_halves = matrix.block_size < BLOCK
    is_narrow = not has_halves and _fits_half(scales, 0.0) and (biases is None or _fits_half(biases, _ROUNDING))
    wanted = Form(matrix.bits, not is_narrow, biases is not None, has_halves)
    if wanted in FORMS:
        return wanted
    return next(
        f
        for f in FORMS
        if f.bits == wanted.bits
        and f.has_halves == has_halves
        and f.has_wide_factors
        and f.has_biases >= wanted.has_biases
    )


def _fits_half(numbers: NDArray[np.float32], tolerance: float) -> bool:
    """Whether float16 holds them; up to the rounding of a product that was divided before, if there is a tolerance."""
    with np.errstate(over="ignore"):
        error = np.abs(numbers.astype(np.float16).astype(np.float32) - numbers)
    return bool((error <= tolerance * np.abs(numbers)).all())


def _pack_factors(factors: NDArray[np.float32], form: Form, num_blocks: int, size: int) -> NDArray[np.generic]:
    """`[rows, groups]` → `[panels, blocks(, 2), 16]`; what is beyond the matrix is 0."""
    rows = len(factors)
    unit = BLOCK // form.num_factors
    spread = np.repeat(factors, size // unit, axis=1) if size > unit else factors
    columns = num_blocks * form.num_factors
    packed = _aligned(
        (-(-rows // PANEL), columns, PANEL), np.dtype(np.float32 if form.has_wide_factors else np.float16)
    )
    for panel in range(len(packed)):
        part = spread[panel * PANEL : (panel + 1) * PANEL, :columns]
        packed[panel] = 0
        packed[panel, : part.shape[1], : len(part)] = part.T
    return packed


def _aligned(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """A new array that begins with a cache line."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _pack_nibbles(source: NDArray[np.uint8], packed: NDArray[np.generic]) -> None:
    """uint8 `[rows, bytes]`, the even column low → `[panels, blocks, 4, 16, 4]`, the even group low."""
    for part, target in _parts(source, packed, 16):
        low, high = part[..., :2], part[..., 2:]
        target[..., 0::2] = low & 15 | high << 4
        target[..., 1::2] = low >> 4 | high & 0xF0


def _pack_bytes(source: NDArray[np.uint8], packed: NDArray[np.generic]) -> None:
    """uint8 `[rows, columns]` → `[panels, blocks, 8, 16, 4]`."""
    for part, target in _parts(source, packed, 32):
        target[...] = part


def _parts(
    source: NDArray[np.uint8], packed: NDArray[np.generic], block_bytes: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.generic]]]:
    """Some panels of each, `[panels, blocks, 4 or 8, 16, 4]`: few enough for a core's cache.

    What is missing is 0; what is beyond the last block, because the file's are longer, is left out.
    """
    num_panels, num_blocks = packed.shape[:2]
    at_a_time = max(1, _CACHED_BYTES // (PANEL * num_blocks * block_bytes))
    for first in range(0, num_panels, at_a_time):
        target = packed[first : first + at_a_time]
        part = np.zeros((len(target) * PANEL, num_blocks * block_bytes), np.uint8)
        given = source[first * PANEL : first * PANEL + len(part), : part.shape[1]]
        part[: given.shape[0], : given.shape[1]] = given
        yield part.reshape(len(target), PANEL, num_blocks, block_bytes // 4, 4).transpose(0, 2, 3, 1, 4), target
