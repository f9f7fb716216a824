"""Changes of a decoder's graph, one node at a time."""

from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[onnx.GraphProto], None]


def find(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The node of that name."""
    found: onnx.NodeProto = next(node for node in graph.node if node.name == name)
    return found


def attribute(name: str, **values: Any) -> Change:
    """Set attributes of a node; `None` takes one away."""

    def change(graph: onnx.GraphProto) -> None:
        node = find(graph, name)
        kept = [each for each in node.attribute if each.name not in values]
        del node.attribute[:]
        set_ = [helper.make_attribute(key, value) for key, value in values.items() if value is not None]
        node.attribute.extend([*kept, *set_])

    return change


def operator(name: str, kind: str, domain: str = "") -> Change:
    """Another operator."""

    def change(graph: onnx.GraphProto) -> None:
        node = find(graph, name)
        node.op_type, node.domain = kind, domain

    return change


def reads(name: str, index: int, value: str) -> Change:
    """Another value as a node's input."""

    def change(graph: onnx.GraphProto) -> None:
        inputs = find(graph, name).input
        inputs.extend([""] * (index + 1 - len(inputs)))
        inputs[index] = value

    return change


def constant(name: str, index: int, values: NDArray[Any]) -> Change:
    """A constant as a node's input."""

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(values, "changed"))
        reads(name, index, "changed")(graph)

    return change


def between(name: str, index: int, kind: str, **attributes: Any) -> Change:
    """A node called `between` before a node's input."""

    def change(graph: onnx.GraphProto) -> None:
        node = find(graph, name)
        made = helper.make_node(kind, [node.input[index]], ["between.output"], "between", **attributes)
        graph.node.insert(list(graph.node).index(node), made)
        reads(name, index, "between.output")(graph)

    return change


def also(kind: str, inputs: list[str], output: str) -> Change:
    """One more node, and its result as a model output."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node(kind, inputs, [output], "one more"))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))

    return change


def both(first: Change, second: Change) -> Change:
    """Two changes."""

    def change(graph: onnx.GraphProto) -> None:
        first(graph)
        second(graph)

    return change


def swapped(name: str) -> Change:
    """A node's inputs the other way round."""

    def change(graph: onnx.GraphProto) -> None:
        node = find(graph, name)
        node.input[:] = [*node.input][::-1]

    return change


def cache_shape(*sizes: Any) -> Change:
    """Another shape of the first layer's cache."""

    def change(graph: onnx.GraphProto) -> None:
        for index, value in enumerate(graph.input):
            if value.name.startswith("past_key_values.0"):
                graph.input[index].CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, sizes))

    return change
