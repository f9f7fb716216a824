"""What every `Session` promises, whatever computes it (`vmm_adapters/base.py`), and how a provider is chosen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vmm_adapters import catalog
from vmm_adapters.base import Session
from vmm_adapters.errors import AdapterError, RuntimeFailed, UnsupportedModel
from vmm_adapters.onnxruntime.providers import CHAINS, chain
from vmm_adapters.types import Precision, SessionOptions

RUNTIMES = [pytest.param(name, marks=pytest.mark.runtime) for name in ("openvino", "onnxruntime")]


def write_model(path: Path, operator: str = "Mul") -> Path:
    """`y = x * scale` for x float32 `[rows, 3]` and a scalar, and how many rows there were."""
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
    ]
    nodes = [helper.make_node(operator, ["x", "scale"], ["y"]), helper.make_node("Shape", ["x"], ["shape"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports, outputs), ir_version=10, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module", params=RUNTIMES)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(adapter: str, tmp_path: Path) -> Iterator[Session]:
    loaded = catalog.load_session(adapter, write_model(tmp_path / "model.onnx"), SessionOptions(num_threads=1))
    yield loaded
    loaded.close()


def feeds(rows: int = 2, scale: float = 3.0) -> dict[str, Any]:
    return {"x": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), "scale": np.array(scale, np.float32)}


def test_it_says_what_it_takes_and_gives(session: Session) -> None:
    assert [(spec.name, spec.dtype, len(spec.shape)) for spec in session.inputs] == [
        ("x", np.float32, 2),
        ("scale", np.float32, 0),
    ]
    assert session.inputs[0].shape[1] == 3
    assert not isinstance(session.inputs[0].shape[0], int)
    assert [spec.name for spec in session.outputs] == ["y", "shape"]
    assert session.device == "CPU"
    assert session.memory_bytes > 0


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_sizes_may_differ_from_call_to_call(session: Session, rows: int) -> None:
    found = session.run(feeds(rows))
    np.testing.assert_allclose(found["y"], feeds(rows)["x"] * 3)
    assert found["shape"].tolist() == [rows, 3]


def test_the_arrays_are_the_callers(session: Session) -> None:
    given = feeds()
    first = session.run(given)["y"]
    kept = first.copy()
    given["x"][:] = 100
    session.run(feeds(scale=7))
    np.testing.assert_array_equal(first, kept)


def test_arrays_that_do_not_lie_in_order_are_read_in_order(session: Session) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    np.testing.assert_allclose(session.run({**feeds(), "x": x})["y"], x * 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "'x' is missing"),
        ({"z": np.zeros(1)}, "no input 'z'; it has x, scale"),
        ({"x": np.zeros((2, 3))}, "'x' is float64, not float32"),
        ({"x": np.zeros((2, 4), np.float32)}, r"shape \[2, 4\]"),
        ({"scale": np.zeros(1, np.float32)}, r"shape \[1\], not \[\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(session: Session, change: dict[str, Any], words: str) -> None:
    given = {name: array for name, array in (feeds() | change).items() if array is not None}
    with pytest.raises(RuntimeFailed, match=words):
        session.run(given)


def test_outputs_go_by_the_names_of_the_model(adapter: str, tmp_path: Path) -> None:
    """Also where a tensor has one of its own, which comes first in the alphabet."""
    model = onnx.load(write_model(tmp_path / "model.onnx"))
    model.graph.node[0].output[0] = "a"
    model.graph.node.append(helper.make_node("Identity", ["a"], ["y"]))
    onnx.save(model, tmp_path / "model.onnx")
    loaded = catalog.load_session(adapter, tmp_path / "model.onnx", SessionOptions(num_threads=1))
    assert [output.name for output in loaded.outputs] == ["y", "shape"]
    assert loaded.run(feeds())["y"].shape == (2, 3)
    loaded.close()


def test_closing_twice_is_allowed_and_a_closed_one_says_so(adapter: str, tmp_path: Path) -> None:
    session = catalog.load_session(adapter, write_model(tmp_path / "model.onnx"), SessionOptions())
    session.close()
    session.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        session.run(feeds())


def test_what_is_no_model_is_refused(adapter: str, tmp_path: Path) -> None:
    (tmp_path / "rubbish.onnx").write_bytes(b"nothing at all")
    for name in ("rubbish.onnx", "missing.onnx"):
        with pytest.raises(UnsupportedModel, match=name):
            catalog.load_session(adapter, tmp_path / name, SessionOptions())


def test_a_device_that_is_not_here_is_an_error_unless_the_cpu_may_take_its_place(adapter: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    with pytest.raises(AdapterError, match=r"GPU\.9"):
        catalog.load_session(adapter, path, SessionOptions(device="GPU.9", allow_fallback=False))


@pytest.mark.runtime
@pytest.mark.parametrize("device", ["CUDA.0", "ROCM.0", "GPU.0", "DML.0", "QUANTUM.0"])
def test_the_cpu_takes_what_no_provider_here_can_and_says_so(device: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    session = catalog.load_session("onnxruntime", path, SessionOptions(device=device))
    assert session.device == "CPU"
    np.testing.assert_allclose(session.run(feeds())["y"], feeds()["x"] * 3)
    session.close()


def test_every_chain_ends_with_the_cpu() -> None:
    assert {name: providers[-1].name for name, providers in CHAINS.items()} == dict.fromkeys(
        CHAINS, "CPUExecutionProvider"
    )


def test_the_table_is_the_one_that_is_promised() -> None:
    names = {name: [each.name.removesuffix("ExecutionProvider") for each in found] for name, found in CHAINS.items()}
    assert names["CPU"] == ["OpenVINO", "CPU"]
    assert names["GPU"] == ["OpenVINO", "CPU"]
    assert names["CUDA"] == ["Tensorrt", "CUDA", "CPU"]
    assert names["ROCM"] == ["MIGraphX", "ROCM", "CPU"]


def test_options_are_filled_in_and_those_without_a_value_left_out(tmp_path: Path) -> None:
    tensorrt, cuda, _ = chain("cuda.1", "f16", tmp_path, None)
    assert tensorrt.options == {
        "device_id": "1",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert cuda.options == {"device_id": "1"}
    plain, *_ = chain("CUDA", "f32", None, None)
    assert plain.options == {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
    }
    openvino, _ = chain("CPU", "f32", None, 3)
    assert openvino.options == {
        "device_type": "CPU",
        "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3"}}',
    }
    openvino, _ = chain("GPU.1", "f16", tmp_path, 3)
    assert openvino.options["device_type"] == "GPU.1"
    assert openvino.options["load_config"] == '{"GPU": {"INFERENCE_PRECISION_HINT": "f16"}}'


@pytest.mark.parametrize(
    ("device", "asked", "computed_in"),
    [
        ("CPU", None, "f32"),
        ("cpu", "bf16", "bf16"),
        ("GPU.0", None, "f16"),
        ("CUDA.1", None, "f16"),
        ("NPU", "f32", "f32"),
    ],
)
def test_only_a_cpu_computes_in_f32_unasked(device: str, asked: Precision | None, computed_in: str) -> None:
    assert SessionOptions(device=device, precision=asked).computed_in == computed_in


@pytest.mark.runtime
def test_the_folder_for_engines_is_made_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    path, folder = write_model(tmp_path / "model.onnx"), tmp_path / "cache" / "engines"
    catalog.load_session("onnxruntime", path, SessionOptions(cache_dir=folder)).close()
    assert folder.is_dir()
    with pytest.raises(RuntimeFailed, match="folder for compiled engines"):
        catalog.load_session("onnxruntime", path, SessionOptions(cache_dir=path / "engines"))


@pytest.mark.runtime
def test_what_was_compiled_for_one_precision_is_not_taken_for_another(tmp_path: Path) -> None:
    path, folder = write_model(tmp_path / "model.onnx"), tmp_path / "engines"
    feeds = {"x": np.full((2, 3), 1.001, np.float32), "scale": np.float32(1)}
    for precision in get_args(Precision):
        session = catalog.load_session("openvino", path, SessionOptions(precision=precision, cache_dir=folder))
        assert session.run(feeds)["y"] == pytest.approx(feeds["x"], rel=0.01)
        session.close()
    blobs = {blob.parent.name for blob in folder.rglob("*.blob")}
    assert {"f32", "f16"} <= blobs <= set(get_args(Precision))


def test_arrays_that_cannot_be_written_to_are_taken(adapter: str, tmp_path: Path) -> None:
    session = catalog.load_session(adapter, write_model(tmp_path / "model.onnx"), SessionOptions())
    fixed = np.frombuffer(np.arange(6, dtype=np.float32).tobytes(), np.float32).reshape(2, 3)
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    for x in (fixed, turned):
        np.testing.assert_array_equal(
            session.run({"x": x, "scale": np.float32(2) * np.ones((), np.float32)})["y"], 2 * x
        )
    session.close()


@pytest.mark.parametrize("precision", [None, *get_args(Precision)])
def test_what_is_carried_goes_from_one_session_into_another(
    adapter: str, precision: Precision | None, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.onnx")
    giver, taker = (
        catalog.load_session(adapter, path, SessionOptions(precision=precision, carried=(name,))) for name in "yx"
    )
    carried = giver.run(feeds())["y"]
    assert carried.dtype == giver.outputs[0].dtype == taker.inputs[0].dtype
    carried[1] = 0
    assert taker.run({"x": carried, "scale": feeds()["scale"]})["y"].tolist() == [[0, 9, 18], [0, 0, 0]]
    giver.close()
    taker.close()


@pytest.mark.runtime
def test_what_is_carried_takes_no_more_than_what_is_computed_in(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    session = catalog.load_session("openvino", path, SessionOptions(precision="f16", carried=("x", "shape")))
    assert [spec.dtype for spec in session.inputs] == [np.float16, np.float32]
    assert [spec.dtype for spec in session.outputs] == [np.float32, np.int64]
    session.close()
