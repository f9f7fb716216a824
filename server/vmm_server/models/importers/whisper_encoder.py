"""Whisper's encoder as ONNX: log-mel features → the keys and values that each decoder layer looks up.

Two convolutions halve the frames, then come layers of self-attention and feed-forward with the norm in front. The
decoder's cross-attention projects the result once here, instead of at each of its steps.
"""

from onnx import TensorProto

from vmm_server.models.importers.onnx_writer import ModelWriter
from vmm_server.models.importers.stored_weights import StoredWeights
from vmm_server.models.importers.transformer_graph import OPSET, GraphParts
from vmm_server.models.importers.whisper_config import WhisperConfig

FILE = "encoder.onnx"


def build_encoder(weights: StoredWeights, config: WhisperConfig) -> ModelWriter:
    """The whole graph, to be written. Raises `CorruptFile` naming a weight that is missing or of another shape."""
    writer = ModelWriter("whisper encoder", file_name=FILE, standard_opset=OPSET)
    parts = GraphParts(writer, weights, config.d_model, config.encoder_attention_heads)
    frames = 2 * config.max_source_positions
    value = writer.input("input_features", TensorProto.FLOAT, ["batch", config.num_mel_bins, frames])
    for index, (columns, stride) in enumerate(((config.num_mel_bins, 1), (config.d_model, 2)), 1):
        value = _convolution(parts, value, f"encoder.conv{index}", columns, stride)
    value = writer.node("Transpose", [value], "/encoder/Transpose", perm=[0, 2, 1])
    positions = parts.tensor("encoder.embed_positions.weight", config.max_source_positions, config.d_model)
    hidden = parts.add(value, positions, "/encoder/positions")
    for index in range(config.encoder_layers):
        hidden = _layer(parts, hidden, f"encoder.layers.{index}", config.encoder_ffn_dim)
    hidden = parts.norm(hidden, "encoder.layer_norm")
    crossing = GraphParts(writer, weights, config.d_model, config.decoder_attention_heads)
    for index in range(config.decoder_layers):
        for kind in ("key", "value"):
            _cross(crossing, hidden, index, kind, config.max_source_positions)
    return writer


def _convolution(parts: GraphParts, value: str, name: str, columns: int, stride: int) -> str:
    """Of three frames at a time, and its GELU: `[batch, columns, frames]` to `[batch, width, frames / stride]`."""
    weight = parts.tensor(f"{name}.weight", parts.width, columns, 3)
    bias = parts.vector(f"{name}.bias", parts.width)
    value = parts.writer.node(
        "Conv", [value, weight, bias], f"/{name}", kernel_shape=[3], pads=[1, 1], strides=[stride]
    )
    return parts.gelu(value, f"/{name}/gelu")


def _layer(parts: GraphParts, hidden: str, layer: str, inner: int) -> str:
    name, width = f"{layer}.self_attn", parts.width
    value = parts.norm(hidden, f"{name}_layer_norm")
    query, key, values = (
        parts.by_head(
            parts.linear(value, f"{name}.{part}_proj", width, width, has_bias=part != "k"), f"/{name}.{part}_proj"
        )
        for part in "qkv"
    )
    context, _ = parts.attention(f"/{name}", query, key, values)
    hidden = parts.add(hidden, parts.linear(context, f"{name}.out_proj", width, width), f"/{name}")
    return parts.feed_forward(hidden, layer, inner)


def _cross(parts: GraphParts, hidden: str, index: int, kind: str, frames: int) -> None:
    """Declare `cross_key.<index>` or `cross_value.<index>`, `[batch, heads, frames, head_dim]`."""
    name = f"decoder.layers.{index}.encoder_attn.{kind[0]}_proj"
    value = parts.linear(hidden, name, parts.width, parts.width, has_bias=kind == "value")
    output = parts.by_head(value, f"/{name}", f"cross_{kind}.{index}")
    parts.writer.output(output, TensorProto.FLOAT, ["batch", parts.num_heads, frames, parts.head_size])
