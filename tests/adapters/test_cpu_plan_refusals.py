"""Graphs that are a decoder's but for one thing: each is refused by the name of the node that has it."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.errors import UnsupportedModel

from .builder_decoder import BuilderDecoder, make_decoder
from .graph_changes import Change, also, attribute, between, both, cache_shape, constant, find, operator, reads, swapped
from .tiny_decoder import TinyDecoder, write_decoder

ATTENTION = "/model/layers.0/attn/GroupQueryAttention"
MASK = "/model/attn_mask_reformat/attn_mask_subgraph"
DOWN = "/model/layers.1/mlp/down_proj/MatMul_Q4"
INPUT_NORM = "/model/layers.0/input_layernorm/LayerNorm"
LAST_NORM = "/model/layers.2/final_norm_layernorm/SkipLayerNorm"
QKV, QKV_BIAS = "/model/layers.0/attn/qkv_proj/MatMul_Q4", "/model/layers.0/attn/qkv_proj/Add"
TIED_LOOKUP = "/model/embed_tokens/GatherBlockQuantized"
SECOND_NORM = "/model/layers.0/post_attention_layernorm/SkipLayerNorm"


def without_attention(graph: onnx.GraphProto) -> None:
    """The first MLP takes the embedding, and its result is added to that."""
    embedding = "/model/embed_tokens/Gather/output_0"
    norm = find(graph, SECOND_NORM)
    following = find(graph, "/model/layers.1/input_layernorm/SkipLayerNorm")
    norm.op_type, norm.domain = "SimplifiedLayerNormalization", ""
    norm.input[:] = [embedding, norm.input[2]]
    del norm.output[1:]
    following.input[0] = embedding


FLOAT_LAYER, WIDE = "/model/layers.0", np.ones((64, 96), np.float32)
FLOATS, TIED = BuilderDecoder(bits=None), BuilderDecoder(embedding="tied")
BUILT: dict[str, tuple[BuilderDecoder, Change, str]] = {
    **{
        f"attention: {name}={value!r}": (BuilderDecoder(), attribute(ATTENTION, **{name: value}), ATTENTION)
        for name, value in {
            "causal": 0,
            "smooth_softmax": 1,
            "qk_output": 1,
            "sliding_window_cache": 1,
            "kv_cache_bit_width": 8,
            "k_quant_type": "PER_TENSOR",
            "v_quant_type": "PER_CHANNEL",
            "local_window_size": 0,
            "softcap": -1.0,
            "num_heads": 3,
            "kv_num_heads": 1,
            "of_tomorrow": 1,
        }.items()
    },
    **{
        f"attention: input {index}": (BuilderDecoder(), reads(ATTENTION, index, "cos_cache"), ATTENTION)
        for index in (9, 10, 11, 12, 13, 14, 16)
    },
    "computed positions": (BuilderDecoder(), reads(ATTENTION, 9, f"{MASK}/ReduceSum/output_0"), ATTENTION),
    "a cache of another layer": (BuilderDecoder(), reads(ATTENTION, 3, "past_key_values.1.key"), "GroupQueryAttention"),
    "no cache": (BuilderDecoder(), reads(ATTENTION, 3, ""), ATTENTION),
    "an unknown head size": (BuilderDecoder(), cache_shape("batch", 2, "past", "head"), ATTENTION),
    "other heads in the cache": (BuilderDecoder(), cache_shape("batch", 4, "past", 16), ATTENTION),
    "a cache that is changed": (BuilderDecoder(), also("Neg", ["present.0.key"], "present.0.other"), ATTENTION),
    "tables of other widths": (BuilderDecoder(), constant(ATTENTION, 8, np.zeros((64, 4), np.float32)), ATTENTION),
    "tables wider than heads": (
        BuilderDecoder(),
        both(constant(ATTENTION, 7, np.ones((64, 9), np.float32)), reads(ATTENTION, 8, "changed")),
        ATTENTION,
    ),
    "a third way to rotate": (BuilderDecoder(), attribute(ATTENTION, rotary_interleaved=2), ATTENTION),
    "a shape with empty axes": (
        *(BuilderDecoder(head_norms=True), attribute("/model/layers.0/attn/q_norm/Reshape_1", allowzero=1)),
        "/model/layers.0/attn/q_norm/Reshape_1",
    ),
    "a sum of three": (
        BuilderDecoder(qkv_bias=True),
        reads("/model/layers.0/attn/qkv_proj/Add", 2, "cos_cache"),
        "Add",
    ),
    "a mask's sum less 2": (BuilderDecoder(), constant(f"{MASK}/Sub", 1, np.array([2])), f"{MASK}/Sub"),
    "a mask that is changed": (BuilderDecoder(), between(f"{MASK}/ReduceSum", 0, "Abs"), f"{MASK}/ReduceSum"),
    "a mask's first size": (BuilderDecoder(), constant(f"{MASK}/Gather", 1, np.array(0)), f"{MASK}/Gather"),
    "a computed length": (BuilderDecoder(), operator(f"{MASK}/Sub", "Add"), f"{MASK}/Sub"),
    "3 bits": (BuilderDecoder(), attribute(DOWN, bits=3), DOWN),
    "blocks of 24": (BuilderDecoder(), attribute(DOWN, block_size=24), "blocks of 24 are not supported"),
    "blocks of another size": (BuilderDecoder(), attribute(DOWN, block_size=64), DOWN),
    "repacked levels": (BuilderDecoder(), attribute(DOWN, weight_prepacked=1), DOWN),
    "an unknown attribute of products": (BuilderDecoder(), attribute(DOWN, of_tomorrow=1), DOWN),
    "groups in another order": (BuilderDecoder(), constant(DOWN, 4, np.zeros(96, np.int32)), DOWN),
    "computed scales": (BuilderDecoder(), between(DOWN, 2, "Neg"), DOWN),
    "scales of doubles": (BuilderDecoder(), constant(DOWN, 2, np.ones(64 * 3)), DOWN),
    "too few scales": (BuilderDecoder(), constant(DOWN, 2, np.ones(5, np.float32)), DOWN),
    "too few levels": (BuilderDecoder(), constant(DOWN, 1, np.ones(5, np.uint8)), DOWN),
    "levels of other rows": (BuilderDecoder(), constant(DOWN, 1, np.ones((96, 2, 16), np.uint8)), DOWN),
    "too few zero points": (BuilderDecoder(), constant(DOWN, 3, np.ones(5, np.uint8)), DOWN),
    "a bias of another size": (BuilderDecoder(), constant(DOWN, 5, np.ones(5, np.float32)), DOWN),
    "a product of computed weights": (FLOATS, between("/model/layers.1/mlp/down_proj/MatMul", 1, "Neg"), "down_proj"),
    "weights that are integers": (
        *(FLOATS, constant("/model/layers.1/mlp/down_proj/MatMul", 1, np.ones((96, 64), np.int64))),
        "/model/layers.1/mlp/down_proj/MatMul",
    ),
    "another activation": (
        BuilderDecoder(),
        operator("/model/layers.0/mlp/act_fn/Sigmoid", "Tanh"),
        "layers.0/mlp/Mul",
    ),
    "a sigmoid of something else": (
        *(
            BuilderDecoder(),
            reads("/model/layers.0/mlp/act_fn/Sigmoid", 0, "/model/layers.0/mlp/up_proj/MatMul_Q4/output_0"),
        ),
        "/model/layers.0/mlp/Mul",
    ),
    "quick gelu": (
        *(BuilderDecoder(activation="quick_gelu"), attribute("/model/layers.0/mlp/act_fn/QuickGelu", alpha=1.702)),
        "/model/layers.0/mlp/act_fn/QuickGelu",
    ),
    "no gate": (BuilderDecoder(), operator("/model/layers.0/mlp/Mul", "Add"), "/model/layers.0/mlp/Mul"),
    "gate and up of different values": (
        *(BuilderDecoder(), reads("/model/layers.0/mlp/up_proj/MatMul_Q4", 0, "/model/embed_tokens/Gather/output_0")),
        "/model/layers.0/mlp/Mul",
    ),
    "Q and K of different values": (
        BuilderDecoder(packed_qkv=False),
        reads("/model/layers.0/attn/k_proj/MatMul_Q4", 0, "/model/embed_tokens/Gather/output_0"),
        ATTENTION,
    ),
    "unequal parts": (
        *(BuilderDecoder(gate_up="fused"), constant("/model/layers.0/mlp/gate_up_proj/Split", 1, np.array([95, 97]))),
        "/model/layers.0/mlp/gate_up_proj/Split",
    ),
    "parts of another axis": (
        *(BuilderDecoder(head_norms=True), attribute("/model/layers.0/attn/qkv_proj/Split", axis=1)),
        "/model/layers.0/attn/qkv_proj/Split",
    ),
    "parts in another order": (
        *(BuilderDecoder(head_norms=True), reads(ATTENTION, 2, "/model/layers.0/attn/qkv_proj/Split/output_1")),
        "/model/layers.0/attn/qkv_proj/Split",
    ),
    "heads of another width": (
        *(BuilderDecoder(head_norms=True), constant("/model/layers.0/attn/q_norm/Reshape_1", 1, np.array([0, -1, 32]))),
        "/model/layers.0/attn/q_norm/Reshape_1",
    ),
    "a norm over another axis": (BuilderDecoder(), attribute(INPUT_NORM, axis=1), INPUT_NORM),
    "another epsilon": (BuilderDecoder(), attribute(INPUT_NORM, epsilon=1e-3), INPUT_NORM),
    "a norm with a bias": (
        *(BuilderDecoder(), constant(SECOND_NORM, 3, np.ones(64, np.float32))),
        SECOND_NORM,
    ),
    "a norm of another kind": (BuilderDecoder(), operator(INPUT_NORM, "LayerNormalization"), INPUT_NORM),
    "a norm of another width": (BuilderDecoder(), constant(INPUT_NORM, 1, np.ones(32, np.float32)), INPUT_NORM),
    "a last norm with a bias": (BuilderDecoder(), constant(LAST_NORM, 3, np.ones(64, np.float32)), LAST_NORM),
    "a value from later": (
        BuilderDecoder(),
        reads(SECOND_NORM, 0, "/model/layers.2/final_norm_layernorm/output_0"),
        SECOND_NORM,
    ),
    "no number": (BuilderDecoder(), attribute(DOWN, block_size="32"), "block_size='32' is no number"),
    "no weights": (BuilderDecoder(), attribute(DOWN, N=0), "0 x 96 has no weights"),
    "a head of a constant": (
        BuilderDecoder(),
        constant("/lm_head/MatMul_Q4", 0, np.ones((1, 64), np.float32)),
        "/lm_head",
    ),
    "a head of an input": (BuilderDecoder(), reads("/lm_head/MatMul_Q4", 0, "past_key_values.0.key"), "a model input"),
    "a factor for each token": (
        *(BuilderDecoder(logit_scale=0.3), constant("/lm_head/Mul", 1, np.ones(48, np.float32))),
        "/lm_head/Mul",
    ),
    "two biases": (BuilderDecoder(qkv_bias=True), constant(QKV, 5, np.ones(128, np.float32)), "a second bias"),
    "a computed bias": (BuilderDecoder(qkv_bias=True), reads(QKV_BIAS, 1, f"{QKV}/output_0"), QKV_BIAS),
    "weights of three axes": (
        *(FLOATS, constant("/model/layers.1/mlp/down_proj/MatMul", 1, np.ones((1, 96, 64), np.float32))),
        "two axes are expected",
    ),
    "parts of the first axis": (
        *(BuilderDecoder(gate_up="fused"), attribute("/model/layers.0/mlp/gate_up_proj/Split", axis=None)),
        "/model/layers.0/mlp/gate_up_proj/Split",
    ),
    "heads that cannot share": (BuilderDecoder(), attribute(ATTENTION, num_heads=5), "5 heads cannot share 2"),
    "a projection of another width": (BuilderDecoder(), cache_shape("b", 2, "p", 32), "gives 128 numbers; 256 are"),
    "lengths that are long": (
        BuilderDecoder(),
        attribute(f"{MASK}/Sub/Cast", to=TensorProto.INT64),
        f"{MASK}/Sub/Cast",
    ),
    "a computed shape of levels": (TIED, reads("/model/embed_tokens/Reshape", 1, f"{MASK}/Shape/output_0"), "Reshape"),
    "levels of three axes": (TIED, reads(TIED_LOOKUP, 0, "lm_head.MatMul.weight_Q4"), "two axes are expected"),
    "computed levels": (TIED, between(TIED_LOOKUP, 0, "Neg"), "its levels are expected to be constant"),
    "blocks of other ids": (TIED, reads(TIED_LOOKUP, 1, "attention_mask"), TIED_LOOKUP),
    "the last columns": (
        BuilderDecoder(heads=5, kv_heads=1, embedding="tied"),
        constant("/model/embed_tokens/Slice", 1, np.array([16])),
        "/model/embed_tokens/Slice",
    ),
    "a computed limit of tables": (
        *(
            BuilderDecoder(long_rope_from=64),
            reads("/model/rope_caches_subgraph/Greater", 1, f"{MASK}/Gather/output_0"),
        ),
        "/model/rope_caches_subgraph/If",
    ),
    "a number divided by logits": (
        BuilderDecoder(logit_scale=0.3),
        both(operator("/lm_head/Mul", "Div"), swapped("/lm_head/Mul")),
        "/lm_head/Mul",
    ),
    "fast gelu with a bias": (
        BuilderDecoder(activation="fast_gelu"),
        constant("/model/layers.0/mlp/act_fn/FastGelu", 1, np.ones(96, np.float32)),
        "/model/layers.0/mlp/act_fn/FastGelu",
    ),
    "an MLP without attention": (
        BuilderDecoder(),
        reads("/model/layers.0/mlp/down_proj/MatMul_Q4", 0, f"{ATTENTION}/output_0"),
        "/model/layers.0/attn/GroupQueryAttention",
    ),
    "attention without an MLP": (BuilderDecoder(), without_attention, "/model/embed_tokens/Gather"),
    "no layer": (BuilderDecoder(layers=0), lambda graph: None, "has no layer"),
    "an output of another width": (
        FLOATS,
        constant(f"{FLOAT_LAYER}/attn/o_proj/MatMul", 1, WIDE),
        "64 x 64 is expected",
    ),
    "a gate of another width": (
        FLOATS,
        constant(f"{FLOAT_LAYER}/mlp/gate_proj/MatMul", 1, WIDE[:, :32]),
        "64 x 32 is expected",
    ),
    "an input of another width": (
        FLOATS,
        constant(f"{FLOAT_LAYER}/mlp/up_proj/MatMul", 1, WIDE[:32]),
        "96 x 32; 96 x 64",
    ),
    "something in the residual stream": (BuilderDecoder(), between(SECOND_NORM, 0, "Relu"), INPUT_NORM),
    "an MLP beside attention": (
        *(BuilderDecoder(), reads(SECOND_NORM, 0, INPUT_NORM + "/output_0")),
        INPUT_NORM,
    ),
    "an MLP of another place": (
        *(BuilderDecoder(), reads("/model/layers.0/mlp/gate_proj/MatMul_Q4", 0, INPUT_NORM + "/output_0")),
        "/model/layers.0/mlp/Mul",
    ),
    "something after attention": (
        BuilderDecoder(),
        between("/model/layers.0/attn/o_proj/MatMul_Q4", 0, "Relu"),
        "between",
    ),
    "fewer tokens than logits": (
        BuilderDecoder(),
        constant("/model/embed_tokens/Gather", 0, np.ones((40, 64), np.float32)),
        "'changed' is 40 x 64; 48 x 64 is expected",
    ),
    "a narrower embedding": (
        BuilderDecoder(),
        constant("/model/embed_tokens/Gather", 0, np.ones((48, 32), np.float32)),
        "'changed' is 48 x 32; 48 x 64 is expected",
    ),
    "columns looked up": (
        BuilderDecoder(),
        attribute("/model/embed_tokens/Gather", axis=1),
        "/model/embed_tokens/Gather",
    ),
    "other ids": (
        BuilderDecoder(),
        reads("/model/embed_tokens/Gather", 1, "attention_mask"),
        "/model/embed_tokens/Gather",
    ),
    "an embedding of another kind": (
        *(BuilderDecoder(), operator("/model/embed_tokens/Gather", "GatherElements")),
        "/model/embed_tokens/Gather",
    ),
    "blocks of rows": (
        *(TIED, attribute("/model/embed_tokens/GatherBlockQuantized", quantize_axis=0)),
        "/model/embed_tokens/GatherBlockQuantized",
    ),
    "half of each row": (
        BuilderDecoder(heads=5, kv_heads=1, embedding="tied"),
        constant("/model/embed_tokens/Slice", 2, np.array([32])),
        "32 columns are taken of 96",
    ),
    "logits that are masked": (BuilderDecoder(), between("/lm_head/Cast", 0, "Softmax"), "between"),
    "logits capped otherwise": (
        *(BuilderDecoder(softcap=3.0), constant("/lm_head/softcap/Mul", 1, np.array([2.0], np.float32))),
        "/lm_head/softcap/Div",
    ),
    "logits of the first row": (
        *(BuilderDecoder(prunes_head=True), constant("/lm_head/prune/Gather", 1, np.array(0))),
        "/lm_head/prune/Gather",
    ),
    "different scales of what is added": (
        *(
            BuilderDecoder(residual_scale=0.5),
            constant("/model/layers.0/residual_mul/Mul_attention", 1, np.array(1.0, np.float32)),
        ),
        "/model/layers.0/mlp/down_proj/MatMul_Q4/output_0",
    ),
    "one more output of the cache": (BuilderDecoder(), also("Abs", ["cos_cache"], "present.2.key"), "one more"),
    "a choice between computed tables": (
        *(BuilderDecoder(long_rope_from=64), operator("/model/rope_caches_subgraph/Greater", "Less")),
        "/model/rope_caches_subgraph/Greater",
    ),
}


def check_refused(path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(name)) as caught:
        read_plan(path, context_length=64)
    assert re.match(r"\w+ '|.*model\.onnx: ", caught.value.message), caught.value.message


@pytest.mark.parametrize("name", BUILT)
def test_what_is_not_known_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config, change, node = BUILT[name]
    model = make_decoder(config)
    change(model.graph)
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    check_refused(tmp_path / "model.onnx", node)


TINY: dict[str, tuple[TinyDecoder, Change, str]] = {
    "Q and K rotated by different tables": (
        TinyDecoder(rotary_outside=True, rope_bases=(100.0, 10.0)),
        reads("/RotaryEmbedding/layer.0.rotated1", 2, "cos_cache.1"),
        "/RotaryEmbedding/layer.0.rotated1",
    ),
    "Q rotated alone": (
        TinyDecoder(rotary_outside=True),
        reads("/GroupQueryAttention/layer.0.attended", 1, "layer.0.key.out"),
        "/MatMul/layer.0.key.out",
    ),
    "fewer dimensions than the tables have": (
        TinyDecoder(rotary_outside=True, rotary_size=16),
        attribute("/RotaryEmbedding/layer.0.rotated0", rotary_embedding_dim=8),
        "/RotaryEmbedding/layer.0.rotated0",
    ),
    "rows of flat levels": (
        TinyDecoder(weight_bits=8, embedding="gather_then_dequantize"),
        constant("/Gather/embedding.rows", 0, np.ones((80, 64), np.uint8)),
        "[rows, blocks, bytes] is expected",
    ),
    "scales along another axis": (
        TinyDecoder(weight_bits=8, embedding="gather_then_dequantize"),
        constant("/Unsqueeze/embedding.steps4", 1, np.array([2])),
        "/Unsqueeze/embedding.steps4",
    ),
    "rows of another rank": (
        TinyDecoder(weight_bits=8, embedding="gather_then_dequantize"),
        constant("/Reshape/embedded", 1, np.array([0, -1])),
        "/Reshape/embedded",
    ),
    "scaled rotation": (
        TinyDecoder(rotary_outside=True),
        attribute("/RotaryEmbedding/layer.0.rotated0", scale=2.0),
        "/RotaryEmbedding/layer.0.rotated0",
    ),
    "packed rotation": (
        TinyDecoder(rotary_outside=True),
        attribute("/RotaryEmbedding/layer.0.rotated0", is_packed_batching=1),
        "/RotaryEmbedding/layer.0.rotated0",
    ),
    "positions that are computed": (
        TinyDecoder(rotary_outside=True),
        between("/RotaryEmbedding/layer.0.rotated0", 1, "Abs"),
        "/RotaryEmbedding/layer.0.rotated0",
    ),
    "another zero point of rows": (
        TinyDecoder(weight_bits=8, embedding="gather_then_dequantize"),
        constant("/Sub/embedding.centred", 1, np.array(8, np.float32)),
        "/Sub/embedding.centred",
    ),
    "rows of other ids": (
        TinyDecoder(weight_bits=8, embedding="gather_then_dequantize"),
        reads("/Gather/embedding.steps", 1, "attention_mask"),
        "/Gather/embedding.steps",
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_other_rotations_and_lookups_are_refused_by_name(name: str, tmp_path: Path) -> None:
    config, change, node = TINY[name]
    path = write_decoder(tmp_path, config) / "model.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save_model(model, str(path))
    check_refused(path, node)
