"""Whatever is changed in a decoder's graph: it is refused, or the plan still computes what ONNX Runtime computes."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state as state

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.errors import UnsupportedModel

from . import cpu_reference
from .builder_decoder import BuilderDecoder, make_decoder
from .test_cpu_plan import TOKENS, onnxruntime_logits

pytestmark = pytest.mark.runtime

CONFIGS = (
    BuilderDecoder(),
    BuilderDecoder(head_norms=True, qkv_bias=True, embedding="tied"),
    BuilderDecoder(packed_qkv=False, embedding_scale=6.0, residual_scale=0.4, logit_scale=0.3, softcap=3.0),
    BuilderDecoder(post_norms=True, gate_up="fused", activation="gelu_tanh", embedding="uint4", head_bias=True),
    BuilderDecoder(bits=None, embedding="tied"),
)
NO_MODEL = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
OPERATORS = ("Add", "Mul", "Sub", "Div", "MatMul", "Neg", "Tanh", "Sigmoid", "Gelu", "Identity")


@dataclass(frozen=True)
class Change:
    """One change of one node."""

    model: int
    node: int
    kind: str
    index: int
    """Of an input or attribute, counted round."""
    source: int
    """Of another value, operator or number, counted round."""


CHANGES = st.builds(
    Change,
    st.integers(0, len(CONFIGS) - 1),
    st.integers(0, 99),
    st.sampled_from(["value", "constant", "operator", "attribute", "dropped"]),
    st.integers(0, 9),
    st.integers(0, 99),
)


def changed(change: Change) -> onnx.ModelProto:
    model = make_decoder(CONFIGS[change.model])
    graph = model.graph
    place = change.node % len(graph.node)
    node = graph.node[place]
    if change.kind in ("value", "constant"):
        values = [each.name for each in graph.initializer]
        if change.kind == "value":
            values = [each.name for each in graph.input]
            values += [output for before in graph.node[:place] for output in before.output if output]
        node.input[change.index % len(node.input)] = values[change.source % len(values)]
    elif change.kind == "operator":
        node.op_type, node.domain = OPERATORS[change.source % len(OPERATORS)], ""
    elif node.attribute:
        attribute = node.attribute[change.index % len(node.attribute)]
        if change.kind == "dropped":
            node.attribute.remove(attribute)
        elif attribute.type == onnx.AttributeProto.FLOAT:
            attribute.f = (0.0, 1.0, -attribute.f, 2 * attribute.f)[change.source % 4]
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = (0, 1, -1, 2, attribute.i + 1, 2 * attribute.i)[change.source % 6]
    return model


@given(CHANGES)
def test_what_is_accepted_is_understood(tmp_path_factory: pytest.TempPathFactory, change: Change) -> None:
    config, model = CONFIGS[change.model], changed(change)
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        plan = read_plan(path, context_length=64)
    except UnsupportedModel:
        return
    try:
        expected = onnxruntime_logits(model, config, TOKENS)
    except NO_MODEL:
        return  # no model at all: it reaches nobody
    with np.errstate(all="ignore"):
        actual = cpu_reference.logits(plan, TOKENS)
    np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max(), rtol=0)
