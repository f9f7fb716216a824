"""Matrices are packed exactly, whatever their bits, blocks and zero points; what no kernel reads is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm_adapters.cpu.codegen.kernels import PANELS, SIZES
from vmm_adapters.cpu.formats import BLOCK, FORMS, PANEL, WIDTH, Element, Form
from vmm_adapters.cpu.packing import PackedMatrix, pack_matrix
from vmm_adapters.cpu.plan import DenseMatrix, QuantizedMatrix
from vmm_adapters.errors import UnsupportedModel

from .cpu_kernels import EPSILON, Array, Subject
from .cpu_reference import dense

quick = settings(max_examples=60, deadline=None, database=None)
SCALES = ("f16", "f32 that f16 holds", "f32", "large", "tiny")
ZEROS = (None, "middle", "u8", "f16", "f32")
BLOCK_SIZES = (16, 32, 64, 128, 256)


def make_scales(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Array:
    """Of any sign, one of them 0."""
    scales = rng.uniform(0.001, 0.1, shape) * rng.choice([-1, 1], shape)
    scales.flat[rng.integers(scales.size)] = 0
    if kind == "f16":
        return np.asarray(scales, np.float16)
    if kind == "f32 that f16 holds":
        return np.asarray(scales, np.float16).astype(np.float32)
    return np.asarray(scales * {"f32": 1, "large": 1e8, "tiny": 1e-8}[kind], np.float32)


@st.composite
def quantized(draw: st.DrawFn) -> QuantizedMatrix:
    """Any that a plan may hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 300))
    bits, size = draw(st.sampled_from([4, 8])), draw(st.sampled_from(BLOCK_SIZES))
    groups = -(-columns // size)
    levels = rng.integers(0, 256, (rows, groups, size * bits // 8), np.uint8)
    scales = make_scales(rng, draw(st.sampled_from(SCALES)), (rows, groups))
    kind = draw(st.sampled_from(ZEROS))
    zeros: Array | None = None
    if kind in ("middle", "u8"):
        drawn = rng.integers(0, 1 << bits, (rows, groups), np.uint8)
        zeros = np.full_like(drawn, 1 << (bits - 1)) if kind == "middle" else drawn
    elif kind:
        zeros = rng.uniform(0, 1 << bits, (rows, groups)).astype({"f16": np.float16, "f32": np.float32}[kind])
    dtype = draw(st.sampled_from([None, np.float16, np.float32]))
    offsets: Array | None = (
        None if dtype is None else np.clip(scales * rng.normal(0, 3, (rows, groups)), -6e4, 6e4).astype(dtype)
    )
    return QuantizedMatrix("w", rows, columns, bits, size, levels, scales, zeros, offsets)


def unpack(packed: PackedMatrix) -> tuple[Array, Array]:
    """The weights in float64, `[panels · 16, blocks · 32]`, and the sizes of what a level of 0 stands for."""
    assert packed.form is not None
    assert packed.factors is not None
    assert (packed.biases is not None) == packed.form.has_biases
    form, levels = packed.form, packed.levels.view(np.uint8)
    if form.bits == 4:  # two groups share bytes, the even one is low
        levels = np.stack([levels & 15, levels >> 4], 3).reshape(*levels.shape[:2], 8, PANEL, 4)
    plain = levels.transpose(0, 3, 1, 2, 4).reshape(packed.num_panels * PANEL, -1).astype(np.float64)

    def spread(factors: Array) -> Array:
        lines = factors.astype(np.float64).transpose(0, 2, 1).reshape(packed.num_panels * PANEL, -1)
        return np.repeat(lines, BLOCK // form.num_factors, 1)

    factors = spread(packed.factors)
    biases = -(1 << (form.bits - 1)) * factors if packed.biases is None else spread(packed.biases)
    return factors * plain + biases, np.abs(biases)


@quick
@given(matrix=quantized())
def test_blocks(matrix: QuantizedMatrix) -> None:
    packed = pack_matrix(matrix)
    assert packed.form in FORMS
    assert packed.panel_rows == PANEL
    assert packed.num_panels == -(-matrix.rows // PANEL)
    assert packed.num_bytes == sum(
        part.nbytes for part in (packed.levels, packed.factors, packed.biases) if part is not None
    )
    weights, biases = unpack(packed)
    expected, mine = dense(matrix), (slice(matrix.rows), slice(matrix.columns))
    zeros = matrix.zero_points
    is_integer = zeros is None or (zeros.dtype == np.uint8 and matrix.scales.dtype == np.float16)
    if is_integer and matrix.offsets is None:
        assert (weights[mine] == expected).all()
    else:
        # scale by zero point, and the sum with the offset, are rounded in float32; float16 holds it up to that
        terms = 256 * np.abs(matrix.scales).max() + (0 if matrix.offsets is None else np.abs(matrix.offsets).max())
        assert (np.abs(weights[mine] - expected) <= 2.0**-21 * biases[mine] + 2 * EPSILON * terms).all()
    assert (weights[matrix.rows :] == 0).all()


def matrix_of(bits: int, block_size: int, *, rows: int = 20, columns: int = 40, seed: int = 4) -> QuantizedMatrix:
    rng = np.random.default_rng(seed)
    groups = -(-columns // block_size)
    levels = rng.integers(0, 256, (rows, groups, block_size * bits // 8), np.uint8)
    scales = rng.uniform(0.001, 0.1, (rows, groups)).astype(np.float16)
    return QuantizedMatrix("w", rows, columns, bits, block_size, levels, scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "zeros"])
def test_kernels_read_what_was_packed(cpu_subject: Subject, bits: int, block_size: int, has_zeros: bool) -> None:
    """Unit vectors, 8 at a time, give the weights' columns."""
    matrix = matrix_of(bits, block_size)
    if has_zeros:
        zeros = np.random.default_rng(5).integers(0, 1 << bits, matrix.scales.shape, np.uint8)
        matrix = replace(matrix, zero_points=zeros)
    packed = pack_matrix(matrix)
    assert packed.form is not None
    levels, factors, biases = packed.addresses
    num_blocks = -(-matrix.columns // BLOCK)
    found = np.zeros((matrix.columns, packed.num_panels * PANEL), np.float32)
    kernel = PANELS + len(SIZES) * FORMS.index(packed.form) + SIZES.index(8)
    for first in range(0, matrix.columns, 8):
        tile = np.zeros((num_blocks, PANEL, BLOCK), np.int8)
        for i in range(8):
            tile[(first + i) // BLOCK, i, (first + i) % BLOCK] = 1
        scales, sums = np.ones((num_blocks, PANEL), np.float32), tile.sum(2).astype(np.float32)
        for panel in range(packed.num_panels):
            line = found[first:, panel * PANEL :]
            skipped = panel * packed.factor_bytes
            places = (levels + panel * packed.panel_bytes, factors + skipped, biases + skipped if biases else 0)
            target = (line, found.strides[0], np.zeros(PANEL, np.float32), 0)
            cpu_subject.call(kernel, *places, tile, scales, sums, num_blocks, *target, number=1.0)
    expected = dense(matrix)
    assert (np.abs(found[:, : matrix.rows].T - expected) <= EPSILON * np.abs(expected)).all()
    assert (found[:, matrix.rows :] == 0).all()


@given(data=st.data())
@quick
def test_floats(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 50))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    element = data.draw(st.sampled_from([Element.F32, Element.F16, Element.BF16]))
    dtype = {Element.F32: np.float32, Element.F16: np.float16, Element.BF16: np.uint16}[element]
    values = rng.integers(0, 20000, (columns, rows)).astype(dtype).T
    if data.draw(st.booleans()):
        values = np.ascontiguousarray(values)
    packed = pack_matrix(DenseMatrix("w", rows, columns, values, element is Element.BF16))
    assert packed.element is element
    assert packed.form is None
    assert packed.levels.shape == (packed.num_panels, columns, WIDTH)
    plain = packed.levels.transpose(0, 2, 1).reshape(-1, columns)
    assert plain[:rows].tobytes() == np.ascontiguousarray(values).tobytes()
    assert not plain[rows:].any()


def test_levels_may_be_a_view() -> None:
    """Of some rows of a larger matrix, as a plan cuts Q, K and V."""
    whole = matrix_of(4, 32, rows=50)
    rows = slice(7, 7 + 20)
    part = replace(whole, rows=20, levels=whole.levels[rows], scales=whole.scales[rows])
    assert (unpack(pack_matrix(part))[0][:20, :40] == dense(whole)[rows]).all()


@pytest.mark.parametrize("form", [Form(4, False, False), Form(8, False, False)])
def test_what_fits_is_narrow(form: Form) -> None:
    """Scales of f16 cost 2 bytes a block, whatever type they come in."""
    matrix = matrix_of(form.bits, 32)
    assert pack_matrix(matrix).form == form
    assert pack_matrix(replace(matrix, scales=matrix.scales.astype(np.float32))).form == form
    middle = np.full(matrix.scales.shape, 1 << (form.bits - 1), np.uint8)
    assert pack_matrix(replace(matrix, zero_points=middle)).form == form


def test_panels_begin_with_a_cache_line() -> None:
    for matrix in (matrix_of(4, 16), matrix_of(8, 128), DenseMatrix("w", 5, 7, np.zeros((5, 7), np.float32))):
        levels, factors, biases = pack_matrix(matrix).addresses
        assert levels % 64 == factors % 64 == biases % 64 == 0


@pytest.mark.parametrize(("bits", "block_size"), [(2, 32), (3, 32), (5, 32), (16, 32), (4, 8), (4, 48), (8, 24)])
def test_what_no_kernel_reads_is_refused(bits: int, block_size: int) -> None:
    with pytest.raises(UnsupportedModel, match="'w'"):
        pack_matrix(matrix_of(bits, block_size))
