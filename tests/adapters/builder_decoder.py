"""Random decoders of a few kilobytes in the layout of onnxruntime-genai's model builder, for a CPU.

Operators, names and shapes are those of its `builders/base.py` (and of ONNX Runtime's `MatMulNBitsQuantizer`, which
quantises what it wrote): packed Q, K, V with their bias, split where heads are normalised; levels with packed zero
points and flat scales; an embedding that is float, of 4 bits, or the head's own matrix.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BuilderDecoder:
    """What to write."""

    bits: int | None = 4
    """Of matrices; `None`: float."""
    block_size: int = 32
    is_symmetric: bool = False
    """Without zero points."""
    head_bits: int | None = None
    """Of the head, where it has others."""
    embedding: Literal["float", "int4", "uint4", "tied"] = "float"
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    packed_qkv: bool = True
    qkv_bias: bool = False
    fused_bias: bool = False
    """Biases are inputs of MatMulNBits."""
    head_norms: bool = False
    gate_up: Literal["apart", "fused"] = "apart"
    activation: Literal["silu", "quick_gelu", "gelu", "gelu_tanh", "fast_gelu"] = "silu"
    post_norms: bool = False
    """As Gemma 2, whose norms are float32 between casts."""
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None
    softcap: float | None = None
    head_bias: bool = False
    prunes_head: bool = False
    """Logits of the last row alone."""
    long_rope_from: int | None = None
    """An If chooses other rotary tables for texts that are longer."""
    layers: int = 2
    vocabulary: int = 48
    inner: int = 96
    positions: int = 64

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.heads * self.head_size


class _Builder:
    def __init__(self, config: BuilderDecoder) -> None:
        self.config, self.rng = config, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def integers(self, values: Any) -> str:
        return self.constant(f"/model/constants/INT64/{values}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"/model/constants/FLOAT/{value}", np.float32(value))

    def node(self, operator: str, inputs: list[str], name: str, outputs: list[str] | None = None, **more: Any) -> str:
        domain = "com.microsoft" if operator in _CONTRIBUTED else ""
        outputs = outputs or [f"{name}/output_0"]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **more))
        return outputs[0]

    def random(self, *shape: int, spread: float = 1.0, mean: float = 0.0) -> Floats:
        return self.rng.normal(mean, spread, shape).astype(np.float32)

    def bias_of(self, name: str, rows: int) -> str:
        return self.constant(name, self.random(rows, spread=0.5))

    def product(
        self, x: str, base: str, columns: int, rows: int, *, has_bias: bool = False, output: str | None = None
    ) -> str:
        """`x` by a matrix called after `base`, plus a bias."""
        weight, outputs = f"{base[1:].replace('/', '.')}.MatMul.weight", [output] if output else None
        bits = self.config.head_bits or self.config.bits if base == "/lm_head" else self.config.bits
        bias = self.bias_of(f"{base[1:].replace('/', '.')}.Add.bias", rows) if has_bias else ""
        is_added = bool(bias) and not self.config.fused_bias
        last = None if is_added else outputs
        if bits is None:
            values = self.random(columns, rows, spread=columns**-0.5)
            product = self.node("MatMul", [x, self.constant(weight, values)], f"{base}/MatMul", last)
        else:
            inputs = [x, *self.packed(weight, rows, columns, bits)]
            if bias and self.config.fused_bias:
                inputs = [*inputs, *[""] * (5 - len(inputs)), bias]
            sizes = {"K": columns, "N": rows, "bits": bits, "block_size": self.config.block_size}
            product = self.node("MatMulNBits", inputs, f"{base}/MatMul_Q{bits}", last, accuracy_level=0, **sizes)
        return self.node("Add", [product, bias], f"{base}/Add", outputs) if is_added else product

    def packed(self, weight: str, rows: int, columns: int, bits: int) -> list[str]:
        size = self.config.block_size
        groups = -(-columns // size)
        levels = self.rng.integers(0, 256, (rows, groups, size * bits // 8), dtype=np.uint8)
        scales = self.random(rows * groups, spread=columns**-0.5 * 2.0**-bits)
        names = [self.constant(f"{weight}_Q{bits}", levels), self.constant(f"{weight}_scales", scales)]
        if not self.config.is_symmetric:
            shape = rows * -(-groups * bits // 8)
            points = self.rng.integers(0, 256, shape, dtype=np.uint8)
            names.append(self.constant(f"{weight}_zero_points", points))
        return names

    def norm(self, x: str | tuple[str, str], place: str, *, is_last: bool = False) -> tuple[str, str]:
        """(normalised, the sum that was)."""
        name, weight = f"/model/{place}_layernorm", f"model.{place.replace('/', '.')}_layernorm.weight"
        inputs = [*((x,) if isinstance(x, str) else x), self.constant(weight, self.random(self.config.width, mean=1.0))]
        if isinstance(x, str):
            more = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
            return self.node("SimplifiedLayerNormalization", inputs, f"{name}/LayerNorm", None, **more), x
        outputs = [f"{name}/output_0", *([] if is_last else ["", "", f"{name}/output_3"])]
        self.node("SkipSimplifiedLayerNormalization", inputs, f"{name}/SkipLayerNorm", outputs, epsilon=1e-5)
        return outputs[0], outputs[-1]

    def embed(self) -> str:
        config, base, width = self.config, "/model/embed_tokens", self.config.width
        if config.embedding == "float":
            table = self.constant("model.embed_tokens.weight", self.random(config.vocabulary, width))
            value = self.node("Gather", [table, "input_ids"], f"{base}/Gather")
        elif config.embedding == "tied":
            value = self.tied(base)
        else:
            value = self.narrow(base)
        if config.embedding_scale is not None:
            value = self.node("Mul", [value, self.number(config.embedding_scale)], f"{base}/Mul")
        return value

    def tied(self, base: str) -> str:
        config, width, weight = self.config, self.config.width, "lm_head.MatMul.weight"
        if config.bits is None:
            turned = self.node("Transpose", [weight], f"{base}/Transpose", perm=[1, 0])
            return self.node("Gather", [turned, "input_ids"], f"{base}/Gather")
        bits, size = config.head_bits or config.bits, config.block_size
        padded = -(-width // size) * size
        flat = self.integers([config.vocabulary, padded * bits // 8])
        levels = self.node("Reshape", [f"{weight}_Q{bits}", flat], f"{base}/Reshape")
        self.packed(weight, config.vocabulary, width, bits)
        scales = self.constants[f"{weight}_scales"]
        scales.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(scales).reshape(config.vocabulary, -1), scales.name)
        )
        inputs = [levels, "input_ids", scales.name]
        if not config.is_symmetric:
            points = self.constants[f"{weight}_zero_points"]
            shaped = numpy_helper.to_array(points).reshape(config.vocabulary, -1)
            points.CopyFrom(numpy_helper.from_array(shaped, points.name))
            inputs.append(points.name)
        more = {"bits": bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        value = self.node("GatherBlockQuantized", inputs, f"{base}/GatherBlockQuantized", None, **more)
        if padded == width:
            return value
        return self.node("Slice", [value, *map(self.integers, ([0], [width], [-1]))], f"{base}/Slice")

    def narrow(self, base: str) -> str:
        """An embedding of 4 bits in ONNX's own types: signed ones, or unsigned ones with zero points."""
        config, weight, groups = self.config, "model.embed_tokens.weight", self.config.width // self.config.block_size
        kind = TensorProto.INT4 if config.embedding == "int4" else TensorProto.UINT4
        scales = self.constant(f"{weight}_scales", self.random(config.vocabulary, groups, spread=0.2))
        inputs = [f"{weight}_Q4", "input_ids", scales]
        shapes = {
            f"{weight}_Q4": (config.vocabulary, config.width),
            f"{weight}_zero_points": (config.vocabulary, groups),
        }
        for name, shape in shapes.items():
            raw = self.rng.integers(0, 256, -(-shape[0] * shape[1] // 2), dtype=np.uint8).tobytes()
            self.constants[name] = helper.make_tensor(name, kind, shape, raw, raw=True)
        inputs += [] if config.is_symmetric else [f"{weight}_zero_points"]
        more = {"block_size": config.block_size, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", inputs, f"{base}/Gather_Q4", None, **more)

    def tables(self) -> list[str]:
        config, names = self.config, ["cos_cache", "sin_cache"]
        if names[0] in self.constants or any(node.op_type == "If" for node in self.nodes):
            return names
        short, long = (self.angles(config.positions, base) for base in (100.0, 1000.0))
        if config.long_rope_from is None:
            return [self.constant(*each) for each in zip(names, (np.cos(short), np.sin(short)), strict=True)]
        base, length = "/model/rope_caches_subgraph", "/model/attn_mask_reformat/attn_mask_subgraph/Gather/output_0"
        longer = self.node("Greater", [length, self.integers(config.long_rope_from)], f"{base}/Greater")
        branches = {
            "then_branch": _branch("large", long),
            "else_branch": _branch("small", short[: config.long_rope_from]),
        }
        self.node("If", [longer], f"{base}/If", names, **branches)
        return names

    def angles(self, positions: int, base: float) -> NDArray[np.float64]:
        return np.outer(np.arange(positions), base ** (-np.arange(0, 1, 2 / self.config.head_size)))

    def lengths(self) -> list[str]:
        base = "/model/attn_mask_reformat/attn_mask_subgraph"
        total = self.node("ReduceSum", ["attention_mask", self.integers([1])], f"{base}/ReduceSum", keepdims=0)
        last = self.node("Sub", [total, self.integers([1])], f"{base}/Sub")
        last = self.node("Cast", [last], f"{base}/Sub/Cast", to=TensorProto.INT32)
        shape = self.node("Shape", ["attention_mask"], f"{base}/Shape")
        longest = self.node("Gather", [shape, self.integers(1)], f"{base}/Gather", axis=0)
        return [last, self.node("Cast", [longest], f"{base}/Gather/Cast", to=TensorProto.INT32)]

    def attention(self, layer: int, x: str, lengths: list[str]) -> str:
        config, base, width = self.config, f"/model/layers.{layer}/attn", self.config.width
        kv_width, has_bias = config.kv_heads * config.head_size, config.qkv_bias
        if config.packed_qkv:
            query = self.product(x, f"{base}/qkv_proj", width, width + 2 * kv_width, has_bias=has_bias)
            key = value = ""
            if config.head_norms:
                outputs = [f"{base}/qkv_proj/Split/output_{index}" for index in range(3)]
                sizes = self.integers([width, kv_width, kv_width])
                self.node("Split", [query, sizes], f"{base}/qkv_proj/Split", outputs, axis=-1)
                query, key, value = outputs
        else:
            query, key, value = (
                self.product(x, f"{base}/{part}_proj", width, rows, has_bias=has_bias)
                for part, rows in (("q", width), ("k", kv_width), ("v", kv_width))
            )
        if config.head_norms:
            query, key = self.head_norm(query, f"{base}/q_norm", width), self.head_norm(key, f"{base}/k_norm", kv_width)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        name = f"{base}/GroupQueryAttention"
        attended = self.node(
            "GroupQueryAttention",
            [query, key, value, *past, *lengths, *self.tables(), "", "", ""],
            name,
            [f"{name}/output_0", *present],
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            scale=config.head_size**-0.5,
            local_window_size=-1,
            softcap=0.0,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self.product(attended, f"{base}/o_proj", width, width)

    def head_norm(self, x: str, base: str, width: int) -> str:
        size = self.config.head_size
        split = self.node("Reshape", [x, self.integers([0, -1, size])], f"{base}/Reshape_1")
        weight = self.constant(f"{base[1:].replace('/', '.')}.layernorm.weight", self.random(size, mean=1.0))
        more = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
        name = f"{base}/SimplifiedLayerNormalization"
        normed = self.node("SimplifiedLayerNormalization", [split, weight], name, None, **more)
        return self.node("Reshape", [normed, self.integers([0, -1, width])], f"{base}/Reshape_2")

    def mlp(self, layer: int, x: str) -> str:
        config, base = self.config, f"/model/layers.{layer}/mlp"
        if config.gate_up == "fused":
            whole = self.product(x, f"{base}/gate_up_proj", config.width, 2 * config.inner)
            gate, up = (f"{base}/{part}_proj/MatMul/output_0" for part in ("gate", "up"))
            self.node("Split", [whole], f"{base}/gate_up_proj/Split", [gate, up], axis=-1, num_outputs=2)
        else:
            gate, up = (self.product(x, f"{base}/{part}_proj", config.width, config.inner) for part in ("gate", "up"))
        product = self.node("Mul", [self.activate(gate, f"{base}/act_fn"), up], f"{base}/Mul")
        return self.product(product, f"{base}/down_proj", config.inner, config.width)

    def activate(self, gate: str, base: str) -> str:
        kind = self.config.activation
        if kind == "silu":
            return self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{base}/Sigmoid")], f"{base}/Mul")
        if kind == "quick_gelu":
            return self.node("QuickGelu", [gate], f"{base}/QuickGelu", alpha=1.0)
        if kind == "fast_gelu":
            return self.node("FastGelu", [gate], f"{base}/FastGelu")
        return self.node("Gelu", [gate], f"{base}/Gelu", approximate="tanh" if kind == "gelu_tanh" else "none")

    def added(self, value: str, layer: int, place: str) -> str:
        """What attention or the MLP gives, as it is added to the residual stream."""
        config = self.config
        if config.post_norms:
            value, _ = self.norm(self.cast(value), f"layers.{layer}/post_{place}")
        if config.residual_scale is not None:
            name = f"/model/layers.{layer}/residual_mul/Mul_{place}"
            value = self.node("Mul", [value, self.number(config.residual_scale)], name)
        return value

    def cast(self, value: str) -> str:
        """As the builder casts what it normalises; here to the type that it has already."""
        return self.node("Cast", [value], f"{value}/root_input/Cast", to=TensorProto.FLOAT)

    def logits(self, x: str) -> None:
        config = self.config
        if config.prunes_head:
            last = self.node("Gather", [x, self.integers(-1)], "/lm_head/prune/Gather", axis=1)
            x = self.node("Unsqueeze", [last, self.integers([1])], "/lm_head/prune/Unsqueeze")
        value = self.product(x, "/lm_head", config.width, config.vocabulary, has_bias=config.head_bias)
        if config.logit_scale is not None:
            value = self.node("Mul", [value, self.number(config.logit_scale)], "/lm_head/Mul")
        if config.softcap is not None:
            cap = self.number(config.softcap)
            value = self.node("Div", [value, cap], "/lm_head/softcap/Div")
            value = self.node("Tanh", [value], "/lm_head/softcap/Tanh")
            value = self.node("Mul", [value, cap], "/lm_head/softcap/Mul")
        self.node("Cast", [value], "/lm_head/Cast", ["logits"], to=TensorProto.FLOAT)

    def body(self) -> None:
        config, lengths = self.config, self.lengths()
        stream: str | tuple[str, str] = self.embed()
        for layer in range(config.layers):
            normed, total = self.norm(stream, f"layers.{layer}/input")
            attended = self.added(self.attention(layer, normed, lengths), layer, "attention")
            place = "pre_feedforward" if config.post_norms else "post_attention"
            normed, total = self.norm((total, attended), f"layers.{layer}/{place}")
            stream = (total, self.added(self.mlp(layer, normed), layer, "feedforward"))
        self.logits(self.norm(stream, f"layers.{config.layers}/final_norm", is_last=True)[0])


_CONTRIBUTED = frozenset(
    {"GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "QuickGelu", "FastGelu"}
    | {"SkipSimplifiedLayerNormalization"}
)


def _branch(name: str, angles: NDArray[np.float64]) -> onnx.GraphProto:
    nodes, outputs = [], []
    for part, function in (("cos", np.cos), ("sin", np.sin)):
        output = f"{part}_cache_{name}"
        tensor = numpy_helper.from_array(function(angles).astype(np.float32))
        nodes.append(helper.make_node("Constant", [], [output], name=f"/{name}/{part}_cache/Constant", value=tensor))
        outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, angles.shape))
    return helper.make_graph(nodes, f"{name}_rope_caches_graph", [], outputs)


def make_decoder(config: BuilderDecoder) -> onnx.ModelProto:
    """The whole model, its weights inside."""
    builder = _Builder(config)
    builder.body()
    inputs: list[tuple[str, int, list[str | int]]] = [
        ("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        ("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs: list[tuple[str, int, list[str | int]]] = [
        ("logits", TensorProto.FLOAT, ["batch_size", "rows", config.vocabulary])
    ]
    for layer in range(config.layers):
        for part in ("key", "value"):
            shape: list[str | int] = ["batch_size", config.kv_heads, "past", config.head_size]
            inputs.append((f"past_key_values.{layer}.{part}", TensorProto.FLOAT, shape))
            outputs.append((f"present.{layer}.{part}", TensorProto.FLOAT, [*shape[:2], "total", shape[3]]))
    graph = helper.make_graph(
        builder.nodes,
        "main_graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        list(builder.constants.values()),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
