"""ONNX or OpenVINO IR decoder → the paged model the runner executes.

1. `stateful`: every GroupQueryAttention of an ONNX decoder becomes the form OpenVINO's exporter writes; an IR
   folder has that form already.
2. `paged`: OpenVINO's own pass turns it into PagedAttention over KV blocks; tokens of all sequences lie in a row.
3. Only the rows named by `sampled_tokens_indices` reach the lm_head, the largest product of a small model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino._offline_transformations import apply_moc_transformations, paged_attention_transformation
from openvino.frontend.onnx import ConversionExtension
from openvino.op import Parameter

from vmm_adapters.errors import UnsupportedModel, runtime_errors
from vmm_adapters.openvino.attention import StatefulAttention, read_attributes
from vmm_adapters.openvino.ir_folder import IRCache, MappedWeights, read_ir
from vmm_adapters.openvino.rotary import translate_rotary_embedding

STEP_INPUTS = frozenset(
    {
        "block_indices",
        "block_indices_begins",
        "input_ids",
        "max_context_len",
        "past_lens",
        "position_ids",
        "sampled_tokens_indices",
        "subsequence_begins",
    }
)
"""Inputs of a paged model besides `key_cache.N` and `value_cache.N`."""

MAX_POSITIONS = ["vmm", "max_positions"]
"""Where the model's `rt_info` keeps the rows of its rotary caches."""

WINDOWS = ["vmm", "windows"]
"""Where it keeps each layer's sliding window, in the order of the layers, as JSON."""

SLIDING_WINDOW_INPUT = 10
"""Of PagedAttentionExtension: an i32 scalar, 0 for none."""


@dataclass(frozen=True)
class PagedModel:
    """What `read_paged_model` returns."""

    model: Any
    """The paged `ov.Model`."""
    weights: MappedWeights | None
    """Must outlive the compiled model; `None` where the weights are on the heap."""
    max_positions: int | None
    """Rows of the shortest rotary cache; `None` where positions are computed."""
    weight_bytes: int


def read_paged_model(core: Any, decoder: Path, cache_dir: Path | None) -> PagedModel:
    """Read a `.onnx` or `.xml` decoder and make it a paged one. Raises `UnsupportedModel`."""
    if decoder.suffix == ".onnx":
        model, weights = _read_onnx(core, decoder, cache_dir)
    else:
        model, weights = read_ir(core, decoder)
    max_positions = model.get_rt_info(MAX_POSITIONS).astype(int) if model.has_rt_info(MAX_POSITIONS) else None
    windows = json.loads(model.get_rt_info(WINDOWS).astype(str)) if model.has_rt_info(WINDOWS) else []
    weight_bytes = weights.num_bytes if weights else sum(each.stat().st_size for each in decoder.parent.glob("*.onnx*"))
    return PagedModel(paged(model, windows), weights, max_positions, weight_bytes)


def _read_onnx(core: Any, decoder: Path, cache_dir: Path | None) -> tuple[Any, MappedWeights | None]:
    cache = IRCache(cache_dir) if cache_dir else None
    if cache and (found := cache.read(core, decoder)):
        return found
    core.add_extension(ConversionExtension("RotaryEmbedding", "com.microsoft", translate_rotary_embedding))
    try:
        model = core.read_model(decoder)
    except RuntimeError as error:
        raise UnsupportedModel(f"OpenVINO cannot read {decoder}: {error}") from error
    model = stateful(model)
    if cache:
        cache.write(decoder, model)
        if found := cache.read(core, decoder):
            return found
    return model, None


