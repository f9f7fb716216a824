"""What a decoder consists of, as the kernels compute it: matrices, norms and attention, layer by layer.

    embedding → layers x [norm → Q, K, V → attention → O → + → norm → gate, up → activation → down → +] → norm → lm_head

Arrays are views of the model's files where their layout allows (`numpy.memmap`); nothing is copied or widened here.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Activation(IntEnum):
    """What the gate goes through before it multiplies `up`."""

    SILU = 0
    GELU_TANH = 1
    """Gelu with the tanh approximation."""
    GELU = 2
    """Gelu with erf."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """`weight[n, k] = scales[n, g] · (level[n, k] - zero point[n, g]) + offsets[n, g]`, with g = k // block_size."""

    name: str
    """The initialiser with the levels, for errors."""
    rows: int
    """Outputs, n."""
    columns: int
    """Inputs, k. The last block of a row may be longer than what is left of the row."""
    bits: int
    """4 or 8."""
    block_size: int
    """A power of two, 16 or more."""
    levels: NDArray[np.uint8]
    """`[rows, groups, block_size · bits / 8]`; of 4 bits the even k is the low half of a byte (`MatMulNBits`)."""
    scales: NDArray[np.floating]
    """float16 or float32 `[rows, groups]`."""
    zero_points: NDArray[np.uint8] | NDArray[np.floating] | None = None
    """uint8 `[rows, groups]` (unpacked) or floats `[rows, groups]`; `None`: the middle, `2 ** (bits - 1)`."""
    offsets: NDArray[np.floating] | None = None
    """float16 or float32 `[rows, groups]`."""


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """Weights as they are."""

    name: str
    rows: int
    columns: int
    values: NDArray[np.generic]
    """float32, float16 or bfloat16 (as uint16 with `is_bfloat16`) `[rows, columns]`; may be a transposed view."""
    is_bfloat16: bool = False


Matrix = QuantizedMatrix | DenseMatrix


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ matrix.T + bias`."""

    matrix: Matrix
    bias: NDArray[np.float32] | None = None
    """`[rows]`."""


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and sines, float32 `[positions, rotary width / 2]` each; pairs lie half the rotary width apart."""

    cosines: NDArray[np.float32]
    sines: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention with what surrounds it."""

    projections: tuple[Linear, ...]
    """One (Q, K, V stacked by rows) or three."""
    output: Linear
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    rotary: RotaryTable | None
    """`None`: positions are not rotated in."""
    is_interleaved: bool = False
    """Rotary pairs are neighbours instead (`rotary_interleaved`)."""
    window: int | None = None
    """Positions a query sees, itself included; `None` is all."""
    softcap: float | None = None
    """Scores are `softcap · tanh(score / softcap)`."""
    query_norm: NDArray[np.float32] | None = None
    """RMSNorm weights before the rotation: `[head_size]`, of each head; or `[num_heads · head_size]`, of all."""
    key_norm: NDArray[np.float32] | None = None
    """The same: `[head_size]`, or `[num_kv_heads · head_size]`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. Norms are RMSNorm weights `[width]`; `None` leaves the norm out."""

    attention: Attention
    gate_up: tuple[Linear, ...]
    """One (gate and up stacked by rows) or two."""
    down: Linear
    activation: Activation
    input_norm: NDArray[np.float32] | None
    attention_post_norm: NDArray[np.float32] | None
    """On what attention gives, before it is added to the residual stream."""
    mlp_norm: NDArray[np.float32] | None
    mlp_post_norm: NDArray[np.float32] | None
    residual_scale: float = 1.0
    """What attention and the MLP give is multiplied by it, before it is added."""


@dataclass(frozen=True, slots=True)
class DecoderPlan:
    """A whole decoder."""

    embedding: Matrix
    """`[vocabulary, width]`; may be the very object that is `lm_head.matrix`."""
    embedding_scale: float
    layers: tuple[Layer, ...]
    final_norm: NDArray[np.float32]
    lm_head: Linear
    logit_scale: float
    logit_softcap: float | None
    """Logits are `softcap · tanh(logit · logit_scale / softcap)`."""
    epsilon: float
    """Of every RMSNorm."""
    context_length: int
    """Positions, as far as config and rotary tables go."""
    files: tuple[str, ...]
    """Paths of the files that the arrays are views of."""

    @property
    def width(self) -> int:
        """Columns of the residual stream."""
        return self.embedding.columns

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.lm_head.matrix.rows


def slice_rows(linear: Linear, start: int, stop: int) -> Linear:
    """Some of its outputs."""
    rows, matrix = slice(start, stop), linear.matrix
    if isinstance(matrix, DenseMatrix):
        part: Matrix = replace(matrix, rows=stop - start, values=matrix.values[rows])
    else:
        part = replace(
            matrix,
            rows=stop - start,
            levels=matrix.levels[rows],
            scales=matrix.scales[rows],
            zero_points=None if matrix.zero_points is None else matrix.zero_points[rows],
            offsets=None if matrix.offsets is None else matrix.offsets[rows],
        )
    return Linear(part, None if linear.bias is None else linear.bias[rows])
