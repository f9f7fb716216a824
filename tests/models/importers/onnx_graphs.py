"""ONNX files with an outside and next to nothing inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto, helper

Shapes = Mapping[str, Sequence[str | int]]
IMAGE: Shapes = {"images": ["batch", 3, "height", "width"]}


def make_graph(
    outputs: Shapes,
    inputs: Shapes = IMAGE,
    *,
    metadata: Mapping[str, object] | None = None,
    operator: str | None = None,
    dtype: int = TensorProto.FLOAT,
) -> ModelProto:
    """Inputs of rank 4 are of `dtype`, others int64; with an `operator`, that computes the first output."""
    ports = [
        helper.make_tensor_value_info(name, dtype if len(shape) == 4 else TensorProto.INT64, shape)
        for name, shape in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    nodes = []
    if operator:
        nodes = [
            helper.make_node(operator, [ports[0].name], ["/made"]),
            helper.make_node("Identity", ["/made"], [*outputs][:1]),
        ]
    model = helper.make_model(helper.make_graph(nodes, "g", ports, results))
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=str(value))
    return model


def write_graph(path: Path, model: ModelProto) -> Path:
    """The file, in a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
