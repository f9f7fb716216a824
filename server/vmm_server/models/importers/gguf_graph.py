"""The decoder as an ONNX graph, in the shape that onnxruntime-genai's own builder gives it.

    input_ids → embedding → layers x [norm → Q, K, V → GroupQueryAttention → norm → gated MLP] → norm → lm_head → logits

Names, operators and inputs follow that builder, so what reads its models reads these: `SimplifiedLayerNormalization`
with the residual sum fused, `GroupQueryAttention` that rotates Q and K itself and keeps the cache, `MatMulNBits`.
Only the embedding differs: packed rows are gathered and only those are dequantised, with standard operators,
so that a tied embedding and lm_head share one packed copy.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_config import DecoderConfig, RopeConfig
from vmm_server.models.importers.gguf_reader import TensorEntry
from vmm_server.models.importers.gguf_weights import add_matrix, read_vector
from vmm_server.models.importers.onnx_matrix import Matrix, add_product, add_row_lookup
from vmm_server.models.importers.onnx_writer import MICROSOFT, ModelWriter, TensorSpec
from vmm_server.models.importers.rope import inverse_frequencies, rope_magnitude, rope_tables
from vmm_server.models.importers.weights_source import WeightsSource

MAX_ROPE_TABLE_BYTES = 256 * 1024**2
"""Bounds the context length: 131,072 positions of the largest heads known (256), with two tables."""
ROPE_FACTORS = "rope_freqs.weight"
LONG_ROPE_FACTORS, SHORT_ROPE_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
MAX_FREQUENCY = 1000.0
"""Radians a position; 1 is usual for the fastest pair."""
MAX_MAGNITUDE = 100.0


def max_positions(config: DecoderConfig) -> int:
    """Positions that the rotary tables hold: the context length, unless they would grow beyond all measure."""
    tables = [config.rope] if config.local_rope is None else [config.rope, config.local_rope]
    position_bytes = sum(4 * rope.dimensions for rope in tables)  # cosine and sine of each pair, float32
    return min(config.context_length, MAX_ROPE_TABLE_BYTES // position_bytes)


def build_decoder(writer: ModelWriter, file: WeightsSource, config: DecoderConfig) -> int:
    """Add the whole decoder to `writer`; returns the vocabulary's size (rows of the embedding).

    Raises `CorruptFile` naming a tensor that is missing or of a wrong shape, `ImportFailed` naming one whose type
    is not read or that this decoder has no use for (leaving it out would change what the model says).
    """
    return _DecoderBuilder(writer, file, config).build()


class _DecoderBuilder:
    def __init__(self, writer: ModelWriter, file: WeightsSource, config: DecoderConfig) -> None:
        self._writer, self._file, self._config = writer, file, config
        self._unused = set(file.tensors)
        self._rope_row_order = _rope_row_order(config) if config.traits.interleaved_rope else None

    def build(self) -> int:
        config, writer = self._config, self._writer
        ids = writer.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        mask = writer.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
        vocab_size = self._tensor("token_embd.weight", (None, config.hidden_size)).shape[0]
        embedding = self._matrix("token_embd.weight", "model.embed_tokens", (vocab_size, config.hidden_size))
        self._lengths = self._sequence_lengths(mask)
        self._tables = self._rope_tables("cos_cache", "sin_cache", config.rope)
        self._local_tables = self._tables
        if config.local_rope is not None:
            self._local_tables = self._rope_tables("cos_cache_local", "sin_cache_local", config.local_rope)
        residual, delta = self._embed(ids, embedding), ""
        for layer in range(config.num_layers):
            residual, delta = self._layer(layer, residual, delta)
        final = f"/model/layers.{config.num_layers}/final_norm_layernorm"
        hidden, _ = self._add_and_norm(final, "output_norm.weight", residual, delta)
        self._lm_head(hidden, embedding)
        if self._unused:
            raise ImportFailed(
                f"{self._file.path}: has tensors that a {config.family} decoder has no place for, "
                f"such as {self._file.file_name(min(self._unused))!r}",
                hint="this model is a variant that is not supported yet",
            )
        return vocab_size

    def _tensor(self, name: str, shape: tuple[int | None, ...]) -> TensorEntry:
        """Look a tensor up; `None` in `shape` takes any size."""
        tensor = self._file.tensors.get(name)
        if tensor is None:
            raise CorruptFile(
                f"{self._file.path}: lacks the tensor {self._file.file_name(name)!r}", hint="fetch the file again"
            )
        if len(tensor.shape) != len(shape) or any(
            wanted not in (None, actual) for wanted, actual in zip(shape, tensor.shape, strict=True)
        ):
            wanted_text = "x".join("any" if size is None else str(size) for size in shape)
            actual_text = "x".join(map(str, tensor.shape))
            raise CorruptFile(
                f"{self._file.path}: tensor {tensor.name!r} is {actual_text}, {wanted_text} is expected",
                hint="its keys and tensors do not belong together: get another file of this model",
            )
        self._unused.discard(name)
        return tensor

    def _matrix(
        self, tensor: str, name: str, shape: tuple[int, int], row_order: NDArray[np.intp] | None = None
    ) -> Matrix:
        return add_matrix(self._writer, self._file, self._tensor(tensor, shape), name, row_order)

    def _vector(self, tensor: str, name: str, size: int, row_order: NDArray[np.intp] | None = None) -> str:
        """A norm's weight or a bias as a float32 initialiser `[size]`."""
        vector = read_vector(self._file, self._tensor(tensor, (size,)))
        if row_order is not None:
            vector = vector.reshape(-1, len(row_order))[:, row_order].reshape(-1)
        self._writer.stream([TensorSpec(name, TensorProto.FLOAT, (size,))], lambda: [(vector,)])
        return name

    def _sequence_lengths(self, mask: str) -> tuple[str, str]:
        """`seqlens_k` (positions before the last, a sequence) and `total_sequence_length`, from the mask."""
        writer, base = self._writer, "/model/attn_mask_reformat/attn_mask_subgraph"
        one = writer.constant(np.array([1], np.int64))
        total = writer.node("ReduceSum", [mask, one], f"{base}/ReduceSum", keepdims=0)
        last = writer.node("Sub", [total, one], f"{base}/Sub")
        last = writer.node("Cast", [last], f"{base}/Sub/Cast", to=TensorProto.INT32)
        shape = writer.node("Shape", [mask], f"{base}/Shape")
        longest = writer.node("Gather", [shape, writer.constant(1)], f"{base}/Gather", axis=0)
        return last, writer.node("Cast", [longest], f"{base}/Gather/Cast", to=TensorProto.INT32)

    def _rope_tables(self, cosines: str, sines: str, rope: RopeConfig) -> tuple[str, str]:
        """Announce the tables, `[positions, dimensions / 2]`. A file's rotary factors apply where its scaling does."""
        positions = max_positions(self._config)
        factors = self._rope_factors(rope) if rope is self._config.rope else None
        with np.errstate(all="ignore"):  # what is no number is refused below
            frequencies, magnitude = inverse_frequencies(rope, factors), rope_magnitude(rope)
        if not (frequencies >= 0).all() or frequencies.max() > MAX_FREQUENCY or not 0 < magnitude < MAX_MAGNITUDE:
            raise CorruptFile(
                f"{self._file.path}: its rope keys or factors give no usable rotation",
                hint="fetch the file again, or get one made by llama.cpp's converter",
            )
        specs = [TensorSpec(name, TensorProto.FLOAT, (positions, rope.dimensions // 2)) for name in (cosines, sines)]
        self._writer.stream(specs, lambda: rope_tables(frequencies, magnitude, positions))
        return cosines, sines

    def _rope_factors(self, rope: RopeConfig) -> NDArray[np.float32] | None:
        """What the pairs' frequencies are divided by, float32 `[dimensions / 2]`.

        LongRoPE (arXiv 2402.13753) has two sets, for texts within the original context and beyond. Cached keys stay
        rotated as they are and texts share them, so there is one set for all: the one for the model's full context,
        as llama.cpp chooses (`llama_model::get_rope_factors`).
        """
        is_long = self._config.context_length > rope.original_context_length
        chosen = None
        for name, applies in ((ROPE_FACTORS, True), (LONG_ROPE_FACTORS, is_long), (SHORT_ROPE_FACTORS, not is_long)):
            if name in self._file.tensors:
                entry = self._tensor(name, (rope.dimensions // 2,))
                chosen = read_vector(self._file, entry) if applies and chosen is None else chosen
        if chosen is None and rope.scaling == "longrope":
            self._tensor(LONG_ROPE_FACTORS if is_long else SHORT_ROPE_FACTORS, (rope.dimensions // 2,))
        return chosen

    def _embed(self, ids: str, matrix: Matrix) -> str:
        rows = add_row_lookup(self._writer, "/model/embed_tokens", ids, matrix)
        if (scale := self._config.embedding_scale) is not None:
            rows = self._writer.node("Mul", [rows, self._writer.constant(scale)], "/model/embed_tokens/Mul")
        return rows

    def _layer(self, layer: int, residual: str, delta: str) -> tuple[str, str]:
        """One block: (residual stream, what is still to be added to it), before and after."""
        base, block, traits = f"/model/layers.{layer}", f"blk.{layer}", self._config.traits
        hidden, residual = self._input(f"{base}/input_layernorm", f"{block}.attn_norm.weight", residual, delta)
        post_norm = (f"{base}/post_attention_layernorm", f"{block}.post_attention_norm.weight")
        delta = self._output(self._attention(layer, hidden), f"{base}/attn", post_norm)
        norm = f"{base}/{'pre_feedforward' if traits.post_norms else 'post_attention'}_layernorm"
        hidden, residual = self._input(norm, f"{block}.ffn_norm.weight", residual, delta)
        post_norm = (f"{base}/post_feedforward_layernorm", f"{block}.post_ffw_norm.weight")
        return residual, self._output(self._mlp(layer, hidden), f"{base}/mlp", post_norm)

    def _input(self, base: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """(what attention or MLP takes, the residual stream)."""
        if self._config.traits.pre_norms:
            return self._add_and_norm(base, weight, residual, delta)
        total = self._writer.node("Add", [residual, delta], f"{base}/Add") if delta else residual
        return total, total

    def _output(self, delta: str, base: str, post_norm: tuple[str, str]) -> str:
        """What attention or MLP gave, as it is added to the residual stream."""
        if self._config.traits.post_norms:
            delta, _ = self._add_and_norm(*post_norm, delta, "")
        if (scale := self._config.residual_scale) is not None:
            delta = self._writer.node("Mul", [delta, self._writer.constant(scale)], f"{base}/residual_scale/Mul")
        return delta

    def _add_and_norm(self, base: str, weight: str, residual: str, delta: str) -> tuple[str, str]:
        """RMS-normalise `residual + delta`; returns (normalised, the sum). An empty `delta` adds nothing."""
        size = self._config.hidden_size
        name = self._vector(weight, base[1:].replace("/", ".") + ".weight", size)
        if not delta:
            return self._rms_norm(f"{base}/LayerNorm", residual, name), residual
        outputs = [f"{base}/SkipLayerNorm/output_0", "", "", f"{base}/SkipLayerNorm/output_3"]
        self._writer.node(
            "SkipSimplifiedLayerNormalization",
            [residual, delta, name],
            f"{base}/SkipLayerNorm",
            outputs,
            domain=MICROSOFT,
            epsilon=self._config.epsilon,
        )
        return outputs[0], outputs[3]

    def _rms_norm(self, name: str, value: str, weight: str) -> str:
        return self._writer.node(
            "SimplifiedLayerNormalization", [value, weight], name, axis=-1, epsilon=self._config.epsilon, stash_type=1
        )

    def _attention(self, layer: int, hidden: str) -> str:
        config, writer, base, block = self._config, self._writer, f"/model/layers.{layer}/attn", f"blk.{layer}"
        query, key, value = self._query_key_value(base, block, hidden)
        windowed, rotated = config.windowed_layers[layer], layer not in config.unrotated_layers
        tables = self._local_tables if windowed else self._tables
        past, present = self._cache(layer)
        attended = writer.node(
            "GroupQueryAttention",
            [query, key, value, *past, *self._lengths, *(tables if rotated else ())],
            f"{base}/GroupQueryAttention",
            [f"{base}/GroupQueryAttention/output_0", *present],
            domain=MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.attention_scale,
            local_window_size=config.window if windowed and config.window else -1,
            do_rotary=int(rotated),
            rotary_interleaved=0,
            **({} if config.attention_softcap is None else {"softcap": config.attention_softcap}),
        )
        return self._linear(
            f"{base}/o_proj", f"{block}.attn_output", attended, config.hidden_size, config.num_heads * config.head_size
        )

    def _query_key_value(self, base: str, block: str, hidden: str) -> tuple[str, str, str]:
        """The projections of `hidden`, float32 `[batch, sequence, heads * head size]` each, normalised."""
        config, order, width = self._config, self._rope_row_order, self._config.hidden_size
        query_size, kv_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        if config.traits.fused_projections and f"{block}.attn_qkv.weight" in self._file.tensors:
            sizes = (query_size, kv_size, kv_size)
            fused = self._linear(f"{base}/qkv_proj", f"{block}.attn_qkv", hidden, sum(sizes), width)
            query, key, value = self._split(f"{base}/qkv_proj/Split", fused, sizes)
        else:
            query = self._linear(f"{base}/q_proj", f"{block}.attn_q", hidden, query_size, width, order)
            key = self._linear(f"{base}/k_proj", f"{block}.attn_k", hidden, kv_size, width, order)
            value = self._linear(f"{base}/v_proj", f"{block}.attn_v", hidden, kv_size, width)
        if config.traits.head_norms or config.traits.projection_norms:
            norm = self._head_norm if config.traits.head_norms else self._projection_norm
            query = norm(f"{base}/q_norm", f"{block}.attn_q_norm.weight", query, query_size)
            key = norm(f"{base}/k_norm", f"{block}.attn_k_norm.weight", key, kv_size)
        return query, key, value

    def _split(self, name: str, value: str, sizes: tuple[int, ...]) -> list[str]:
        """Cut the last axis into parts."""
        outputs = [f"{name}/output_{index}" for index in range(len(sizes))]
        self._writer.node("Split", [value, self._writer.constant(np.array(sizes, np.int64))], name, outputs, axis=-1)
        return outputs

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        """Declare a layer's keys and values: (inputs, outputs), float32 `[batch, kv heads, positions, head]`."""
        past, present = [], []
        for kind in ("key", "value"):
            heads, head_size = self._config.num_kv_heads, self._config.head_size
            past.append(f"past_key_values.{layer}.{kind}")
            present.append(f"present.{layer}.{kind}")
            for declare, name, length in (
                (self._writer.input, past[-1], "past_sequence_length"),
                (self._writer.output, present[-1], "total_sequence_length"),
            ):
                declare(name, TensorProto.FLOAT, ["batch_size", heads, length, head_size])
        return past, present

    def _head_norm(self, base: str, weight: str, value: str, size: int) -> str:
        """RMS-normalise every head of Q or K."""
        writer, head_size = self._writer, self._config.head_size
        name = self._vector(weight, base[1:].replace("/", ".") + ".layernorm.weight", head_size, self._rope_row_order)
        heads = writer.constant(np.array([0, -1, head_size], np.int64))
        value = writer.node("Reshape", [value, heads], f"{base}/Reshape_1")
        value = self._rms_norm(f"{base}/SimplifiedLayerNormalization", value, name)
        return writer.node("Reshape", [value, writer.constant(np.array([0, -1, size], np.int64))], f"{base}/Reshape_2")

    def _projection_norm(self, base: str, weight: str, value: str, size: int) -> str:
        """RMS-normalise all of Q or K."""
        name = self._vector(weight, base[1:].replace("/", ".") + ".layernorm.weight", size, self._rope_row_order)
        return self._rms_norm(f"{base}/SimplifiedLayerNormalization", value, name)

    def _mlp(self, layer: int, hidden: str) -> str:
        config, writer, base, block = self._config, self._writer, f"/model/layers.{layer}/mlp", f"blk.{layer}"
        size = self._tensor(f"{block}.ffn_down.weight", (config.hidden_size, None)).shape[1]
        if config.traits.fused_projections:
            fused = self._linear(f"{base}/gate_up_proj", f"{block}.ffn_up", hidden, 2 * size, config.hidden_size)
            gate, up = self._split(f"{base}/gate_up_proj/Split", fused, (size, size))
        else:
            gate = self._linear(f"{base}/gate_proj", f"{block}.ffn_gate", hidden, size, config.hidden_size)
            up = self._linear(f"{base}/up_proj", f"{block}.ffn_up", hidden, size, config.hidden_size)
        if config.traits.activation == "silu":
            sigmoid = writer.node("Sigmoid", [gate], f"{base}/act_fn/Sigmoid")
            gate = writer.node("Mul", [gate, sigmoid], f"{base}/act_fn/Mul")
        else:
            gate = writer.node("Gelu", [gate], f"{base}/act_fn/Gelu", approximate="tanh")
        product = writer.node("Mul", [gate, up], f"{base}/Mul")
        return self._linear(f"{base}/down_proj", f"{block}.ffn_down", product, config.hidden_size, size)

    def _lm_head(self, hidden: str, embedding: Matrix) -> None:
        config, writer, matrix = self._config, self._writer, embedding
        if "output.weight" in self._file.tensors:
            matrix = self._matrix("output.weight", "lm_head", (embedding.rows, config.hidden_size))
        cap, divisor = config.logit_softcap, config.logit_divisor
        product = add_product(writer, "/lm_head", hidden, matrix, None if cap or divisor else "logits")
        if divisor is not None:
            outputs = None if cap else ["logits"]
            product = writer.node("Div", [product, writer.constant(divisor)], "/lm_head/scale/Div", outputs)
        if cap is not None:
            constant = writer.constant(cap)
            product = writer.node("Div", [product, constant], "/lm_head/softcap/Div")
            product = writer.node("Tanh", [product], "/lm_head/softcap/Tanh")
            writer.node("Mul", [product, constant], "/lm_head/softcap/Mul", ["logits"])
        writer.output("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", embedding.rows])

    def _linear(
        self,
        base: str,
        tensor: str,
        value: str,
        rows: int,
        columns: int,
        row_order: NDArray[np.intp] | None = None,
    ) -> str:
        """`value @ weight.T`, plus the bias if the file has one. Tensors are named without `.weight`."""
        name = base[1:].replace("/", ".")
        matrix = self._matrix(f"{tensor}.weight", f"{name}.MatMul", (rows, columns), row_order)
        product = add_product(self._writer, base, value, matrix)
        if f"{tensor}.bias" not in self._file.tensors:
            return product
        bias = self._vector(f"{tensor}.bias", f"{name}.Add.bias", rows, row_order)
        return self._writer.node("Add", [product, bias], f"{base}/Add")


def _rope_row_order(config: DecoderConfig) -> NDArray[np.intp]:
    """Rows of one head, from neighbouring rotary pairs (llama.cpp) to pairs half the rotary width apart."""
    order = np.arange(config.head_size)
    rotated = order[: config.rope.dimensions]
    order[: config.rope.dimensions] = np.concatenate([rotated[0::2], rotated[1::2]])
    return order
