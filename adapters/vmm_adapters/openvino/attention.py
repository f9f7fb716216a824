"""GroupQueryAttention as OpenVINO's own passes know attention.

An ONNX decoder carries its KV cache as model inputs and outputs, and hides rotary embedding, cache and softmax in
one node. OpenVINO's paged-attention pass looks for the form its exporter writes: a rotary subgraph, state
variables that grow by concatenation, and ScaledDotProductAttention. `StatefulAttention.replace` writes that form
for one node. Shapes: B sequences, S new positions, P past ones, H query heads, K key heads, D head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.openvino.rotary import integer, ints, rotary_rows, rotate

REFUSED_UNLESS: Mapping[str, object] = {
    "causal": True,
    "k_quant_type": "NONE",
    "kv_cache_bit_width": 0,
    "sliding_window_cache": False,
    "smooth_softmax": False,
    "v_quant_type": "NONE",
}
"""Attributes that change the result and are not translated, with the one value that may stand."""

UNDERSTOOD = frozenset({"do_rotary", "kv_num_heads", "local_window_size", "num_heads", "rotary_interleaved", "scale"})
POSITIONS = 9
OPTIONAL_INPUTS = {10: "attention_bias", 11: "head_sink", 12: "k_scale", 13: "v_scale"}


@dataclass(frozen=True)
class AttentionAttributes:
    """One GroupQueryAttention node's attributes and static sizes."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    window: int | None
    """Last positions a query sees, its own included; `None` is all."""
    rotary: bool
    rotary_interleaved: bool


def read_attributes(node: Any) -> AttentionAttributes:
    """Read and check one node. Raises `UnsupportedModel` naming the node and what is not translated."""
    attributes = node.get_attributes()
    name = node.get_friendly_name()
    for key, value in attributes.items():
        if key not in UNDERSTOOD and value != REFUSED_UNLESS.get(key):
            raise UnsupportedModel(f"GroupQueryAttention {name!r}: {key}={value!r} is not supported")
    for index, meaning in OPTIONAL_INPUTS.items():
        if index < node.get_input_size() and not _is_absent(node.input_value(index)):
            raise UnsupportedModel(f"GroupQueryAttention {name!r}: the input {meaning} is not supported")
    positions = node.input_value(POSITIONS) if node.get_input_size() > POSITIONS else None
    if positions is not None and not _is_absent(positions) and "position_ids" not in positions.get_names():
        raise UnsupportedModel(f"GroupQueryAttention {name!r}: position_ids that are computed are not supported")
    shape = node.input_value(0).get_partial_shape()
    if shape.rank.get_length() != 4 or shape[3].is_dynamic:
        raise UnsupportedModel(f"GroupQueryAttention {name!r}: the head size is not static, query is {shape}")
    head_size = shape[3].get_length()
    window = attributes["local_window_size"]
    return AttentionAttributes(
        num_heads=attributes["num_heads"],
        num_kv_heads=attributes["kv_num_heads"],
        head_size=head_size,
        scale=attributes["scale"] or head_size**-0.5,
        window=window if window > 0 else None,
        rotary=attributes["do_rotary"],
        rotary_interleaved=attributes["rotary_interleaved"],
    )


def _is_absent(output: Any) -> bool:
    """The ONNX frontend stands an empty constant in for an optional input that is not given."""
    node = output.get_node()
    return bool(node.get_type_name() == "Constant" and node.get_output_shape(0) == ov.Shape([0]))


