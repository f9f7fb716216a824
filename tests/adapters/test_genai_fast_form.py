"""The form that ONNX Runtime is fast with: the same numbers, written once."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
from numpy.typing import NDArray

from vmm_adapters.errors import RuntimeFailed, UnsupportedModel
from vmm_adapters.onnxruntime_genai.fast_form import is_fast, read_graph
from vmm_adapters.onnxruntime_genai.form_cache import fast_folder

from .genai_folder import TOKENS, write_genai_folder
from .tiny_decoder import TinyDecoder, dense_logits

pytestmark = pytest.mark.runtime

EXACT = TinyDecoder(vocab_size=len(TOKENS), weight_bits=4, float_zero_points=True)
PROMPT = np.random.default_rng(0).integers(5, 90, 40).tolist()


def choose_accuracy(folder: Path, level: int) -> None:
    """Let the model say itself how its products are made; 1 is float32."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def made(folder: Path, cache_dir: Path | None = None) -> Iterator[Path]:
    decoder = folder / "model.onnx"
    with fast_folder(folder, decoder, read_graph(decoder), cache_dir) as fast:
        yield fast


def genai_logits(folder: Path) -> NDArray[np.float32]:
    """Of the last token, computed by onnxruntime-genai."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + 1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(PROMPT, np.int32))
    logits: NDArray[np.float32] = generator.get_logits()[0, -1]
    return logits


@pytest.mark.parametrize("seed", range(3))
def test_it_is_exact_but_for_the_activations(tmp_path: Path, seed: int) -> None:
    folder = write_genai_folder(tmp_path / "model", EXACT, seed=seed)
    expected = dense_logits(folder, EXACT, PROMPT)[-1]
    choose_accuracy(folder, 1)
    for fast in made(folder):
        products = [node for node in read_graph(fast / "model.onnx").graph.node if node.op_type == "MatMulNBits"]
        assert all(len(node.input) == 3 for node in products), "no zero points are left"
        np.testing.assert_allclose(genai_logits(fast), expected, atol=2e-4)


@pytest.mark.parametrize(
    "config",
    [
        EXACT,
        TinyDecoder(vocab_size=96, weight_bits=8),
        TinyDecoder(vocab_size=96, weight_bits=4, packed_qkv=True, qkv_bias=True),
        TinyDecoder(vocab_size=96, weight_bits=4, embedding="gather_block_quantized_4", tied=True),
        TinyDecoder(vocab_size=96, weight_bits=8, embedding="gather_block_quantized_8", float_zero_points=False),
        TinyDecoder(vocab_size=96),
    ],
    ids=["float-zeros", "8-bit", "packed-qkv", "tied-4-bit", "8-bit-rows", "float"],
)
def test_activations_of_eight_bits_move_logits_little(tmp_path: Path, config: TinyDecoder) -> None:
    folder = write_genai_folder(tmp_path / "model", config)
    expected = dense_logits(folder, config, PROMPT)[-1]
    for fast in made(folder):
        assert is_fast(read_graph(fast / "model.onnx"))
        found = genai_logits(fast)
        assert np.abs(found - expected).max() < 0.1 * expected.std() + 1e-3
        assert found.argmax() == expected.argmax() or np.sort(expected)[-1] - expected[found.argmax()] < 0.02


def test_a_model_that_is_fast_is_used_as_it_is(tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path / "model", TinyDecoder(vocab_size=96))
    for fast in made(folder, tmp_path / "cache"):
        assert fast == folder
    assert not (tmp_path / "cache").exists()


def test_it_is_made_once(tmp_path: Path) -> None:
    folder, cache = write_genai_folder(tmp_path / "model", EXACT), tmp_path / "cache"
    (first,) = made(folder, cache)
    (first / "mark").touch()
    (second,) = made(folder, cache)
    assert second == first
    assert (second / "mark").exists()
    assert [path.name for path in cache.iterdir()] == [first.name]


def test_a_changed_model_gets_a_new_one(tmp_path: Path) -> None:
    folder, cache = write_genai_folder(tmp_path / "model", EXACT), tmp_path / "cache"
    (first,) = made(folder, cache)
    data = folder / "model.onnx.data"
    os.utime(data, (0, 0))
    (second,) = made(folder, cache)
    assert second != first


def test_without_a_cache_nothing_is_left(tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path / "model", EXACT)
    (fast,) = made(folder)
    assert fast != folder
    assert not fast.exists()


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    folder, cache = write_genai_folder(tmp_path / "model", EXACT), tmp_path / "cache"
    old, new = cache / ".unfinished-old", cache / ".unfinished-new"
    for left in (old, new):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    list(made(folder, cache))
    assert not old.exists()
    assert new.exists()


def test_a_file_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    folder, cache = write_genai_folder(tmp_path / "model", EXACT), tmp_path / "cache"
    os.truncate(folder / "model.onnx.data", 1000)
    with pytest.raises(UnsupportedModel, match=r"model\.onnx\.data"):
        list(made(folder, cache))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    folder = write_genai_folder(tmp_path / "model", EXACT)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RuntimeFailed, match="cache"):
        list(made(folder, tmp_path / "cache"))
