"""The profile `ort-openvino`: Intel's build of ONNX Runtime, which cannot share an environment with the plain one."""

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vmm_adapters import catalog
from vmm_adapters.types import SessionOptions

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(
        "onnxruntime-openvino" not in {each.metadata["Name"] for each in importlib.metadata.distributions()},
        reason="runs in the environment that `make ort-openvino` makes: two builds of ONNX Runtime do not go together",
    ),
]


def write_model(path: Path, *, inverts: bool = False) -> Path:
    """`y = |x|`, or the inverse of that matrix, an operator of ONNX Runtime's own that OpenVINO does not know."""
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    nodes = [helper.make_node("Abs", ["x"], ["a" if inverts else "y"])]
    if inverts:
        nodes.append(helper.make_node("Inverse", ["a"], ["y"], domain="com.microsoft"))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ports, outputs), ir_version=10, opset_imports=opsets), path
    )
    return path


def test_the_pair_of_packages_is_the_one_that_fits() -> None:
    assert importlib.metadata.version("onnxruntime-genai") == "0.12.2"
    names = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    assert "onnxruntime" not in names


def test_openvino_is_listed_first_and_computes(tmp_path: Path) -> None:
    session = catalog.load_session("onnxruntime", write_model(tmp_path / "m.onnx"), SessionOptions())
    assert (session.provider, session.device) == ("OpenVINOExecutionProvider", "CPU")
    x = np.array([[-1, 2, -3, 4]], np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.abs(x))


def test_an_operator_that_openvino_lacks_is_computed_by_the_cpu(tmp_path: Path) -> None:
    session = catalog.load_session("onnxruntime", write_model(tmp_path / "m.onnx", inverts=True), SessionOptions())
    assert session.provider == "OpenVINOExecutionProvider"
    x = -2 * np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], np.eye(4) / 2, rtol=1e-3)


def test_a_device_that_is_not_here_falls_back_to_the_cpu_and_says_so(tmp_path: Path) -> None:
    session = catalog.load_session("onnxruntime", write_model(tmp_path / "m.onnx"), SessionOptions(device="GPU.0"))
    assert session.device == "CPU"


def test_both_copies_of_openvino_work_in_one_process(tmp_path: Path) -> None:
    """The build brings an OpenVINO of its own; ours is a package."""
    path = write_model(tmp_path / "m.onnx")
    x = np.array([[-1, 2, -3, 4]], np.float32)
    for adapter in ("onnxruntime", "openvino", "onnxruntime"):
        session = catalog.load_session(adapter, path, SessionOptions())
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.abs(x))
