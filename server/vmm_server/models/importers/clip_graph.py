"""CLIP and SigLIP as two ONNX graphs: texts and pictures to vectors of one space, projected and not normalised.

Both towers are layers of self-attention and feed-forward with the norm in front. CLIP's texts look back only, and the
end token's state is theirs; a class token in front of the patches stands for a picture. SigLIP's texts are all as long
as the longest, and the last token's state is theirs; a learnt query looks a picture's patches up. Standard operators of
opset 21 alone; names are transformers'. Architecture: arXiv:2103.00020 (CLIP), arXiv:2303.15343 (SigLIP).
"""

import numpy as np
from onnx import TensorProto

from vmm_server.models.importers.clip_config import ClipConfig, Tower
from vmm_server.models.importers.onnx_matrix import add_product
from vmm_server.models.importers.onnx_writer import ModelWriter
from vmm_server.models.importers.stored_weights import StoredWeights
from vmm_server.models.importers.transformer_graph import GraphParts

TEXT_FILE, VISION_FILE = "text_model.onnx", "vision_model.onnx"
_OPSET = 21
_QUICK = 1.702


def build_text(weights: StoredWeights, config: ClipConfig) -> ModelWriter:
    """The text graph, to be written. Raises `CorruptFile` naming a weight that is missing or of another shape."""
    writer = ModelWriter(f"{config.family} text", file_name=TEXT_FILE, standard_opset=_OPSET)
    parts = _Parts(writer, weights, config.text)
    width = config.text.width
    ids = writer.input("input_ids", TensorProto.INT64, ["batch", "length"])
    rows = parts.tensor("text_model.embeddings.token_embedding.weight", config.vocab_size, width)
    hidden = writer.node("Gather", [rows, ids], "/text/tokens")
    length = writer.node("Shape", [ids], "/text/length", start=1, end=2)
    positions = parts.tensor("text_model.embeddings.position_embedding.weight", config.max_length, width)
    used = writer.node("Slice", [positions, parts.ints(0), length, parts.ints(0)], "/text/positions")
    hidden = parts.add(hidden, used, "/text/embeddings")
    mask = _causal_mask(parts, length, config.max_length) if config.family == "clip" else None
    for index in range(config.text.num_layers):
        hidden = parts.layer(hidden, f"text_model.encoder.layers.{index}", mask)
    hidden = parts.norm(hidden, "text_model.final_layer_norm")
    if config.family == "clip":
        pooled = _end_state(parts, hidden, ids, config.eos_token_id)
        embeds = parts.linear(pooled, "text_projection", config.projection, width, has_bias=False)
    else:
        pooled = writer.node("Gather", [hidden, writer.constant(-1)], "/text/last", axis=1)
        embeds = parts.linear(pooled, "text_model.head", config.projection, width)
    return _finished(writer, embeds, "text_embeds", config.projection)


def build_vision(weights: StoredWeights, config: ClipConfig) -> ModelWriter:
    """The graph of pictures, to be written. Raises as `build_text` does."""
    writer = ModelWriter(f"{config.family} vision", file_name=VISION_FILE, standard_opset=_OPSET)
    parts = _Parts(writer, weights, config.vision)
    is_clip, width = config.family == "clip", config.vision.width
    hidden = _patches(parts, config)
    if is_clip:
        hidden = parts.norm(hidden, "vision_model.pre_layrnorm")  # as transformers spells it
    for index in range(config.vision.num_layers):
        hidden = parts.layer(hidden, f"vision_model.encoder.layers.{index}", None)
    if is_clip:
        first = writer.node("Gather", [hidden, writer.constant(0)], "/vision/first", axis=1)
        pooled = parts.norm(first, "vision_model.post_layernorm")
        embeds = parts.linear(pooled, "visual_projection", config.projection, width, has_bias=False)
    else:
        embeds = _looked_up(parts, parts.norm(hidden, "vision_model.post_layernorm"), config.vision)
    return _finished(writer, embeds, "image_embeds", config.projection if is_clip else width)


