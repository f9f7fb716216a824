"""Files that are no decoder, or not whole, are refused with what is wrong with them."""

import re
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from vmm_adapters.cpu.matching import read_plan
from vmm_adapters.errors import UnsupportedModel

from .builder_decoder import BuilderDecoder, make_decoder
from .tiny_decoder import TinyDecoder, write_decoder


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(message)):
        read_plan(path, context_length=64)


def test_a_file_without_logits_is_refused(tmp_path: Path) -> None:
    model = make_decoder(BuilderDecoder())
    model.graph.output[0].name = "scores"
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    check_refused(tmp_path / "model.onnx", "has no output 'logits'")


@pytest.mark.parametrize("content", [None, b"no model", b"\x0a\xff"])
def test_a_file_that_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    check_refused(tmp_path / "model.onnx", str(tmp_path / "model.onnx"))


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "C:\\weights", "..\\weights", "missing", ""])
def test_external_data_elsewhere_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(10**5))
    folder = tmp_path / "model"
    folder.mkdir()
    model = make_decoder(BuilderDecoder())
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    check_refused(folder / "model.onnx", repr(tensor.name))


@pytest.mark.parametrize("kept", [0, 100])
def test_external_data_that_ends_early_is_refused(kept: int, tmp_path: Path) -> None:
    path = write_decoder(tmp_path, TinyDecoder(), external_data=True) / "model.onnx"
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:kept])
    check_refused(path, "ends before it")
