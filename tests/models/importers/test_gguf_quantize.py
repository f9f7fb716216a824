"""Floats → fewer bits: which tensors, how far off, and that nothing else of the file changes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, LlamaFileType, dequantize

from vmm_server.errors import CorruptFile, InvalidRequest
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_quantize import quantize_gguf
from vmm_server.models.importers.quantization_mix import parse_quantization

WriteTiny = Callable[..., Path]
KINDS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
BITS = {"Q8_0": 8, "Q5_1": 5, "Q5_0": 5, "Q4_1": 4, "Q4_0": 4}
QUANTIZED_KEYS = {"general.file_type", "general.quantization_version"}


def quantized(source: Path, kind: str) -> Path:
    target = source.with_suffix(f".{kind}.gguf")
    seen: list[tuple[int, int]] = []
    digest = quantize_gguf(source, target, parse_quantization(kind), lambda *counts: seen.append(counts))
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("floats", ["F32", "F16", "BF16"])
def test_matrices_are_quantised_and_all_else_stays(write_tiny: WriteTiny, kind: str, floats: str) -> None:
    source = write_tiny("llama", quantization=floats)
    before, after = GGUFReader(source), GGUFReader(quantized(source, kind.lower()))
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    num_quantized = 0
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert list(new.shape) == list(old.shape)
        if new.tensor_type is old.tensor_type:
            assert (new.data == old.data).all()
            assert len(old.shape) == 1
            continue
        num_quantized += 1
        is_logits = new.name in ("output.weight", "token_embd.weight")
        assert new.tensor_type.name == kind or (is_logits and new.tensor_type.name == "Q8_0")
        weights = dequantize(old.data, old.tensor_type).reshape(-1, 32)
        found = dequantize(new.data, new.tensor_type).reshape(-1, 32)
        step = 2 * np.abs(weights).max(axis=1, keepdims=True) / (2 ** BITS[new.tensor_type.name] - 2)
        assert (np.abs(found - weights) <= 1.1 * step).all()
    assert num_quantized > 3
    assert after.get_field("general.quantization_version").contents() == 2
    for key, field in before.fields.items():
        if key not in QUANTIZED_KEYS and not key.startswith("GGUF."):
            assert after.get_field(key).contents() == field.contents()


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_imported_under_its_new_name(write_tiny: WriteTiny, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert import_gguf(quantized(write_tiny("gemma3", quantization="F16"), kind), folder).quantization == kind


def test_the_matrix_that_makes_logits_keeps_eight_bits(write_tiny: WriteTiny) -> None:
    types = {
        tensor.name: tensor.tensor_type.name
        for tensor in GGUFReader(quantized(write_tiny("llama"), "q4_0")).tensors
        if len(tensor.shape) == 2
    }
    logits = "output.weight" if "output.weight" in types else "token_embd.weight"
    assert types.pop(logits) == "Q8_0"
    assert set(types.values()) == {"Q4_0"}


def test_a_quantised_file_is_refused_before_anything_is_written(write_tiny: WriteTiny, tmp_path: Path) -> None:
    source, target = write_tiny("llama", quantization="Q4_1"), tmp_path / "out.gguf"
    with pytest.raises(InvalidRequest, match="has Q4_1 weights already") as caught:
        quantize_gguf(source, target, LlamaFileType.MOSTLY_Q8_0, lambda *_: None)
    assert caught.value.param == "quantize"
    assert not target.exists()


def test_weights_that_are_no_numbers_are_refused(write_tiny: WriteTiny, tmp_path: Path) -> None:
    source = write_tiny("llama")
    tensor = next(tensor for tensor in GGUFReader(source).tensors if len(tensor.shape) == 2)
    content = bytearray(source.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 4] = np.float32("nan").tobytes()
    source.write_bytes(content)
    with pytest.raises(CorruptFile, match="weights that are not numbers"):
        quantize_gguf(source, tmp_path / "out.gguf", LlamaFileType.MOSTLY_Q8_0, lambda *_: None)