class StatefulAttention:
    """Rewrites nodes of one model; what the layers share (mask bias, gathered rotary rows) is made once."""

    def __init__(self, input_ids: Any, attention_mask: Any, position_ids: Any, beam_idx: Any) -> None:
        self._position_ids = position_ids
        self._beam_idx = beam_idx
        self._batch = op.gather(op.shape_of(input_ids, "i64"), ints(0), integer(0))
        self._mask = attention_mask
        self._biases: dict[str, Any] = {}
        self._rotary_rows: dict[str, Any] = {}
        self.assigns: list[Any] = []
        self.max_positions: int | None = None
        """Rows of the shortest rotary cache met."""

    def replace(self, node: Any) -> None:
        """Put the stateful subgraph in the node's place; its present key and value lose their readers."""
        attributes = read_attributes(node)
        query, key, value, past_key, past_value = (node.input_value(index) for index in range(5))
        if attributes.rotary:
            cos, sin = (self._rotary(node.input_value(index)) for index in (7, 8))
            size = 2 * node.input_value(7).get_partial_shape()[1].get_length()
            query, key = (
                rotate(
                    each,
                    cos,
                    sin,
                    rotary_size=size,
                    head_size=attributes.head_size,
                    interleaved=attributes.rotary_interleaved,
                )
                for each in (query, key)
            )
        keys = self._remember(key, past_key, attributes)
        values = self._remember(value, past_value, attributes)
        dtype = query.get_element_type()
        scale = op.convert(op.constant(np.float32(attributes.scale)), dtype.get_type_name())
        attended = op.scaled_dot_product_attention(query, keys, values, self._bias(dtype), scale, causal=False)
        merged = op.reshape(
            op.transpose(attended, ints(0, 2, 1, 3)),
            ints(0, 0, attributes.num_heads * attributes.head_size),
            special_zero=True,
        )
        node.output(0).replace(merged.output(0))

    def _rotary(self, cache: Any) -> Any:
        """Rows of a cos or sin cache `[positions, R/2]` at `position_ids`, as `[B, 1, S, R]`."""
        name = cache.get_node().get_friendly_name()
        if name not in self._rotary_rows:
            shape = cache.get_partial_shape()
            if shape.is_dynamic:
                raise UnsupportedModel(f"rotary cache {name!r}: its shape {shape} is not static")
            rows = shape[0].get_length()
            self.max_positions = min(rows, self.max_positions or rows)
            self._rotary_rows[name] = rotary_rows(cache, self._position_ids)
        return self._rotary_rows[name]

    def _bias(self, dtype: Any) -> Any:
        """0 where the mask is 1 and a large negative number elsewhere, `[B, 1, 1, P + S]`; the pass drops it."""
        name = dtype.get_type_name()
        if name not in self._biases:
            hidden = op.subtract(op.constant(np.float32(1)), op.convert(self._mask, "f32"))
            bias = op.convert(op.multiply(hidden, op.constant(np.float32(-65504))), name)
            self._biases[name] = op.unsqueeze(bias, ints(1, 2))
        return self._biases[name]

    def _remember(self, current: Any, past: Any, attributes: AttentionAttributes) -> Any:
        """Append `current [B, K, S, D]` to a state variable and widen the whole to `[B, H, P + S, D]`."""
        heads, size, dtype = attributes.num_kv_heads, attributes.head_size, current.get_element_type()
        description = VariableInfo()
        description.data_shape = ov.PartialShape([-1, heads, -1, size])
        description.data_type = dtype
        description.variable_id = past.get_node().get_friendly_name()
        variable = Variable(description)
        zero = op.convert(op.constant(np.float32(0)), dtype.get_type_name())
        empty = op.broadcast(zero, op.concat([self._batch, ints(heads, 0, size)], axis=0))
        state = op.gather(opset6.read_value(empty, variable), self._beam_idx, integer(0))
        whole = op.concat([state, current], axis=2)
        self.assigns.append(opset6.assign(whole, variable))
        if attributes.num_heads == heads:
            return whole.output(0)
        shape = op.shape_of(whole, "i64")
        front, back = (op.gather(shape, ints(*axes), integer(0)) for axes in ((0, 1), (2, 3)))
        target = op.concat([front, ints(attributes.num_heads // heads), back], axis=0)
        repeated = op.broadcast(op.unsqueeze(whole, integer(2)), target, "BIDIRECTIONAL")
        return op.reshape(repeated, ints(0, attributes.num_heads, -1, size), special_zero=True).output(0)
