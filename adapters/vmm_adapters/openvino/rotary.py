"""Rotary position embedding (Su et al., arXiv 2104.09864) as the subgraph OpenVINO fuses into its RoPE kernel."""

from typing import Any

import numpy as np
from openvino import opset13 as op

from vmm_adapters.errors import UnsupportedModel


def rotate(x: Any, cos: Any, sin: Any, *, rotary_size: int, head_size: int, interleaved: bool) -> Any:
    """Rotate the first `rotary_size` dimensions of `x [B, heads, S, head_size]`, in the half-rotation form.

    `cos` and `sin` are `[B, 1, S, rotary_size]`, from `rotary_rows`. The interleaved form pairs neighbours
    (2i, 2i + 1); moving the even dimensions in front of the odd ones turns it into the half-rotation form. The
    result stays in that order: queries and keys move alike, so their products are the same.
    """
    half = rotary_size // 2
    rotated, rest = x, None
    if rotary_size < head_size:
        rotated = op.slice(x, [0], [rotary_size], [1], [3])
        rest = op.slice(x, [rotary_size], [head_size], [1], [3])
    if interleaved:
        order = [*range(0, rotary_size, 2), *range(1, rotary_size, 2)]
        rotated = op.gather(rotated, ints(*order), integer(3))
    first = op.slice(rotated, [0], [half], [1], [3])
    second = op.slice(rotated, [half], [rotary_size], [1], [3])
    minus = op.convert(op.constant(np.float32(-1)), first.get_element_type().get_type_name())
    turned = op.concat([op.multiply(second, minus), first], axis=-1)
    result = op.add(op.multiply(rotated, cos), op.multiply(turned, sin))
    return (result if rest is None else op.concat([result, rest], axis=-1)).output(0)


def rotary_rows(cache: Any, position_ids: Any) -> Any:
    """Rows of a cos or sin cache `[positions, rotary_size / 2]` at `position_ids [B, S]`, doubled."""
    half = op.gather(cache, position_ids, integer(0))
    return op.unsqueeze(op.concat([half, half], axis=-1), integer(1)).output(0)


def translate_rotary_embedding(context: Any) -> list[Any]:
    """com.microsoft's RotaryEmbedding node, which OpenVINO reads wrongly when only a part of the head is rotated.

    Input and output are `[B, S, heads * head_size]` or `[B, heads, S, head_size]`. Raises `UnsupportedModel`
    (which the ONNX frontend hands on as its own exception).
    """
    x, positions, cos, sin = (context.get_input(index) for index in range(4))
    if context.get_attribute("is_packed_batching", 0) or context.get_attribute("scale", 1.0) != 1.0:
        raise UnsupportedModel("RotaryEmbedding: is_packed_batching and scale are not supported")
    if positions.get_partial_shape().rank.get_length() != 2:
        raise UnsupportedModel("RotaryEmbedding: position_ids as a single offset is not supported")
    rotary_size = 2 * cos.get_partial_shape()[1].get_length()
    shape = x.get_partial_shape()
    num_heads = context.get_attribute("num_heads", 0)
    split = shape.rank.get_length() == 4
    if split:
        head_size = shape[3].get_length()
    elif num_heads and context.get_attribute("rotary_embedding_dim", 0):
        head_size = shape[2].get_length() // num_heads
    else:
        head_size = rotary_size
    if not split:
        x = op.transpose(op.reshape(x, ints(0, 0, -1, head_size), special_zero=True), ints(0, 2, 1, 3))
    rotated = rotate(
        x,
        rotary_rows(cos, positions),
        rotary_rows(sin, positions),
        rotary_size=rotary_size,
        head_size=head_size,
        interleaved=bool(context.get_attribute("interleaved", 0)),
    )
    if split:
        return [rotated]
    merged = op.reshape(op.transpose(rotated, ints(0, 2, 1, 3)), ints(0, 0, -1), special_zero=True)
    return [merged.output(0)]


def ints(*values: int) -> Any:
    """A constant vector of i64."""
    return op.constant(np.array(values, np.int64))


def integer(value: int) -> Any:
    """A constant scalar of i64."""
    return op.constant(np.int64(value))
