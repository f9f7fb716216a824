"""What a `DecoderPlan` computes, in plain numpy: the reference of the kernels and of whatever reads a plan.

One whole sequence at once, no cache, every matrix as dense numbers. `dtype` is that of all arithmetic.
"""

from math import erf, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.plan import Activation, Attention, DecoderPlan, DenseMatrix, Layer, Linear, Matrix, RotaryTable

Floats = NDArray[np.floating]


def logits(plan: DecoderPlan, tokens: NDArray[np.integer], dtype: type[np.floating] = np.float64) -> Floats:
    """Logits `[tokens, vocabulary]` of a sequence that begins at position 0."""
    stream = dense(plan.embedding, dtype)[tokens] * plan.embedding_scale
    for layer in plan.layers:
        stream = _layer(layer, stream, plan.epsilon)
    scores = linear(plan.lm_head, rms_norm(stream, plan.final_norm, plan.epsilon)) * plan.logit_scale
    return scores if plan.logit_softcap is None else plan.logit_softcap * np.tanh(scores / plan.logit_softcap)


def dense(matrix: Matrix, dtype: type[np.floating] = np.float64) -> Floats:
    """Its weights `[rows, columns]`."""
    if isinstance(matrix, DenseMatrix):
        if matrix.is_bfloat16:  # the upper half of a float32
            return (matrix.values.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(dtype)
        return matrix.values.astype(dtype)
    levels = matrix.levels
    if matrix.bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(*levels.shape[:-1], -1)
    middle = 2 ** (matrix.bits - 1) if matrix.zero_points is None else matrix.zero_points.astype(dtype)[..., None]
    weights = (levels.astype(dtype) - middle) * matrix.scales.astype(dtype)[..., None]
    if matrix.offsets is not None:
        weights += matrix.offsets.astype(dtype)[..., None]
    return np.asarray(weights.reshape(matrix.rows, -1)[:, : matrix.columns], dtype)


def linear(linear: Linear, x: Floats) -> Floats:
    """`x [tokens, columns]` to `[tokens, rows]`."""
    product: Floats = x @ dense(linear.matrix, x.dtype.type).T
    return product if linear.bias is None else product + linear.bias.astype(x.dtype)


def rms_norm(x: Floats, weight: NDArray[np.float32] | None, epsilon: float) -> Floats:
    """Over the last axis; without a weight there is no norm."""
    if weight is None:
        return x
    normed: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return normed * weight.astype(x.dtype)


def activate(activation: Activation, x: Floats) -> Floats:
    """SiLU or Gelu."""
    if activation is Activation.SILU:
        factor = 1 / (1 + np.exp(-x))
    elif activation is Activation.GELU_TANH:
        factor = 0.5 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    else:
        factor = 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)).astype(x.dtype))
    return np.asarray(x * factor)


def rotate(x: Floats, table: RotaryTable, *, is_interleaved: bool) -> Floats:
    """Rotary embedding of `x [tokens, heads, head size]`, whose first position is 0."""
    cosines, sines = (each[: len(x), None, :].astype(x.dtype) for each in (table.cosines, table.sines))
    half = cosines.shape[-1]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if is_interleaved else (slice(0, half), slice(half, 2 * half))
    )
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cosines - x[..., second] * sines
    rotated[..., second] = x[..., second] * cosines + x[..., first] * sines
    return rotated


def attend(attention: Attention, query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention of `[tokens, heads or kv heads, head size]`: `[tokens, heads, head size]`."""
    tokens, group = len(query), attention.num_heads // attention.num_kv_heads
    key, value = (np.repeat(each, group, axis=1) for each in (key, value))
    scores = np.einsum("qhd,khd->hqk", query, key) * attention.scale
    if attention.softcap is not None:
        scores = attention.softcap * np.tanh(scores / attention.softcap)
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    is_seen = (distance >= 0) & (distance < (attention.window or tokens))
    scores = np.where(is_seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hqk,khd->qhd", weights, value), query.dtype)


def _layer(layer: Layer, stream: Floats, epsilon: float) -> Floats:
    attended = linear(
        layer.attention.output, _attention(layer.attention, rms_norm(stream, layer.input_norm, epsilon), epsilon)
    )
    stream = stream + rms_norm(attended, layer.attention_post_norm, epsilon) * layer.residual_scale
    x = rms_norm(stream, layer.mlp_norm, epsilon)
    gate, up = np.split(np.concatenate([linear(each, x) for each in layer.gate_up], axis=-1), 2, axis=-1)
    fed = linear(layer.down, activate(layer.activation, gate) * up)
    return stream + rms_norm(fed, layer.mlp_post_norm, epsilon) * layer.residual_scale


def _attention(attention: Attention, x: Floats, epsilon: float) -> Floats:
    """What goes into the output's projection, `[tokens, heads · head size]`."""
    projected = np.concatenate([linear(each, x) for each in attention.projections], axis=-1)
    heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_size
    query, key, value = np.split(projected, [heads * size, (heads + kv_heads) * size], axis=-1)
    query = _normed_heads(query, attention.query_norm, heads, epsilon)
    key = _normed_heads(key, attention.key_norm, kv_heads, epsilon)
    if (table := attention.rotary) is not None:
        query, key = (rotate(each, table, is_interleaved=attention.is_interleaved) for each in (query, key))
    return attend(attention, query, key, value.reshape(len(x), kv_heads, size)).reshape(len(x), -1)


def _normed_heads(x: Floats, weight: NDArray[np.float32] | None, heads: int, epsilon: float) -> Floats:
    """`[tokens, heads, head size]`, each head normalised on its own or, by a weight that wide, all of them at once."""
    split = x.reshape(len(x), heads, -1)
    if weight is None or len(weight) == split.shape[-1]:
        return rms_norm(split, weight, epsilon)
    return rms_norm(x, weight, epsilon).reshape(split.shape)
