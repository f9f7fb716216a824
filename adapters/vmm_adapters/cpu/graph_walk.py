"""A walk through a decoder's graph, from its results to its inputs, that keeps count of what it understood.

Each step says which operators may stand there; anything else is refused by the node's name. In the end every node that
the results come from must have been met: what no step asked for would otherwise be left out of the plan.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vmm_adapters.cpu.onnx_graph import MICROSOFT, Graph, Node, Tensor, refusal
from vmm_adapters.errors import UnsupportedModel

ANY = object()
"""An attribute that may have any value: it is read, or does not change results."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_PLAIN = {
    **dict.fromkeys(("Add", "Div", "Greater", "MatMul", "Mul", "Reshape", "Sub", "Unsqueeze"), 2),
    **dict.fromkeys(("Sigmoid", "Tanh"), 1),
}
"""Operators without attributes that change results, and the inputs that they have."""


class Walk:
    """Steps from a value to the node that it comes from."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._met: set[Node] = set()

    def peek(self, value: str) -> Node | None:
        """The node whose first output a value is, if any; it does not count as met."""
        found = self.graph.producer(value)
        return found[0] if found is not None and found[1] == 0 else None

    def expect(self, value: str, *operators: str, what: str, output: int = 0) -> Node:
        """The node that a value comes from, one of `operators`; it counts as met. Raises `UnsupportedModel`."""
        found = self.graph.producer(value)
        names = " or ".join(each.removeprefix(MICROSOFT) for each in operators)
        if found is None or found[0].operator not in operators:
            raise self.unexpected(value, f"{what} ({names})")
        node, index = found
        if index != output:
            raise refusal(node, f"its output {index} is not one that is read ({what} is expected)")
        self.meet(node)
        return node

    def meet(self, node: Node) -> None:
        """Count a node that was peeked at. Raises `UnsupportedModel` for a plain operator that is not plain."""
        if node.operator in _PLAIN:
            self.check_attributes(node, {"allowzero": 0} if node.operator == "Reshape" else {})
            if len(node.inputs) != _PLAIN[node.operator]:
                raise refusal(node, f"has {len(node.inputs)} inputs; {_PLAIN[node.operator]} are expected")
        self._met.add(node)

    def unexpected(self, value: str, what: str) -> UnsupportedModel:
        """The error for a value where something else is expected: it names the node that gives or reads it."""
        if (found := self.graph.producer(value)) is not None:
            return refusal(found[0], f"{what} is expected here")
        kind = "constant" if value in self.graph.constants else "model input"
        readers = self.graph.consumers(value)
        if not value or not readers:
            return UnsupportedModel(f"{self.graph.path}: {what} is expected for {value or 'an input left out'!r}")
        return refusal(readers[0], f"{what} is expected for {value!r}, which is a {kind}")

    def constant(self, value: str, reader: Node, what: str, *dtypes: int) -> Tensor:
        """A constant of one of `dtypes` that `reader` reads. Raises `UnsupportedModel`."""
        tensor = self.graph.constants.get(value)
        if tensor is None:
            raise refusal(reader, f"{what} ({value!r}) is expected to be a constant")
        if tensor.dtype not in dtypes:
            found, wanted = _type_name(tensor.dtype), " or ".join(map(_type_name, dtypes))
            raise refusal(reader, f"{what} {tensor.name!r} is {found}; {wanted} is expected")
        return tensor

    def vector(self, value: str, reader: Node, what: str, size: int | None = None) -> NDArray[np.float32]:
        """A constant of `size` numbers as float32 `[size]`. Raises `UnsupportedModel`."""
        tensor = self.constant(value, reader, what, *FLOATS, TensorProto.BFLOAT16)
        if max(tensor.shape, default=1) != tensor.values.size or size not in (None, tensor.values.size):
            wanted = "one axis" if size is None else f"{size} numbers"
            raise refusal(reader, f"{what} {tensor.name!r} is {tensor.shape}; {wanted} is expected")
        return as_float32(tensor).reshape(-1)

    def scalar(self, value: str) -> float | None:
        """The one number of a float constant; `None` for anything else."""
        tensor = self.graph.constants.get(value)
        if tensor is None or tensor.values.size != 1 or tensor.dtype not in (*FLOATS, TensorProto.BFLOAT16):
            return None
        return float(as_float32(tensor).reshape(-1)[0])

    def number(self, value: str, reader: Node, what: str) -> float:
        """The one number of a float constant that `reader` reads. Raises `UnsupportedModel`."""
        if (found := self.scalar(value)) is None:
            raise refusal(reader, f"{what} ({value!r}) is expected to be one constant number")
        return found

    def integers(self, value: str) -> list[int] | None:
        """The numbers of an integer constant; `None` for anything else."""
        tensor = self.graph.constants.get(value)
        if tensor is None or tensor.dtype not in (TensorProto.INT64, TensorProto.INT32):
            return None
        return [int(each) for each in tensor.values.reshape(-1)]

    def operand(self, node: Node) -> tuple[str, str] | None:
        """Of a node with two inputs, one of them constant: (the constant, the other)."""
        first, second = node.input(0), node.input(1)
        if second in self.graph.constants:
            return second, first
        return (first, second) if first in self.graph.constants else None

    def check_attributes(self, node: Node, known: Mapping[str, object]) -> None:
        """Refuse attributes that are not `known`, or of another value than is given there (or another than several)."""
        for name, value in node.attributes.items():
            wanted = known.get(name)
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if name not in known or (wanted is not ANY and value not in allowed):
                raise refusal(node, f"the attribute {name}={value!r} is not supported")

    def check_shape(self, node: Node, value: str, *wanted: list[int]) -> list[int]:
        """The constant shape of a Reshape, one of those `wanted`."""
        found = self.integers(value)
        if found not in wanted:
            shown = " or ".join(map(str, wanted))
            raise refusal(node, f"its shape is {found if found else repr(value)}; {shown} is expected")
        return found

    def check_all_met(self, values: Iterable[str]) -> None:
        """Refuse the first node behind `values` that no step met."""
        unmet = set(self.graph.behind(values)) - self._met
        for node in self.graph.nodes:
            if node in unmet:
                raise refusal(node, "has no place in a decoder as it is known here")


def as_float32(tensor: Tensor) -> NDArray[np.float32]:
    """A float tensor's numbers; a view where they are float32 already."""
    if tensor.dtype == TensorProto.BFLOAT16:  # the upper half of a float32
        return (tensor.values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return tensor.values.astype(np.float32, copy=False)


def _type_name(dtype: int) -> str:
    return helper.tensor_dtype_to_string(dtype).removeprefix("TensorProto.").lower()
