"""ONNX Runtime's fast form (vmm_adapters.onnxruntime_genai) of every quantised type that is imported."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnxruntime as ort
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from onnx import TensorProto

from vmm_adapters.onnxruntime_genai.fast_form import is_fast, read_graph
from vmm_adapters.onnxruntime_genai.form_cache import fast_folder
from vmm_server.models.importers.gguf_blocks import BLOCK_FORMATS
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_weights import add_matrix
from vmm_server.models.importers.onnx_matrix import add_product
from vmm_server.models.importers.onnx_writer import ModelWriter

pytestmark = pytest.mark.runtime

ROWS, COLUMNS = 48, 512


@pytest.mark.parametrize("kind", BLOCK_FORMATS, ids=lambda kind: kind.name)
def test_only_the_activations_are_rounded(
    kind: GGMLQuantizationType, tmp_path: Path, random_blocks: Callable[..., NDArray[np.uint8]]
) -> None:
    raw = random_blocks(kind, ROWS * COLUMNS // GGML_QUANT_SIZES[kind][0]).reshape(ROWS, -1)
    file_writer = gguf.GGUFWriter(tmp_path / "matrix.gguf", "llama")
    file_writer.add_tensor("matrix", raw, raw_dtype=kind)
    file_writer.write_header_to_file()
    file_writer.write_kv_data_to_file()
    file_writer.write_tensors_to_file()
    file_writer.close()
    folder = tmp_path / "model"
    folder.mkdir()
    writer = ModelWriter("test")
    with GGUFFile(tmp_path / "matrix.gguf") as file:
        value = writer.input("value", TensorProto.FLOAT, ["batch", "sequence", COLUMNS])
        product = add_product(writer, "/product", value, add_matrix(writer, file, file.tensors["matrix"], "matrix"))
        writer.output(product, TensorProto.FLOAT, ["batch", "sequence", ROWS])
        writer.write(folder, lambda done, total: None)
    decoder = folder / "model.onnx"
    values = np.random.default_rng(0).standard_normal((2, 5, COLUMNS)).astype(np.float32)
    expected = ort.InferenceSession(str(decoder)).run([product], {"value": values})[0]
    with fast_folder(folder, decoder, read_graph(decoder), tmp_path / "cache") as fast:
        assert is_fast(read_graph(fast / "model.onnx"))
        found = ort.InferenceSession(str(fast / "model.onnx")).run([product], {"value": values})[0]
    weights = gguf.quants.dequantize(raw, kind)
    size = np.linalg.norm(values, axis=-1, keepdims=True) * np.linalg.norm(weights, axis=-1) + 1e-9
    assert np.abs(found - expected).max() <= 0.002 * size.max()
    assert np.abs((found - expected) / size).mean() < 0.0005
