"""A decoder's numbers as compiled code takes them: a record for each layer and matrix, with the addresses of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu.formats import BLOCK, FORMS
from vmm_adapters.cpu.packing import PackedMatrix, pack_matrix, release_pages
from vmm_adapters.cpu.plan import DecoderPlan, Layer, Linear, Matrix, slice_rows

MATRIX = np.dtype(
    [
        (name, np.int64)
        for name in (
            "is_dense",
            "form",  # an index of `FORMS`, or an `Element`
            "levels",  # addresses
            "factors",
            "biases",
            "added",  # float32 [panels · rows of a panel]: what is added to the products
            "rows",
            "columns",
            "num_panels",
            "num_blocks",  # of 32 columns
            "panel_bytes",  # from one panel's levels to the next one's
            "factor_bytes",  # the same of factors, and of biases
            "out_at",  # first column of its results in what the phase computes
        )
    ]
)
"""How to multiply by a matrix."""
QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(7)
"""A layer's matrices, in their order."""
MATRICES_A_LAYER = 7
LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "input_norm",  # addresses of float32 in whole blocks; 0 for none
            "attention_post_norm",
            "mlp_norm",
            "mlp_post_norm",
            "query_norm",
            "key_norm",
            "query_norm_size",
            "key_norm_size",
            "num_heads",
            "num_kv_heads",
            "head_size",
            "query_at",  # columns of what the projections give
            "key_at",
            "value_at",
            "mlp_width",
            "up_at",
            "cosines",
            "sines",
            "rotary_half",
            "is_interleaved",
            "window",
            "activation",
            "keys",  # addresses of the first block
            "values",
        )
    ]
    + [(name, np.float32) for name in ("scale", "softcap", "residual_scale")]
)
"""One block of the decoder; 0 stands for what it does not have."""


def round_up(number: int, unit: int = BLOCK) -> int:
    """To a whole number of units."""
    return -(-number // unit) * unit


@dataclass(frozen=True, slots=True)
class Widths:
    """Columns of the buffers that a step works in, each a whole number of blocks."""

    residual: int
    projected: int
    attended: int
    mlp: int
    logits: int


class Decoder:
    """The packed decoder. The last two of `matrices` are the embedding and the lm_head."""

    def __init__(self, plan: DecoderPlan) -> None:
        """Raises `UnsupportedModel`."""
        self.num_bytes = 0
        self.layers = np.zeros(len(plan.layers), LAYER)
        self.matrices = np.zeros(MATRICES_A_LAYER * len(plan.layers) + 2, MATRIX)
        self._kept: list[object] = []
        self._zeros = np.zeros(0, np.float32)
        self._packed: dict[int, tuple[Matrix, PackedMatrix]] = {}
        for index, layer in enumerate(plan.layers):
            self._add_layer(index, layer)
        self._add_matrix(-2, Linear(plan.embedding), 0)
        self._add_matrix(-1, plan.lm_head, 0)
        self.final_norm = self._vector(plan.final_norm)
        self._packed.clear()
        kv_rows = self.layers["num_kv_heads"] * self.layers["head_size"]
        self.widths = Widths(
            residual=round_up(plan.width),
            projected=max(round_up(int(end)) for end in self.layers["value_at"] + kv_rows),
            attended=max(round_up(int(size)) for size in self.layers["num_heads"] * self.layers["head_size"]),
            mlp=max(round_up(int(end)) for end in self.layers["up_at"] + self.layers["mlp_width"]),
            logits=round_up(plan.vocab_size),
        )

    def _add_layer(self, index: int, layer: Layer) -> None:
        record, attention = self.layers[index], layer.attention
        query_rows, kv_rows = (heads * attention.head_size for heads in (attention.num_heads, attention.num_kv_heads))
        mlp_width = layer.down.matrix.columns
        record["key_at"] = round_up(query_rows)
        record["value_at"] = record["key_at"] + round_up(kv_rows)
        record["mlp_width"], record["up_at"] = mlp_width, round_up(mlp_width)
        query, key, value = _parts(attention.projections, (query_rows, kv_rows, kv_rows))
        gate, up = _parts(layer.gate_up, (mlp_width, mlp_width))
        places = {KEY: record["key_at"], VALUE: record["value_at"], UP: record["up_at"]}
        for place, linear in enumerate((query, key, value, attention.output, gate, up, layer.down)):
            self._add_matrix(MATRICES_A_LAYER * index + place, linear, int(places.get(place, 0)))
        for name in ("input_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"):
            record[name] = self._vector(getattr(layer, name))
        for name in ("query_norm", "key_norm"):
            weights = getattr(attention, name)
            record[name], record[f"{name}_size"] = self._vector(weights), 0 if weights is None else len(weights)
        if attention.rotary is not None:
            # mapped, as they are
            record["cosines"] = self._keep(np.ascontiguousarray(attention.rotary.cosines, np.float32))
            record["sines"] = self._keep(np.ascontiguousarray(attention.rotary.sines, np.float32))
            record["rotary_half"] = attention.rotary.cosines.shape[1]
        for name in ("num_heads", "num_kv_heads", "head_size", "is_interleaved", "scale"):
            record[name] = getattr(attention, name)
        record["window"], record["softcap"] = attention.window or 0, attention.softcap or 0
        record["activation"], record["residual_scale"] = layer.activation, layer.residual_scale

    def _add_matrix(self, index: int, linear: Linear, out_at: int) -> None:
        matrix, record = linear.matrix, self.matrices[index]
        packed = self._packed.get(id(matrix), (matrix, None))[1]
        if packed is None:
            packed = pack_matrix(matrix)
            self._packed[id(matrix)] = matrix, packed  # the matrix too: its id must not become another's meanwhile
            self._kept.append(packed)
            self.num_bytes += packed.num_bytes
            release_pages(matrix)
        num_rows = packed.num_panels * packed.panel_rows
        if linear.bias is None:
            added = self._zeros = self._zeros if len(self._zeros) >= num_rows else np.zeros(num_rows, np.float32)
        else:
            added = np.zeros(num_rows, np.float32)
            added[: len(linear.bias)] = linear.bias
        record["is_dense"] = packed.form is None
        record["form"] = packed.element if packed.form is None else FORMS.index(packed.form)
        record["levels"], record["factors"], record["biases"] = packed.addresses
        record["added"] = self._keep(added)
        record["rows"], record["columns"] = matrix.rows, matrix.columns
        record["num_panels"], record["num_blocks"] = packed.num_panels, round_up(matrix.columns) // BLOCK
        record["panel_bytes"], record["factor_bytes"] = packed.panel_bytes, packed.factor_bytes
        record["out_at"] = out_at

    def _keep(self, array: NDArray[np.float32]) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def _vector(self, weights: NDArray[np.float32] | None) -> int:
        """The address of a copy, padded with zeros to whole blocks; 0 for none."""
        if weights is None:
            return 0
        padded = np.zeros(round_up(len(weights)), np.float32)
        padded[: len(weights)] = weights
        return self._keep(padded)


def _parts(linears: tuple[Linear, ...], rows: Sequence[int]) -> list[Linear]:
    """One matrix each, of one that is stacked."""
    if len(linears) > 1:
        return list(linears)
    ends = np.cumsum(rows)
    return [slice_rows(linears[0], int(end) - count, int(end)) for end, count in zip(ends, rows, strict=True)]