class _Parts(GraphParts):
    """Those of one tower."""

    def __init__(self, writer: ModelWriter, weights: StoredWeights, tower: Tower) -> None:
        super().__init__(writer, weights, tower.width, tower.num_heads, epsilon=tower.epsilon)
        self._tower = tower

    def layer(self, hidden: str, layer: str, mask: str | None) -> str:
        name, width = f"{layer}.self_attn", self.width
        labels = [f"{name}.{part}_proj" for part in "qkv"]
        matrix = self.matrix([f"{label}.weight" for label in labels], 3 * width, width, f"{name}.qkv.weight")
        bias = self.vectors([f"{label}.bias" for label in labels], width, f"{name}.qkv.bias")
        product = add_product(self.writer, f"/{name}.qkv", self.norm(hidden, f"{layer}.layer_norm1"), matrix)
        product = self.add(product, bias, f"/{name}.qkv")
        outputs = [f"/{label}" for label in labels]
        self.writer.node("Split", [product], f"/{name}.qkv/Split", outputs, axis=-1, num_outputs=3)
        query, key, value = (self.by_head(output, output) for output in outputs)
        context, _ = self.attention(f"/{name}", query, key, value, mask)
        hidden = self.add(hidden, self.linear(context, f"{name}.out_proj", width, width), f"/{name}")
        return self.add(hidden, self.mlp(self.norm(hidden, f"{layer}.layer_norm2"), f"{layer}.mlp"), f"/{layer}.mlp")

    def mlp(self, value: str, name: str) -> str:
        inner = self.linear(value, f"{name}.fc1", self._tower.inner, self.width)
        return self.linear(self._activation(inner, f"/{name}.activation"), f"{name}.fc2", self.width, self._tower.inner)

    def _activation(self, value: str, base: str) -> str:
        if self._tower.activation == "quick_gelu":
            scaled = self.writer.node("Mul", [value, self.writer.constant(_QUICK)], f"{base}/Mul")
            return self.writer.node("Mul", [value, self.writer.node("Sigmoid", [scaled], f"{base}/Sigmoid")], base)
        approximate = "tanh" if self._tower.activation == "gelu_tanh" else "none"
        return self.writer.node("Gelu", [value], base, approximate=approximate)


def _causal_mask(parts: GraphParts, length: str, max_length: int) -> str:
    """What is added to the score of each query and key: `[length, length]`.

    Padding needs none: it lies behind the end token, which does not look there.
    """
    later = np.triu(np.full((max_length, max_length), np.finfo(np.float32).min, np.float32), 1)
    both = parts.writer.node("Concat", [length, length], "/text/mask/ends", axis=0)
    return parts.writer.node("Slice", [parts.writer.constant(later), parts.ints(0, 0), both], "/text/mask")


def _end_state(parts: GraphParts, hidden: str, ids: str, eos_token_id: int | None) -> str:
    """The state at each text's first end token, or its greatest id: `[batch, width]`."""
    writer = parts.writer
    present = writer.input("attention_mask", TensorProto.INT64, ["batch", "length"])
    found = writer.node("Mul", [ids, present], "/text/present")  # padding is no end token, whatever its id is
    if eos_token_id is not None:
        found = writer.node("Equal", [found, writer.constant(eos_token_id)], "/text/is_end")
    found = writer.node("Cast", [found], "/text/is_end/Cast", to=TensorProto.FLOAT)
    place = writer.node("ArgMax", [found], "/text/end", axis=1, keepdims=1, select_last_index=0)
    last = writer.node("Unsqueeze", [place, parts.ints(2)], "/text/end/Unsqueeze")
    batch = writer.node("Shape", [ids], "/text/batch", start=0, end=1)
    shape = writer.node("Concat", [batch, parts.ints(1, parts.width)], "/text/end/shape", axis=0)
    index = writer.node("Expand", [last, shape], "/text/end/Expand")
    state = writer.node("GatherElements", [hidden, index], "/text/state", axis=1)
    return writer.node("Squeeze", [state, parts.ints(1)], "/text/state/Squeeze")


