"""The gated MLP of a decoder's graph: `down(activation(gate(x)) · up(x))`."""

from dataclasses import dataclass

from vmm_adapters.cpu.graph_walk import ANY, Walk
from vmm_adapters.cpu.matrices import MatrixReader
from vmm_adapters.cpu.onnx_graph import MICROSOFT, Node, refusal
from vmm_adapters.cpu.plan import Activation, Linear

_GELU = {"none": Activation.GELU, "tanh": Activation.GELU_TANH}


@dataclass(frozen=True, slots=True)
class MLP:
    """All but the last product."""

    gate_up: tuple[Linear, ...]
    activation: Activation


def read_mlp(walk: Walk, matrices: MatrixReader, value: str) -> tuple[MLP, str]:
    """(the MLP that gives `value` to its last product, its input). Raises `UnsupportedModel`."""
    product = walk.expect(value, "Mul", what="an activated gate times up")
    up = product.input(1)
    found = _activation(walk, product.input(0))
    if found is None:
        up, found = product.input(0), _activation(walk, product.input(1))
    if found is None:
        raise refusal(product, "an activation (SiLU or Gelu) is expected before it")
    activation, gate = found
    split = walk.graph.producer(gate)
    if split is not None and split[0].operator == "Split":
        linear, source = matrices.split_linear((gate, up), None, "the product with gate and up")
        return MLP((linear,), activation), source
    (first, source), (second, other) = (
        matrices.linear(each, f"the product with {what}") for each, what in ((gate, "gate"), (up, "up"))
    )
    if source != other:
        raise refusal(product, "gate and up are products of different values")
    return MLP((first, second), activation), source


def _activation(walk: Walk, value: str) -> tuple[Activation, str] | None:
    """(the activation that gives `value`, what it is of); `None`: none gives it."""
    node = walk.peek(value)
    if node is None:
        return None
    if node.operator == "Mul":
        for gate, other in ((node.input(0), node.input(1)), (node.input(1), node.input(0))):
            sigmoid = walk.peek(other)
            if sigmoid is not None and sigmoid.operator == "Sigmoid" and sigmoid.input(0) == gate:
                walk.meet(node)
                walk.meet(sigmoid)
                return Activation.SILU, gate
        return None
    if (kind := _single(walk, node)) is None:
        return None
    walk.meet(node)
    return kind, node.input(0)


def _single(walk: Walk, node: Node) -> Activation | None:
    """The activation that one node is."""
    if node.operator == "Gelu":
        walk.check_attributes(node, {"approximate": tuple(_GELU)})
        return _GELU[str(node.attributes.get("approximate", "none"))]
    if node.operator == MICROSOFT + "Gelu":
        return Activation.GELU
    if node.operator == MICROSOFT + "FastGelu":
        if node.input(1):
            raise refusal(node, "a bias is not supported")
        return Activation.GELU_TANH
    if node.operator in (MICROSOFT + "QuickGelu", "Swish"):  # x · sigmoid(alpha · x)
        walk.check_attributes(node, {"alpha": ANY})
        if node.number("alpha", 1.0 if node.operator == "Swish" else 1.702) != 1:
            raise refusal(node, "alpha is not 1, which is not supported")
        return Activation.SILU
    return None
