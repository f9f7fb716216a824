"""Whisper's decoder as ONNX: one step of any number of sequences, each with the tokens it has to read.

Rows are padded on the left, so sequences of different lengths share a step: `attention_mask` says which columns of past
and input are there, and what a query sees is those up to its own column. The cross-attention's keys and values come
from the encoder's graph. Of all positions only those in `logit_positions` are multiplied by the vocabulary, and the
attention of the heads that are known to follow the sound is given out, for times of words.
"""

from collections.abc import Sequence

from onnx import TensorProto

from vmm_server.models.importers.onnx_matrix import FloatMatrix, add_product, add_row_lookup
from vmm_server.models.importers.onnx_writer import ModelWriter
from vmm_server.models.importers.stored_weights import StoredWeights
from vmm_server.models.importers.transformer_graph import OPSET, GraphParts
from vmm_server.models.importers.whisper_config import WhisperConfig

FILE = "decoder.onnx"
Shape = list[str | int]
_MASKED = -30000.0
"""Added to the scores of what a query must not see: nothing is left of it after the softmax, and where nothing at all
is to be seen, in padding, the shares are numbers still. A float16 holds it, for devices that compute in those."""


def build_decoder(
    weights: StoredWeights, config: WhisperConfig, alignment_heads: Sequence[tuple[int, int]]
) -> ModelWriter:
    """The whole graph, to be written; `alignment_heads` are (layer, head).

    Raises `CorruptFile` naming a weight that is missing or of another shape.
    """
    return _Builder(weights, config, alignment_heads).build()


