"""GroupQueryAttention nodes and what leads to them: projections, norms of Q and K, the rotation, the cache's lengths.

    Q, K, V are three products; one product, split; or one product as it is, with K and V left out.
    Q and K may be normalised, each head on its own or all of them; then rotated, by the node itself or before it.

The KV cache is the kernels' own: the graph's is only checked for being plain.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_adapters.cpu.graph_walk import ANY, FLOATS, Walk, as_float32
from vmm_adapters.cpu.matrices import MatrixReader
from vmm_adapters.cpu.norms import NORMS, NormReader
from vmm_adapters.cpu.onnx_graph import MICROSOFT, Branches, Node, Tensor, refusal
from vmm_adapters.cpu.plan import Attention, Linear, RotaryTable

GROUP_QUERY_ATTENTION = MICROSOFT + "GroupQueryAttention"
ROTARY_EMBEDDING = MICROSOFT + "RotaryEmbedding"
ATTENTION_MASK, POSITION_IDS = "attention_mask", "position_ids"
KNOWN_ATTRIBUTES = {
    **dict.fromkeys(("num_heads", "kv_num_heads", "scale", "softcap", "local_window_size", "qk_norm_epsilon"), ANY),
    "do_rotary": (0, 1),
    "rotary_interleaved": (0, 1),
    "causal": 1,
    "smooth_softmax": (0, -1),
    "qk_output": 0,
    "sliding_window_cache": 0,
    "kv_cache_bit_width": 0,
    "k_quant_type": "NONE",
    "v_quant_type": "NONE",
}
REFUSED_INPUTS = {10: "attention_bias", 11: "head_sink", 12: "k_scale", 13: "v_scale"}
_DEFAULT_NORM_EPSILON = 1e-6

Weights = NDArray[np.float32]


class AttentionReader:
    """Matches attention."""

    def __init__(self, walk: Walk, matrices: MatrixReader, norms: NormReader, context_length: int | None) -> None:
        """`context_length` chooses between rotary tables where a model has several, for shorter and longer texts."""
        self._walk, self._matrices, self._norms = walk, matrices, norms
        self._context_length = context_length
        self._tables: dict[tuple[str, str], RotaryTable] = {}
        self._checked_lengths: set[tuple[str, str]] = set()

    def attention(self, value: str, output: Linear) -> tuple[Attention, str]:
        """(attention, its input), with `output` the projection of `value`. Raises `UnsupportedModel`."""
        node = self._walk.expect(value, GROUP_QUERY_ATTENTION, what="attention")
        self._walk.check_attributes(node, KNOWN_ATTRIBUTES)
        self._check_inputs(node)
        heads, kv_heads = int(node.number("num_heads", 0)), int(node.number("kv_num_heads", 0))
        head_size = self._head_size(node, kv_heads)
        if heads <= 0 or heads % kv_heads:
            raise refusal(node, f"{heads} heads cannot share {kv_heads} of keys")
        rotary, is_interleaved, query, key = self._rotation(node, head_size)
        query, query_norm = self._norm(node, 14, query, heads, head_size)
        key, key_norm = self._norm(node, 15, key, kv_heads, head_size)
        sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        projections, source = self._projections(node, [query, key, node.input(2)], sizes)
        window = int(node.number("local_window_size", -1))
        softcap = node.number("softcap", 0.0)
        if window < -1 or window == 0 or softcap < 0:
            raise refusal(node, f"local_window_size={window} and softcap={softcap:g} are no window and no cap")
        attention = Attention(
            projections=projections,
            output=output,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=head_size,
            scale=node.number("scale", 0.0) or head_size**-0.5,
            rotary=rotary,
            is_interleaved=is_interleaved,
            window=window if window > 0 else None,
            softcap=softcap or None,
            query_norm=query_norm,
            key_norm=key_norm,
        )
        return attention, source

    @property
    def max_positions(self) -> int | None:
        """Rows of the shortest rotary table met; `None`: there is none."""
        return min((len(table.cosines) for table in self._tables.values()), default=None)

    def _check_inputs(self, node: Node) -> None:
        for index, meaning in REFUSED_INPUTS.items():
            if node.input(index):
                raise refusal(node, f"the input {meaning} is not supported")
        if any(node.inputs[16:]) or any(node.outputs[3:]):
            raise refusal(node, "has inputs or outputs that are not known here")
        self._check_positions(node, node.input(9), is_optional=True)
        if (lengths := (node.input(5), node.input(6))) not in self._checked_lengths:
            self._checked_lengths.add(lengths)
            self._check_sequence_lengths(node, *lengths)

    def _check_positions(self, node: Node, value: str, *, is_optional: bool) -> None:
        is_given = value == POSITION_IDS and value in self._walk.graph.inputs
        if not is_given and (value or not is_optional):
            raise refusal(node, f"its positions are {value!r}; the model's input {POSITION_IDS} is expected")

    def _check_sequence_lengths(self, node: Node, last: str, longest: str) -> None:
        """`seqlens_k` is the mask's sum less 1, `total_sequence_length` its length: what a plain mask says."""
        walk, what = self._walk, "the last position, from attention_mask"
        difference = walk.expect(self._narrowed(last, what), "Sub", what=what)
        total = walk.expect(difference.input(0), "ReduceSum", what=what)
        walk.check_attributes(total, {"keepdims": ANY, "axes": ([1], [-1]), "noop_with_empty_axes": 0})
        axes = total.attributes.get("axes") or walk.integers(total.input(1))
        if walk.integers(difference.input(1)) != [1] or axes not in ([1], [-1]):
            raise refusal(difference, f"{what}, is expected")
        self._check_mask(total)
        self._check_mask_length(self._narrowed(longest, "the length of attention_mask"))

    def _narrowed(self, value: str, what: str) -> str:
        """The value before it becomes int32."""
        cast = self._walk.expect(value, "Cast", what=what)
        if cast.attributes.get("to") != TensorProto.INT32:
            raise refusal(cast, f"{what}, as int32, is expected")
        return cast.input(0)

    def _check_mask_length(self, value: str) -> None:
        walk, what = self._walk, "the length of attention_mask"
        gather = walk.expect(value, "Gather", what=what)
        walk.check_attributes(gather, {"axis": 0})
        if walk.integers(gather.input(1)) not in ([1], [-1]):
            raise refusal(gather, f"{what} is expected")
        shape = walk.expect(gather.input(0), "Shape", what=what)
        walk.check_attributes(shape, {"start": 0})
        self._check_mask(shape)

    def _check_mask(self, node: Node) -> None:
        if node.input(0) != ATTENTION_MASK or ATTENTION_MASK not in self._walk.graph.inputs:
            raise refusal(node, f"the model's input {ATTENTION_MASK} is expected, not {node.input(0)!r}")

    def _head_size(self, node: Node, kv_heads: int) -> int:
        """What the cache's shape says, which must be this node's alone."""
        graph = self._walk.graph
        for index in (3, 4):
            value = node.input(index)
            if value not in graph.inputs or graph.consumers(value) != [node]:
                raise refusal(node, f"its cache {value!r} is expected to be a model input of its own")
            if index - 2 >= len(node.outputs) or graph.consumers(node.outputs[index - 2]):
                raise refusal(node, "what it adds to the cache is expected to be a model output alone")
        shape = graph.inputs[node.input(3)]
        if len(shape) != 4 or shape != graph.inputs[node.input(4)] or shape[1] != kv_heads or not shape[3]:
            raise refusal(node, f"its cache is {shape}; [any, {kv_heads}, any, head size] is expected")
        return shape[3]

    def _rotation(self, node: Node, head_size: int) -> tuple[RotaryTable | None, bool, str, str]:
        """(table, whether neighbours are pairs, Q, K), these before they are rotated."""
        query, key = node.input(0), node.input(1)
        if node.number("do_rotary", 0):
            table = self._table(node, node.input(7), node.input(8), head_size)
            return table, bool(node.number("rotary_interleaved", 0)), query, key
        outside = [self._walk.peek(value) for value in (query, key)]
        if not any(each is not None and each.operator == ROTARY_EMBEDDING for each in outside):
            return None, False, query, key
        first, second = (
            self._walk.expect(value, ROTARY_EMBEDDING, what="rotated Q and K alike") for value in (query, key)
        )
        for each, heads in ((first, node.number("num_heads", 0)), (second, node.number("kv_num_heads", 0))):
            self._check_rotary_embedding(each, heads, head_size)
        known = [(each.inputs[2:4], each.number("interleaved", 0)) for each in (first, second)]
        if known[0] != known[1]:
            raise refusal(second, f"rotates otherwise than {first}")
        table = self._table(first, first.input(2), first.input(3), head_size)
        return table, bool(first.number("interleaved", 0)), first.input(0), second.input(0)

    def _check_rotary_embedding(self, node: Node, heads: float, head_size: int) -> None:
        known = {"interleaved": (0, 1), "num_heads": (0, heads), "rotary_embedding_dim": ANY}
        self._walk.check_attributes(node, known | {"is_packed_batching": 0, "scale": 1.0})
        self._check_positions(node, node.input(1), is_optional=False)
        width = int(node.number("rotary_embedding_dim", 0)) or head_size
        tables = self._table(node, node.input(2), node.input(3), head_size).cosines
        if tables.shape[1] * 2 != width or (width != head_size and not node.attributes.get("num_heads")):
            raise refusal(node, f"{width} dimensions are rotated by tables of {tables.shape}")

    def _table(self, node: Node, cosines: str, sines: str, head_size: int) -> RotaryTable:
        if (cosines, sines) not in self._tables:
            both = self._short_tables(cosines, sines) or [
                self._walk.constant(value, node, what, *FLOATS)
                for value, what in ((cosines, "the cosines"), (sines, "the sines"))
            ]
            shape = both[0].shape
            if len(shape) != 2 or shape != both[1].shape or not 0 < 2 * shape[1] <= head_size:
                raise refusal(node, f"its rotary tables are {shape} and {both[1].shape}, heads are {head_size} wide")
            self._tables[cosines, sines] = RotaryTable(*map(as_float32, both))
        return self._tables[cosines, sines]

    def _short_tables(self, cosines: str, sines: str) -> list[Tensor] | None:
        """Cosines and sines where an If chooses them by the length of the text (LongRoPE, arXiv 2402.13753).

        Cached keys stay rotated as they are, so a text must not grow from one set into the other: the short ones are
        taken, if no text gets longer. `None`: there is no If.
        """
        found = self._walk.graph.producer(cosines)
        if found is None or found[0].operator != "If":
            return None
        walk = self._walk
        node = walk.expect(cosines, "If", what="cosines", output=0)
        if walk.expect(sines, "If", what="sines", output=1) is not node:
            raise refusal(node, "chooses cosines, and another one sines")
        longer = walk.expect(node.input(0), "Greater", what="whether the text is longer than the short tables")
        self._check_mask_length(longer.input(0))
        limit, branch = walk.integers(longer.input(1)), node.attributes.get("else_branch")
        tables = branch.outputs if isinstance(branch, Branches) else ()
        constants = [each for each in tables if each is not None and each.dtype in FLOATS]
        if limit is None or len(limit) != 1 or len(constants) != 2:
            raise refusal(node, "a choice between constant tables is expected")
        if self._context_length is None or self._context_length > limit[0]:
            raise refusal(node, f"rotates longer texts by other tables; context_length up to {limit[0]} is supported")
        return constants

    def _norm(self, node: Node, fused: int, value: str, heads: int, head_size: int) -> tuple[str, Weights | None]:
        """(Q or K as it was projected, the weight of its norm). The weight may be the attention's input `fused`."""
        walk, before = self._walk, self._walk.peek(value)
        if weight := node.input(fused):
            self._norms.check_epsilon(node, node.number("qk_norm_epsilon", _DEFAULT_NORM_EPSILON))
            return value, walk.vector(weight, node, "the weight of a head's norm", head_size)
        if before is not None and before.operator in NORMS:
            walk.meet(before)
            return before.input(0), self._norms.weight(before, heads * head_size)
        if before is None or before.operator != "Reshape":
            return value, None
        walk.meet(before)
        width = heads * head_size
        merged = walk.check_shape(before, before.input(1), [0, -1, width], [0, 0, width], [0, 0, -1])
        norm = walk.expect(before.input(0), *NORMS, what="the norm of each head")
        split = walk.expect(norm.input(0), "Reshape", what="each head on its own")
        by_head = ([0, 0, -1, head_size], [0, 0, heads, head_size])
        walk.check_shape(split, split.input(1), *by_head, *([[0, -1, head_size]] if merged[1] else []))
        return split.input(0), self._norms.weight(norm, head_size)

    def _projections(self, node: Node, values: list[str], sizes: list[int]) -> tuple[tuple[Linear, ...], str]:
        """(one or three, what they multiply) of Q, K and V, which are `sizes` wide."""
        if not values[1] and not values[2]:
            linear, source = self._matrices.linear(values[0], "the projection of Q, K and V")
            return (self._checked(node, linear, sum(sizes)),), source
        split = self._walk.graph.producer(values[0])
        if split is not None and split[0].operator == "Split":
            linear, source = self._matrices.split_linear(values, sizes, "the projection of Q, K and V")
            return (linear,), source
        found = [
            self._matrices.linear(value, f"the projection of {part}") for value, part in zip(values, "QKV", strict=True)
        ]
        if len({source for _, source in found}) != 1:
            raise refusal(node, "Q, K and V are projections of different values")
        linears = (self._checked(node, linear, size) for (linear, _), size in zip(found, sizes, strict=True))
        return tuple(linears), found[0][1]

    def _checked(self, node: Node, linear: Linear, rows: int) -> Linear:
        if linear.matrix.rows != rows:
            raise refusal(node, f"{linear.matrix.name!r} gives {linear.matrix.rows} numbers; {rows} are expected")
        return linear
