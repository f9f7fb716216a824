"""ONNX files that point to what does not belong to them."""

from pathlib import Path

import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.graph_matrices import DecoderGraph
from vmm_server.models.importers.onnx_file import read_graph
from vmm_server.models.importers.onnx_model import open_onnx
from vmm_server.models.importers.onnx_weights import count_onnx_weights


def external(location: str | None, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    return tensor


def graph_of(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_graph(list(nodes), "g", [], [output], initializer=list(tensors))


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=tensor)


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


OUTSIDE = [
    *(
        "/etc/passwd",
        "../secret",
        "a/../../secret",
        "..",
        "",
        ".",
        "C:/secret",
        "C:secret",
        "..\\secret",
        "\\\\host\\x",
    ),
    *("a\0b", None),
]


@pytest.mark.parametrize("location", OUTSIDE)
def test_data_outside_of_the_folder_is_refused_by_every_reader(tmp_path: Path, location: str | None) -> None:
    path = saved(helper.make_model(graph_of(tensors=(external(location),))), tmp_path)
    for read in (open_onnx, read_graph, count_onnx_weights, DecoderGraph):
        with pytest.raises(CorruptFile, match="outside of its folder") as caught:
            read(path)
        assert "another copy" in str(caught.value.hint)


@pytest.mark.parametrize("location", ["model.onnx.data", "data/weights.bin", "..data", "a..b"])
def test_data_beside_the_graph_is_fine(tmp_path: Path, location: str) -> None:
    open_onnx(saved(helper.make_model(graph_of(tensors=(external(location),))), tmp_path))


def nested(tensor: TensorProto) -> list[ModelProto]:
    """Every place in a file that a tensor may hide in."""
    inner = graph_of(constant(tensor))
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=graph_of())
    twice = helper.make_node("If", ["c"], ["y"], then_branch=graph_of(branch), else_branch=graph_of())
    many = helper.make_node("Odd", [], ["y"], domain="x")
    many.attribute.append(helper.make_attribute("graphs", [graph_of(), inner]))
    listed = helper.make_node("Odd", [], ["y"], domain="x")
    listed.attribute.append(helper.make_attribute("tensors", [tensor]))
    sparse = onnx.SparseTensorProto(values=tensor)
    has_sparse = graph_of()
    has_sparse.sparse_initializer.append(sparse)
    sparse_node = helper.make_node("Constant", [], ["y"])
    sparse_node.attribute.append(
        onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    )
    function = helper.make_function("x", "F", [], ["y"], [constant(tensor)], [helper.make_opsetid("", 20)])
    training = helper.make_model(graph_of())
    training.training_info.add(initialization=inner)
    graphs = (
        graph_of(constant(tensor)), graph_of(branch), graph_of(twice), graph_of(many), graph_of(listed),
        has_sparse, graph_of(sparse_node),
    )  # fmt: skip
    return [*map(helper.make_model, graphs), helper.make_model(graph_of(), functions=[function]), training]


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Found by fuzzing: protobuf gives them as bytes, which no other code expects."""
    content = helper.make_model(graph_of(tensors=(external("beside"),))).SerializeToString()
    for name in (b"beside", b"location"):
        path = tmp_path / "model.onnx"
        path.write_bytes(content.replace(name, b"\xff" + name[1:]))
        with pytest.raises(CorruptFile, match="not UTF-8"):
            read_graph(path)


@pytest.mark.parametrize("place", range(9))
def test_no_tensor_hides(tmp_path: Path, place: int) -> None:
    open_onnx(saved(nested(external("beside"))[place], tmp_path))
    with pytest.raises(CorruptFile, match="outside of its folder"):
        open_onnx(saved(nested(external("../secret"))[place], tmp_path))
