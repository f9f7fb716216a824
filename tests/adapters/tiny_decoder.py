"""Random decoders of a few kilobytes, in the ONNX form that onnxruntime-genai serves.

`write_decoder(folder, TinyDecoder(...))` writes `model.onnx` and `genai_config.json`; `dense_logits` runs the same
file on ONNX Runtime without any cache, which is the reference for every paged run.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class TinyDecoder:
    """What to write. The defaults are a llama with two query heads to a key head."""

    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 32
    hidden_size: int = 64
    intermediate_size: int = 96
    vocab_size: int = 80
    context_length: int = 256
    packed_qkv: bool = False
    """One matrix product gives query, key and value; GroupQueryAttention gets empty key and value inputs."""
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = (-1,)
    """Sliding window of layer i is `windows[i % len(windows)]`; -1 is none."""
    rope_bases: tuple[float, ...] = (10_000.0,)
    """Each layer takes its own cos and sin cache from these, in turn."""
    rotary_size: int | None = None
    """Rotated part of the head; `None` is all of it."""
    rotary_interleaved: bool = False
    rotary_outside: bool = False
    """RotaryEmbedding nodes fed by a `position_ids` input, and GroupQueryAttention with do_rotary=0."""
    rotary_nowhere: bool = False
    """GroupQueryAttention with do_rotary=0 and nothing in its place."""
    positions_given: bool = False
    """GroupQueryAttention rotates, by a `position_ids` input of its own."""
    half: bool = False
    """Everything is float16."""
    scale: float | None = None
    softcap: float = 0.0
    weight_bits: int | None = None
    """4 or 8: MatMulNBits in blocks of 32. `None`: float MatMul."""
    float_zero_points: bool = False
    embedding: str = "float"
    """`float`, `gather_block_quantized_4`, `gather_block_quantized_8` or `gather_then_dequantize`."""
    tied: bool = False
    """The lm_head shares the embedding's packed bytes."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further attributes of every GroupQueryAttention."""