def stateful(model: Any) -> Any:
    """ONNX decoder → stateful decoder; sliding windows and rotary cache sizes go into its `rt_info`."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "GroupQueryAttention"]
    if not nodes:
        raise UnsupportedModel("the model has no GroupQueryAttention node", hint="see docs/openvino-runner.md")
    windows = [read_attributes(node).window for node in nodes]
    inputs = {name: node for node in model.get_parameters() for name in node.output(0).get_names()}
    for name in ("input_ids", "attention_mask"):
        if name not in inputs:
            raise UnsupportedModel(f"the model has no input {name!r}; its inputs are {sorted(inputs)}")
    positions = inputs.get("position_ids") or _parameter("position_ids", ov.Type.i64, 2)
    beams = _parameter("beam_idx", ov.Type.i32, 1)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    attention = StatefulAttention(ids, mask, positions, beams)
    for node in nodes:
        attention.replace(node)
    logits = [result for result in model.get_results() if "logits" in result.input_value(0).get_names()]
    if len(logits) != 1:
        raise UnsupportedModel("the model has no output 'logits'")
    with runtime_errors("rewriting the decoder", RuntimeError):
        rewritten = ov.Model(logits, attention.assigns, [ids, mask, positions, beams], "decoder")
        # What the device would simplify at every start is simplified once, before the decoder is kept.
        apply_moc_transformations(rewritten, cf=False)
    rewritten.set_rt_info(json.dumps(windows), WINDOWS)
    if attention.max_positions is not None:
        rewritten.set_rt_info(attention.max_positions, MAX_POSITIONS)
    return rewritten


def paged(model: Any, windows: list[int | None]) -> Any:
    """Stateful decoder → paged decoder, in place. `windows` is empty where the pass finds them by itself."""
    if not model.get_sinks():
        raise UnsupportedModel("the decoder is not stateful", hint="export it with its KV cache as state")
    try:
        paged_attention_transformation(model)
    except RuntimeError as error:
        raise UnsupportedModel(f"OpenVINO's paged-attention pass cannot rewrite the model: {error}") from error
    _set_windows(model, windows)
    with runtime_errors("narrowing the lm_head", RuntimeError):
        _sample_before_lm_head(model)
    _check_inputs(model)
    return model


def _set_windows(model: Any, windows: list[int | None]) -> None:
    """Layers depend on each other in a chain, so their order in the graph is the same before and after."""
    if not any(windows):
        return
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    for node, window in zip(nodes, windows, strict=True):
        node.input(SLIDING_WINDOW_INPUT).replace_source_output(op.constant(np.int32(window or 0)).output(0))


def _sample_before_lm_head(model: Any) -> None:
    """Gather the sampled rows in front of the last matrix product, or behind it when there is none to find."""
    rows = _parameter("sampled_tokens_indices", ov.Type.i64, 1)
    target = model.get_results()[0].input(0)
    node = target.get_source_output().get_node()
    while node.get_type_name() in PER_ROW:
        source = _activation(node)
        if source is None:
            break
        if node.get_type_name() == "MatMul":
            target = source
            break
        node = source.get_source_output().get_node()
    chosen = op.gather(target.get_source_output(), rows, op.constant(np.int64(0)))
    target.replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


PER_ROW = frozenset({"Add", "Convert", "Divide", "Identity", "MatMul", "Multiply", "Subtract", "Tanh"})
"""Operators that may follow or be the lm_head and compute each row on its own."""


def _activation(node: Any) -> Any | None:
    """The one input that depends on the tokens; `None` when several do."""
    candidates = [port for port in node.inputs() if port.get_partial_shape().is_dynamic]
    return candidates[0] if len(candidates) == 1 else None


def _check_inputs(model: Any) -> None:
    names = {parameter.output(0).get_any_name() for parameter in model.get_parameters()}
    step = {name for name in names if not name.startswith(("key_cache.", "value_cache."))}
    if step != STEP_INPUTS:
        raise UnsupportedModel(f"after the paged-attention pass the model's inputs are {sorted(step)}")
    vocab = model.get_results()[0].input_value(0).get_partial_shape()[-1]
    if vocab.is_dynamic:
        raise UnsupportedModel("the width of the output 'logits' is not static")


def _parameter(name: str, dtype: Any, rank: int) -> Any:
    node = Parameter(dtype, ov.PartialShape([-1] * rank))
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node
