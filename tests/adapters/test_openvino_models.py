"""Every form of decoder the OpenVINO adapter reads, against ONNX Runtime on the same file without a cache."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from vmm_adapters.errors import RuntimeFailed, UnsupportedModel
from vmm_adapters.openvino.graph import stateful
from vmm_adapters.openvino.runner import load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions

from .tiny_decoder import PRECISE, FloatArray, TinyDecoder, dense_logits, write_decoder

pytestmark = pytest.mark.runtime

OPTIONS = RunnerOptions(kv_cache_bytes=4 * 1024**2, max_batched_tokens=64, max_sequences=8)
LENGTH = 100
TOKENS = np.random.default_rng(0).integers(0, 80, LENGTH).tolist()

FORMS = {
    "gqa": TinyDecoder(),
    "multi-head": TinyDecoder(num_kv_heads=4),
    "one-key-head": TinyDecoder(num_kv_heads=1),
    "head-64": TinyDecoder(head_size=64),
    "head-128": TinyDecoder(head_size=128),
    "own-scale": TinyDecoder(scale=0.3),
    "packed-qkv": TinyDecoder(packed_qkv=True, qkv_bias=True),
    "qkv-bias": TinyDecoder(qkv_bias=True),
    "qk-norm": TinyDecoder(qk_norm=True),
    "sliding-window": TinyDecoder(windows=(8, -1)),
    "rotary-part": TinyDecoder(rotary_size=16),
    "rotary-interleaved": TinyDecoder(rotary_interleaved=True),
    "rotary-part-interleaved": TinyDecoder(rotary_size=16, rotary_interleaved=True),
    "two-rotary-caches": TinyDecoder(rope_bases=(1e4, 1e6)),
    "rotary-outside": TinyDecoder(rotary_outside=True),
    "rotary-outside-part": TinyDecoder(rotary_outside=True, rotary_size=16),
    "rotary-outside-interleaved": TinyDecoder(rotary_outside=True, rotary_interleaved=True),
    "positions-given": TinyDecoder(positions_given=True),
    "rotary-nowhere": TinyDecoder(rotary_nowhere=True),
    "int4": TinyDecoder(weight_bits=4),
    "int4-float-zero-points": TinyDecoder(weight_bits=4, float_zero_points=True),
    "int8": TinyDecoder(weight_bits=8),
    "tied-int4": TinyDecoder(embedding="gather_block_quantized_4", tied=True, weight_bits=4),
    "tied-int8": TinyDecoder(embedding="gather_block_quantized_8", tied=True, weight_bits=8),
    "tied-gather": TinyDecoder(embedding="gather_then_dequantize", tied=True, weight_bits=4),
}


def paged_logits(folder: Path, options: RunnerOptions = OPTIONS, **properties: object) -> FloatArray:
    """All logits of TOKENS, in random chunks over shuffled blocks."""
    runner = load_runner(folder, options, properties={**PRECISE, **properties})
    rng = np.random.default_rng(1)
    table = rng.permutation(runner.num_blocks)[: -(-LENGTH // runner.block_size)].tolist()
    rows, start = [], 0
    while start < LENGTH:
        size = min(int(rng.integers(1, 30)), LENGTH - start)
        rows.append(runner.execute(Batch((Chunk(TOKENS[start : start + size], start, table, size),))).copy())
        start += size
    runner.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_a_dense_run(tmp_path: Path, form: str) -> None:
    config = FORMS[form]
    folder = write_decoder(tmp_path, config)
    expected = dense_logits(folder, config, TOKENS)
    np.testing.assert_allclose(paged_logits(folder), expected, rtol=1e-4, atol=1e-4)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    config = TinyDecoder(weight_bits=4)
    folder = write_decoder(tmp_path, config, external_data=True)
    expected = dense_logits(folder, config, TOKENS)
    np.testing.assert_allclose(paged_logits(folder), expected, rtol=1e-4, atol=1e-4)


def test_devices_that_share_a_model_compute_the_same(tmp_path: Path) -> None:
    config = TinyDecoder()
    folder = write_decoder(tmp_path, config)
    together = replace(OPTIONS, device="HETERO:CPU")
    np.testing.assert_allclose(paged_logits(folder, together), paged_logits(folder), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeFailed, match=r"no device 'GPU\.7' here"):
        load_runner(folder, replace(OPTIONS, device="HETERO:CPU,GPU.7"))


def test_the_default_precision_stays_close(tmp_path: Path) -> None:
    config = TinyDecoder(weight_bits=4)
    folder = write_decoder(tmp_path, config)
    expected = dense_logits(folder, config, TOKENS)
    runner = load_runner(folder, OPTIONS)
    logits = runner.execute(Batch((Chunk(TOKENS, 0, range(4), LENGTH),)))
    error = np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2))
    assert error < 0.02
    runner.close()


def test_a_float16_decoder_gives_float32_logits(tmp_path: Path) -> None:
    config = TinyDecoder(packed_qkv=True, weight_bits=4, float_zero_points=True)
    expected = dense_logits(write_decoder(tmp_path / "single", config), config, TOKENS)
    logits = paged_logits(write_decoder(tmp_path / "half", replace(config, half=True)))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.02)


def write_ir(folder: Path, source: Path) -> None:
    model = stateful(ov.Core().read_model(source / "model.onnx"))
    folder.mkdir()
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 128}), encoding="utf-8")


def test_an_ir_folder_gives_the_same_logits(tmp_path: Path) -> None:
    config = TinyDecoder(weight_bits=4, windows=(8, -1))
    source = write_decoder(tmp_path / "onnx", config)
    write_ir(tmp_path / "ir", source)
    expected = dense_logits(source, config, TOKENS)
    np.testing.assert_allclose(paged_logits(tmp_path / "ir"), expected, rtol=1e-4, atol=1e-4)
    assert load_runner(tmp_path / "ir", OPTIONS).context_length == 128


def test_an_ir_that_is_not_stateful_is_refused(tmp_path: Path) -> None:
    ids = ov.opset13.parameter([-1, -1], ov.Type.i64, name="input_ids")
    table = ov.opset13.constant(np.zeros((80, 4), np.float32))
    model = ov.Model([ov.opset13.gather(table, ids, np.int64(0))], [ids], "embedding")
    ov.save_model(model, tmp_path / "openvino_model.xml")
    with pytest.raises(UnsupportedModel, match="stateful"):
        load_runner(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (TinyDecoder(softcap=30.0), "softcap"),
        (TinyDecoder(extra={"smooth_softmax": 1}), "smooth_softmax"),
    ],
    ids=["softcap", "smooth-softmax"],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, config: TinyDecoder, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        load_runner(write_decoder(tmp_path, config), OPTIONS)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(UnsupportedModel, match=r"model\.onnx"):
        load_runner(tmp_path, OPTIONS)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path, TinyDecoder(), external_data=True)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UnsupportedModel, match=r"model\.onnx"):
        load_runner(folder, OPTIONS)