BLOCK = 32

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""OpenVINO properties that leave nothing rounded, whatever the CPU prefers."""


class _Writer:
    def __init__(self, config: TinyDecoder, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        name = f"/{operator}/{outputs[0]}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def random(self, *shape: int, spread: float = 1.0) -> FloatArray:
        return self.rng.normal(0, spread, shape).astype(np.float32)

    def linear(self, x: str, name: str, width: int, rows: int) -> str:
        """`x [.., width] -> [.., rows]`."""
        bits = self.config.weight_bits
        if bits is None:
            weight = self.random(width, rows, spread=width**-0.5)
            return self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], [f"{name}.out"])
        blocks = width // BLOCK
        packed = self.rng.integers(0, 256, (rows, blocks, BLOCK * bits // 8), dtype=np.uint8)
        scales = np.abs(self.random(rows, blocks, spread=width**-0.5 * 2.0**-bits)) + 1e-4
        inputs = [x, self.constant(f"{name}.packed", packed), self.constant(f"{name}.scales", scales)]
        if self.config.float_zero_points:
            middle = 2.0 ** (bits - 1)
            points = middle + self.random(rows, blocks)
            inputs.append(self.constant(f"{name}.zero_points", points))
        return self.matmul_nbits(inputs, name, width, rows, bits)

    def matmul_nbits(self, inputs: list[str], name: str, width: int, rows: int, bits: int) -> str:
        attributes = {"K": width, "N": rows, "bits": bits, "block_size": BLOCK, "accuracy_level": 0}
        return self.node("MatMulNBits", inputs, [f"{name}.out"], "com.microsoft", **attributes)

    def norm(self, x: str, name: str, width: int) -> str:
        weight = self.constant(f"{name}.weight", 1 + self.random(width, spread=0.1))
        return self.node("SimplifiedLayerNormalization", [x, weight], [f"{name}.out"], axis=-1, epsilon=1e-6)

    def head_norm(self, x: str, name: str, heads: int) -> str:
        """Normalise each head on its own, as qwen3 and gemma3 do with queries and keys."""
        size = self.config.head_size
        split = self.node("Reshape", [x, self.constant("per_head", np.array([0, -1, size]))], [f"{name}.split"])
        normed = self.norm(split, name, size)
        whole = self.constant(f"merged_{heads}", np.array([0, -1, heads * size]))
        return self.node("Reshape", [normed, whole], [f"{name}.merged"])

    def bias(self, x: str, name: str, width: int) -> str:
        bias = self.constant(f"{name}.bias", self.random(width, spread=0.5))
        return self.node("Add", [x, bias], [f"{name}.biased"])

    def embed(self) -> str:
        config, width = self.config, self.config.hidden_size
        if config.embedding == "float":
            table = self.constant("embedding", self.random(config.vocab_size, width))
            return self.node("Gather", [table, "input_ids"], ["embedded"], axis=0)
        bits = 4 if config.embedding.endswith("_4") else 8
        blocks = width // BLOCK
        packed = self.rng.integers(0, 256, (config.vocab_size, blocks, BLOCK * bits // 8), dtype=np.uint8)
        scales = np.abs(self.random(config.vocab_size, blocks, spread=2.0**-bits)) + 1e-3
        self.constant("embedding.scales", scales)
        if config.embedding == "gather_then_dequantize":
            self.constant("embedding.packed", packed)
            rows = self.node("Gather", ["embedding.packed", "input_ids"], ["embedding.rows"], axis=0)
            rows = self.node("Cast", [rows], ["embedding.float"], to=TensorProto.FLOAT)
            middle = self.constant("middle", np.float32(128) * np.ones((), np.float32))
            centred = self.node("Sub", [rows, middle], ["embedding.centred"])
            steps = self.node("Gather", ["embedding.scales", "input_ids"], ["embedding.steps"], axis=0)
            last = self.constant("last_axis", np.array([3]))
            steps = self.node("Unsqueeze", [steps, last], ["embedding.steps4"])
            scaled = self.node("Mul", [centred, steps], ["embedding.scaled"])
            return self.node("Reshape", [scaled, self.constant("flat", np.array([0, 0, width]))], ["embedded"])
        self.constant("embedding.packed", packed)
        flat = self.constant("embedding.flat", packed.reshape(config.vocab_size, -1))
        attributes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        inputs = [flat, "input_ids", "embedding.scales"]
        return self.node("GatherBlockQuantized", inputs, ["embedded"], "com.microsoft", **attributes)

    def lm_head(self, x: str) -> str:
        config = self.config
        if not config.tied:
            return self.linear(x, "lm_head", config.hidden_size, config.vocab_size)
        bits = 4 if config.embedding.endswith("_4") else 8
        inputs = [x, "embedding.packed", "embedding.scales"]
        return self.matmul_nbits(inputs, "lm_head", config.hidden_size, config.vocab_size, bits)

    def rotary_caches(self, layer: int) -> list[str]:
        config = self.config
        index = layer % len(config.rope_bases)
        size = config.rotary_size or config.head_size
        frequencies = config.rope_bases[index] ** (-np.arange(0, size, 2) / size)
        angles = np.outer(np.arange(config.context_length), frequencies)
        return [
            self.constant(f"{name}_cache.{index}", function(angles).astype(np.float32))
            for name, function in (("cos", np.cos), ("sin", np.sin))
        ]

    def attention(self, x: str, layer: int) -> str:
        config, prefix = self.config, f"layer.{layer}"
        query = config.num_heads * config.head_size
        key = config.num_kv_heads * config.head_size
        if config.packed_qkv:
            packed = self.linear(x, f"{prefix}.qkv", config.hidden_size, query + 2 * key)
            if config.qkv_bias:
                packed = self.bias(packed, f"{prefix}.qkv", query + 2 * key)
            projected = [packed, "", ""]
        else:
            sizes = (query, key, key)
            names = [f"{prefix}.{part}" for part in ("query", "key", "value")]
            projected = [self.linear(x, n, config.hidden_size, size) for n, size in zip(names, sizes, strict=True)]
            if config.qkv_bias:
                projected = [self.bias(p, n, s) for p, n, s in zip(projected, names, sizes, strict=True)]
        if config.qk_norm:
            for index, heads in ((0, config.num_heads), (1, config.num_kv_heads)):
                projected[index] = self.head_norm(projected[index], f"{prefix}.norm{index}", heads)
        if config.rotary_outside:
            projected = self.rotate_outside(projected, layer)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        rotary = [] if config.rotary_outside or config.rotary_nowhere else self.rotary_caches(layer)
        positions = ["position_ids"] if config.positions_given else []
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        attended = self.node(
            "GroupQueryAttention",
            [*projected, *past, "last_positions", "total_length", *rotary, *positions],
            [f"{prefix}.attended", *present],
            "com.microsoft",
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            do_rotary=0 if config.rotary_outside or config.rotary_nowhere else 1,
            rotary_interleaved=int(config.rotary_interleaved),
            scale=config.scale or config.head_size**-0.5,
            local_window_size=config.windows[layer % len(config.windows)],
            softcap=config.softcap,
            **config.extra,
        )
        return self.linear(attended, f"{prefix}.output", query, config.hidden_size)

    def rotate_outside(self, projected: list[str], layer: int) -> list[str]:
        config = self.config
        caches = self.rotary_caches(layer)
        rotated = [
            self.node(
                "RotaryEmbedding",
                [x, "position_ids", *caches],
                [f"layer.{layer}.rotated{index}"],
                "com.microsoft",
                interleaved=int(config.rotary_interleaved),
                num_heads=heads if config.rotary_size else 0,
                rotary_embedding_dim=config.rotary_size or 0,
            )
            for index, (x, heads) in enumerate(zip(projected[:2], (config.num_heads, config.num_kv_heads), strict=True))
        ]
        return [*rotated, projected[2]]

    def feed_forward(self, x: str, layer: int) -> str:
        config, prefix = self.config, f"layer.{layer}"
        gate = self.linear(x, f"{prefix}.gate", config.hidden_size, config.intermediate_size)
        up = self.linear(x, f"{prefix}.up", config.hidden_size, config.intermediate_size)
        gate = self.node("Mul", [gate, self.node("Sigmoid", [gate], [f"{prefix}.sigmoid"])], [f"{prefix}.silu"])
        product = self.node("Mul", [gate, up], [f"{prefix}.product"])
        return self.linear(product, f"{prefix}.down", config.intermediate_size, config.hidden_size)

    def body(self) -> None:
        config = self.config
        one = self.constant("one", np.array([1]))
        total = self.node("ReduceSum", ["attention_mask", one], ["mask_sum"], keepdims=1)
        last = self.node("Sub", [total, one], ["last_position"])
        self.node("Cast", [last], ["last_positions"], to=TensorProto.INT32)
        shape = self.node("Shape", ["attention_mask"], ["mask_shape"])
        length = self.node("Gather", [shape, self.constant("index1", np.array(1))], ["mask_length"], axis=0)
        self.node("Cast", [length], ["total_length"], to=TensorProto.INT32)
        residual = self.embed()
        for layer in range(config.num_layers):
            normed = self.norm(residual, f"layer.{layer}.input_norm", config.hidden_size)
            attended = self.attention(normed, layer)
            weight = self.constant(f"layer.{layer}.post_norm.weight", 1 + self.random(config.hidden_size, spread=0.1))
            outputs = [f"layer.{layer}.post_norm", "", "", f"layer.{layer}.residual"]
            inputs = [residual, attended, weight]
            self.node("SkipSimplifiedLayerNormalization", inputs, outputs, "com.microsoft", epsilon=1e-6)
            fed = self.feed_forward(f"layer.{layer}.post_norm", layer)
            residual = self.node("Add", [f"layer.{layer}.residual", fed], [f"layer.{layer}.summed"])
        logits = self.lm_head(self.norm(residual, "final_norm", config.hidden_size))
        self.node("Identity", [logits], ["logits"])

    def model(self) -> onnx.ModelProto:
        config = self.config
        self.body()
        inputs: list[tuple[str, int, list[Any]]] = [
            ("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            ("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        if config.rotary_outside or config.positions_given:
            inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
        outputs: list[tuple[str, int, list[Any]]] = [
            ("logits", TensorProto.FLOAT, ["batch", "sequence", config.vocab_size])
        ]
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                shape = ["batch", config.num_kv_heads, "past", config.head_size]
                inputs.append((f"past_key_values.{layer}.{part}", TensorProto.FLOAT, shape))
                outputs.append((f"present.{layer}.{part}", TensorProto.FLOAT, [*shape[:2], "total", shape[3]]))
        graph = helper.make_graph(
            self.nodes,
            "tiny_decoder",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*each) for each in outputs],
            list(self.initializers.values()),
        )
        if config.half:
            _halve(graph)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _halve(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def write_decoder(folder: Path, config: TinyDecoder, *, seed: int = 0, external_data: bool = False) -> Path:
    """Write `model.onnx` and `genai_config.json` into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    location = "model.onnx.data" if external_data else None
    onnx.save_model(
        _Writer(config, seed).model(),
        str(folder / "model.onnx"),
        save_as_external_data=external_data,
        location=location,
        size_threshold=64,
    )
    decoder = {"filename": "model.onnx", "head_size": config.head_size, "num_hidden_layers": config.num_layers}
    described = {"context_length": config.context_length, "vocab_size": config.vocab_size, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": described}), encoding="utf-8")
    return folder


def dense_logits(folder: Path, config: TinyDecoder, tokens: list[int]) -> FloatArray:
    """Logits `[len(tokens), vocab]` of one whole sequence, computed at once by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
    feed: dict[str, NDArray[Any]] = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
    }
    if config.rotary_outside or config.positions_given:
        feed["position_ids"] = np.arange(len(tokens), dtype=np.int64)[None]
    for layer in range(config.num_layers):
        for part in ("key", "value"):
            shape = (1, config.num_kv_heads, 0, config.head_size)
            feed[f"past_key_values.{layer}.{part}"] = np.zeros(shape, np.float32)
    logits: FloatArray = session.run(["logits"], feed)[0]
    return logits[0]