def _patches(parts: GraphParts, config: ClipConfig) -> str:
    """Pictures to `[batch, patches, width]`; CLIP's have the class token in front."""
    writer, base, width = parts.writer, "vision_model.embeddings", parts.width
    (height, wide), (tall, broad) = config.image_size, config.patch_size
    is_clip, count = config.family == "clip", (height // tall) * (wide // broad)
    pixels = writer.input("pixel_values", TensorProto.FLOAT, ["batch", 3, height, wide])
    inputs = [pixels, parts.tensor(f"{base}.patch_embedding.weight", width, 3, tall, broad)]
    if not is_clip:
        inputs.append(parts.vector(f"{base}.patch_embedding.bias", width))
    sizes = [tall, broad]
    value = writer.node("Conv", inputs, "/vision/patches", kernel_shape=sizes, strides=sizes)
    value = writer.node("Reshape", [value, parts.ints(0, width, count)], "/vision/patches/Reshape")
    value = writer.node("Transpose", [value], "/vision/patches/Transpose", perm=[0, 2, 1])
    if is_clip:
        batch = writer.node("Shape", [pixels], "/vision/batch", start=0, end=1)
        shape = writer.node("Concat", [batch, parts.ints(1, width)], "/vision/class/shape", axis=0)
        token = writer.node("Expand", [parts.vector(f"{base}.class_embedding", width), shape], "/vision/class")
        value = writer.node("Concat", [token, value], "/vision/tokens", axis=1)
    positions = parts.tensor(f"{base}.position_embedding.weight", count + is_clip, width)
    return parts.add(value, positions, "/vision/embeddings")


def _looked_up(parts: _Parts, hidden: str, tower: Tower) -> str:
    """SigLIP's pooling: one learnt query's attention to all patches, then a feed-forward."""
    writer, name, width = parts.writer, "vision_model.head", tower.width
    matrix = parts.tensor(f"{name}.attention.in_proj_weight", 3 * width, width)
    bias = parts.vector(f"{name}.attention.in_proj_bias", 3 * width)
    matrix = writer.node("Transpose", [matrix], "/head/in_proj", perm=[1, 0])
    ends = parts.ints(width, 2 * width)
    matrices, biases = ([f"/head/{part}/{kind}" for part in ("query", "pair")] for kind in ("weight", "bias"))
    writer.node("Split", [matrix, ends], "/head/weights", matrices, axis=1)
    writer.node("Split", [bias, ends], "/head/biases", biases, axis=0)
    probe = parts.tensor(f"{name}.probe", 1, 1, width)
    query = parts.add(writer.node("MatMul", [probe, matrices[0]], "/head/query"), biases[0], "/head/query")
    pair = parts.add(writer.node("MatMul", [hidden, matrices[1]], "/head/pair"), biases[1], "/head/pair")
    writer.node("Split", [pair], "/head/Split", ["/head/key", "/head/value"], axis=-1, num_outputs=2)
    query, key, value = (parts.by_head(each, f"{each}/by_head") for each in (query, "/head/key", "/head/value"))
    context, _ = parts.attention("/head", query, key, value)
    pooled = parts.linear(context, f"{name}.attention.out_proj", width, width)
    pooled = parts.add(pooled, parts.mlp(parts.norm(pooled, f"{name}.layernorm"), f"{name}.mlp"), "/head/mlp")
    return writer.node("Squeeze", [pooled, parts.ints(1)], "/head/Squeeze")


def _finished(writer: ModelWriter, embeds: str, name: str, width: int) -> ModelWriter:
    writer.node("Identity", [embeds], f"/{name}", [name])
    writer.output(name, TensorProto.FLOAT, ["batch", width])
    return writer