class _Builder:
    def __init__(
        self, weights: StoredWeights, config: WhisperConfig, alignment_heads: Sequence[tuple[int, int]]
    ) -> None:
        self._config = config
        self._heads = alignment_heads
        self._writer = ModelWriter("whisper decoder", file_name=FILE, standard_opset=OPSET)
        self._parts = GraphParts(self._writer, weights, config.d_model, config.decoder_attention_heads)
        self._shares: dict[int, str] = {}

    def build(self) -> ModelWriter:
        writer, parts, config = self._writer, self._parts, self._config
        for name, length in (("input_ids", "length"), ("position_ids", "length"), ("attention_mask", "total_length")):
            writer.input(name, TensorProto.INT64, ["batch", length])
        words = parts.matrix(["decoder.embed_tokens.weight"], config.vocab_size, config.d_model)
        positions = parts.matrix(["decoder.embed_positions.weight"], config.max_target_positions, config.d_model)
        hidden = parts.add(
            add_row_lookup(writer, "/decoder.embed_tokens", "input_ids", words),
            add_row_lookup(writer, "/decoder.embed_positions", "position_ids", positions),
            "/decoder/embeddings",
        )
        mask = self._mask()
        for index in range(config.decoder_layers):
            hidden = self._layer(hidden, mask, index)
        self._logits(hidden, words)
        self._cross_attention()
        return writer

    def _mask(self) -> str:
        """What is added to the score of each query and key: `[batch, 1, length, past + length]`."""
        writer, ints = self._writer, self._parts.ints
        zero, one = writer.constant(0), writer.constant(1)
        total = writer.node("Shape", ["attention_mask"], "/mask/total", start=1, end=2)
        length = writer.node("Shape", ["input_ids"], "/mask/length", start=1, end=2)
        past = writer.node("Sub", [total, length], "/mask/past")
        scalars = [writer.node("Squeeze", [size], f"{size}/Squeeze") for size in (total, past)]
        columns = writer.node("Range", [zero, scalars[0], one], "/mask/columns")
        own = writer.node("Range", [scalars[1], scalars[0], one], "/mask/own")
        own = writer.node("Unsqueeze", [own, ints(1)], "/mask/own/Unsqueeze")
        is_before = writer.node("LessOrEqual", [columns, own], "/mask/LessOrEqual")
        is_there = writer.node("Cast", ["attention_mask"], "/mask/Cast", to=TensorProto.BOOL)
        is_there = writer.node("Unsqueeze", [is_there, ints(1, 2)], "/mask/Unsqueeze")
        is_seen = writer.node("And", [is_there, is_before], "/mask/And")
        return writer.node("Where", [is_seen, writer.constant(0.0), writer.constant(_MASKED)], "/mask")

    def _layer(self, hidden: str, mask: str, index: int) -> str:
        parts, layer = self._parts, f"decoder.layers.{index}"
        width, name = parts.width, f"{layer}.self_attn"
        query, key, value = self._projected(parts.norm(hidden, f"{name}_layer_norm"), name)
        key, value = self._cached("key", key, index), self._cached("value", value, index)
        context, _ = parts.attention(f"/{name}", query, key, value, mask)
        hidden = parts.add(hidden, parts.linear(context, f"{name}.out_proj", width, width), f"/{name}")
        name = f"{layer}.encoder_attn"
        query = parts.linear(parts.norm(hidden, f"{name}_layer_norm"), f"{name}.q_proj", width, width)
        shape: Shape = ["batch", parts.num_heads, self._config.max_source_positions, parts.head_size]
        key, value = (
            self._writer.input(f"cross_{kind}.{index}", TensorProto.FLOAT, shape) for kind in ("key", "value")
        )
        context, self._shares[index] = parts.attention(f"/{name}", parts.by_head(query, f"/{name}.q_proj"), key, value)
        hidden = parts.add(hidden, parts.linear(context, f"{name}.out_proj", width, width), f"/{name}")
        return parts.feed_forward(hidden, layer, self._config.decoder_ffn_dim)

    def _projected(self, value: str, name: str) -> list[str]:
        """Query, key and value by head, by one product: a step of few tokens is as quick as it is short of nodes."""
        parts, writer = self._parts, self._writer
        width, base = parts.width, f"/{name}.qkv_proj"
        weights = [f"{name}.{part}_proj.weight" for part in "qkv"]
        matrix = parts.matrix(weights, 3 * width, width, f"{name}.qkv_proj.weight")
        bias = parts.vectors([f"{name}.q_proj.bias", None, f"{name}.v_proj.bias"], width, f"{name}.qkv_proj.bias")
        projected = parts.add(add_product(writer, base, value, matrix), bias, base)
        shape = parts.ints(0, 0, 3, parts.num_heads, parts.head_size)
        projected = writer.node("Reshape", [projected, shape], f"{base}/Reshape")
        projected = writer.node("Transpose", [projected], f"{base}/Transpose", perm=[2, 0, 3, 1, 4])
        return [
            writer.node("Gather", [projected, writer.constant(which)], f"{base}/Gather/{part}", axis=0)
            for which, part in enumerate("qkv")
        ]

    def _cached(self, kind: str, value: str, index: int) -> str:
        """What is known of earlier tokens, and of these."""
        parts, writer = self._parts, self._writer
        shape: Shape = ["batch", parts.num_heads, "past_length", parts.head_size]
        past = writer.input(f"past_{kind}.{index}", TensorProto.FLOAT, shape)
        present = writer.node("Concat", [past, value], f"/present_{kind}.{index}", [f"present_{kind}.{index}"], axis=2)
        shape = ["batch", parts.num_heads, "total_length", parts.head_size]
        return writer.output(present, TensorProto.FLOAT, shape)

    def _logits(self, hidden: str, words: FloatMatrix) -> None:
        writer, parts = self._writer, self._parts
        positions = writer.input("logit_positions", TensorProto.INT64, ["batch", "num_logits"])
        indices = writer.node("Unsqueeze", [positions, parts.ints(2)], "/logits/Unsqueeze")
        hidden = writer.node("GatherND", [hidden, indices], "/logits/GatherND", batch_dims=1)
        logits = add_product(writer, "/logits", parts.norm(hidden, "decoder.layer_norm"), words, "logits")
        writer.output(logits, TensorProto.FLOAT, ["batch", "num_logits", self._config.vocab_size])

    def _cross_attention(self) -> None:
        """Declare the softmax of the alignment heads, in their order."""
        writer, parts = self._writer, self._parts
        by_layer = sorted(range(len(self._heads)), key=lambda which: self._heads[which][0])
        chosen = []
        for layer in sorted({layer for layer, _ in self._heads}):
            heads = parts.ints(*(self._heads[which][1] for which in by_layer if self._heads[which][0] == layer))
            base = f"/cross_attention/{layer}"
            chosen.append(writer.node("Gather", [self._shares[layer], heads], base, axis=1))
        joined = writer.node("Concat", chosen, "/cross_attention/Concat", axis=1)
        order = parts.ints(*(by_layer.index(which) for which in range(len(by_layer))))
        output = writer.node("Gather", [joined, order], "/cross_attention/Gather", ["cross_attention"], axis=1)
        shape: Shape = ["batch", len(self._heads), "length", self._config.max_source_positions]
        writer.output(output, TensorProto.FLOAT, shape)
