"""One step of a decoder, whole in compiled code: every thread of a team runs `run_step`, with no Python between layers.

Each phase (see `team`) writes what later ones read, but for what is added to the residual stream, where each task has
columns of its own.
"""

from typing import Any

import numpy as np

from vmm_adapters.cpu.codegen.attention import attend, fold_spans
from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.embedding import embed
from vmm_adapters.cpu.codegen.kernels import CAP
from vmm_adapters.cpu.codegen.memory import call_kernel
from vmm_adapters.cpu.codegen.numerics import GATED, LANES, NORMALIZED, PLAIN
from vmm_adapters.cpu.codegen.positions import rotate_and_store
from vmm_adapters.cpu.codegen.products import add_product, multiply, prepare
from vmm_adapters.cpu.codegen.team import finish, take_task
from vmm_adapters.cpu.formats import PHASES_A_LAYER
from vmm_adapters.cpu.layout import DOWN, GATE, MATRICES_A_LAYER, OUTPUT, QUERY

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled  # type: ignore[untyped-decorator]
def run_step(share: Any, layers: Any, matrices: Any) -> None:
    """Compute what the step describes; the logits lie where it says."""
    embed(share, 0, matrices[len(matrices) - 2])
    for index in range(len(layers)):
        phase = 1 + index * PHASES_A_LAYER
        _add_attention(share, phase, layers[index], matrices, index * MATRICES_A_LAYER)
        _add_mlp(share, phase + 8, layers[index], matrices, index * MATRICES_A_LAYER)
    if share.step.num_logits > 0:
        _compute_logits(share, 1 + len(layers) * PHASES_A_LAYER, matrices, len(matrices) - 1)


@compiled  # type: ignore[untyped-decorator]
def _add_attention(share: Any, phase: int, layer: Any, matrices: Any, first: int) -> None:
    step, query, output = share.step, first + QUERY, first + OUTPUT
    source = NORMALIZED if layer.input_norm else PLAIN
    prepare(share, phase, source, step.hidden, step.hidden_stride, layer.input_norm, matrices, query, output, False)
    multiply(share, phase + 1, matrices, query, output, step.num_tokens, step.projected, step.projected_stride, 0, _ONE)
    rotate_and_store(share, phase + 2, layer)
    attend(share, phase + 3, layer)
    if step.num_spans > 1:
        fold_spans(share, phase + 4, layer)
    prepare(share, phase + 5, PLAIN, step.attended, step.attended_stride, 0, matrices, output, output + 1, False)
    add_product(share, phase + 6, matrices, output, layer.attention_post_norm, layer.residual_scale)


@compiled  # type: ignore[untyped-decorator]
def _add_mlp(share: Any, phase: int, layer: Any, matrices: Any, first: int) -> None:
    step, gate, down = share.step, first + GATE, first + DOWN
    source = NORMALIZED if layer.mlp_norm else PLAIN
    prepare(share, phase, source, step.hidden, step.hidden_stride, layer.mlp_norm, matrices, gate, down, False)
    multiply(share, phase + 1, matrices, gate, down, step.num_tokens, step.mlp, step.mlp_stride, 0, _ONE)
    source, up = GATED + layer.activation, step.mlp + 4 * layer.up_at
    prepare(share, phase + 2, source, step.mlp, step.mlp_stride, up, matrices, down, down + 1, False)
    add_product(share, phase + 3, matrices, down, layer.mlp_post_norm, layer.residual_scale)


@compiled  # type: ignore[untyped-decorator]
def _compute_logits(share: Any, phase: int, matrices: Any, lm_head: int) -> None:
    """Of the tokens that they are wanted for."""
    step, model = share.step, share.model
    hidden, stride = step.hidden, step.hidden_stride
    prepare(share, phase, NORMALIZED, hidden, stride, model.final_norm, matrices, lm_head, lm_head + 1, True)
    rows, out, scale = step.num_logits, step.logits, model.logit_scale
    multiply(share, phase + 1, matrices, lm_head, lm_head + 1, rows, out, step.logits_stride, 0, scale)
    if model.logit_softcap > _ZERO:
        num_done = 0
        while True:
            row = take_task(share, phase + 2, rows)
            if row < 0:
                break
            num_done += 1
            words = (out + row * step.logits_stride, step.logits_stride // (4 * LANES))
            call_kernel(share.kernels, CAP, words, model.logit_softcap)
        finish(share, phase + 2, rows, num_done)
