"""One step of a decoder, whole in compiled code: every thread of a team runs `run_step`, with no Python between layers.

A phase is a number of tasks that threads take from a counter; between phases they meet. What a phase writes is read by
later ones only, but for what is added to the residual stream, where each task has columns of its own.
"""

from typing import Any

import numpy as np

from vmm_adapters.cpu.attention import attend, cut_tiles, fold_spans
from vmm_adapters.cpu.compiled import compiled
from vmm_adapters.cpu.embedding import embed
from vmm_adapters.cpu.kernels import CAP
from vmm_adapters.cpu.layout import DOWN, GATE, MATRICES_A_LAYER, OUTPUT, QUERY
from vmm_adapters.cpu.memory import call_kernel
from vmm_adapters.cpu.numerics import GATED, LANES, PLAIN
from vmm_adapters.cpu.positions import rotate_and_store
from vmm_adapters.cpu.products import add_product, multiply, norm_or_plain, prepare, prepare_sampled
from vmm_adapters.cpu.share import LOGITS, LOGITS_STRIDE, NUM_LOGITS, NUM_SPANS, NUM_TOKENS
from vmm_adapters.cpu.team import meet, take_task

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled  # type: ignore[untyped-decorator]
def run_step(share: Any, layers: Any, matrices: Any) -> None:
    """Compute what the buffers describe; the logits lie where their counts say."""
    if share.thread == 0:
        cut_tiles(share, layers[0])
    embed(share, matrices[len(matrices) - 2])
    meet(share.state, share.num_threads)
    for index in range(len(layers)):
        mine = matrices[index * MATRICES_A_LAYER : (index + 1) * MATRICES_A_LAYER]
        _add_attention(share, layers[index], mine)
        _add_mlp(share, layers[index], mine)
    if share.buffers.counts[NUM_LOGITS] > 0:
        _compute_logits(share, matrices[len(matrices) - 1 :])
    meet(share.state, share.num_threads)


@compiled  # type: ignore[untyped-decorator]
def _add_attention(share: Any, layer: Any, matrices: Any) -> None:
    buffers, num_tokens = share.buffers, share.buffers.counts[NUM_TOKENS]
    hidden, stride = buffers.hidden.ctypes.data, 4 * buffers.hidden.shape[1]
    projections, output = matrices[QUERY:OUTPUT], matrices[OUTPUT:GATE]
    prepare(share, norm_or_plain(layer.input_norm), hidden, stride, layer.input_norm, share.model.width, projections)
    meet(share.state, share.num_threads)
    projected, projected_stride = buffers.projected.ctypes.data, 4 * buffers.projected.shape[1]
    multiply(share, projections, num_tokens, projected, projected_stride, 0, _ONE)
    meet(share.state, share.num_threads)
    rotate_and_store(share, layer)
    meet(share.state, share.num_threads)
    attend(share, layer)
    meet(share.state, share.num_threads)
    if buffers.counts[NUM_SPANS] > 1:
        fold_spans(share, layer)
        meet(share.state, share.num_threads)
    attended, attended_stride = buffers.attended.ctypes.data, 4 * buffers.attended.shape[1]
    prepare(share, PLAIN, attended, attended_stride, 0, output[0].columns, output)
    meet(share.state, share.num_threads)
    add_product(share, output, layer.attention_post_norm, layer.residual_scale)


@compiled  # type: ignore[untyped-decorator]
def _add_mlp(share: Any, layer: Any, matrices: Any) -> None:
    buffers, num_tokens = share.buffers, share.buffers.counts[NUM_TOKENS]
    hidden, stride = buffers.hidden.ctypes.data, 4 * buffers.hidden.shape[1]
    gate_up, down = matrices[GATE:DOWN], matrices[DOWN:]
    prepare(share, norm_or_plain(layer.mlp_norm), hidden, stride, layer.mlp_norm, share.model.width, gate_up)
    meet(share.state, share.num_threads)
    mlp, mlp_stride = buffers.mlp.ctypes.data, 4 * buffers.mlp.shape[1]
    multiply(share, gate_up, num_tokens, mlp, mlp_stride, 0, _ONE)
    meet(share.state, share.num_threads)
    prepare(share, GATED + layer.activation, mlp, mlp_stride, mlp + 4 * layer.up_at, layer.mlp_width, down)
    meet(share.state, share.num_threads)
    add_product(share, down, layer.mlp_post_norm, layer.residual_scale)


@compiled  # type: ignore[untyped-decorator]
def _compute_logits(share: Any, lm_head: Any) -> None:
    """Of the tokens that they are wanted for."""
    model, counts = share.model, share.buffers.counts
    hidden, stride = share.buffers.hidden.ctypes.data, 4 * share.buffers.hidden.shape[1]
    num_rows, logits, logits_stride = counts[NUM_LOGITS], counts[LOGITS], counts[LOGITS_STRIDE]
    prepare_sampled(share, hidden, stride, model.final_norm, model.width, lm_head)
    meet(share.state, share.num_threads)
    multiply(share, lm_head, num_rows, logits, logits_stride, 0, model.logit_scale)
    if model.logit_softcap > _ZERO:
        meet(share.state, share.num_threads)
        while True:
            row = take_task(share.state)
            if row >= num_rows:
                return
            words = (logits + row * logits_stride, logits_stride // (4 * LANES))
            call_kernel(share.kernels[CAP], words, model.logit_softcap)
