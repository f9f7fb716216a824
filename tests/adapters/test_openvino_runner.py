"""KV sizing, folders, devices and the cache of rewritten decoders."""

import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from vmm_adapters.decoder_folder import read_model_folder
from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel
from vmm_adapters.openvino.graph import read_paged_model
from vmm_adapters.openvino.ir_folder import IRCache
from vmm_adapters.openvino.kv_cache import KVCache, read_layout
from vmm_adapters.openvino.runner import OpenVINORunner, load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions

from .tiny_decoder import PRECISE, FloatArray, TinyDecoder, write_decoder

pytestmark = pytest.mark.runtime

OPTIONS = RunnerOptions(kv_cache_bytes=1024**2, max_batched_tokens=64, max_sequences=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model", TinyDecoder(weight_bits=4), external_data=True)


def logits_of(runner: OpenVINORunner) -> FloatArray:
    return runner.execute(Batch((Chunk(list(range(40)), 0, [1, 0], 40),))).copy()


def test_the_budget_decides_the_number_of_blocks(folder: Path) -> None:
    plain = load_runner(folder, replace(OPTIONS, max_sequences=1000))
    block_bytes = sum(tensor.byte_size for tensor in plain._cache.tensors.values()) // plain.num_blocks
    assert plain.num_blocks == OPTIONS.kv_cache_bytes // block_bytes
    assert plain.memory_bytes >= plain.num_blocks * block_bytes


def test_keys_and_values_are_of_the_type_that_is_asked_for(folder: Path) -> None:
    wide, narrow = (
        load_runner(folder, replace(OPTIONS, max_sequences=1000, kv_cache_type=kind)) for kind in ("f16", "u8")
    )
    assert 1.4 * wide.num_blocks < narrow.num_blocks < 2 * wide.num_blocks


def test_no_more_blocks_than_the_sequences_can_fill(folder: Path) -> None:
    runner = load_runner(folder, OPTIONS)
    assert runner.num_blocks == 2 * 256 // runner.block_size


def test_a_budget_without_room_for_a_block_is_out_of_memory(folder: Path) -> None:
    with pytest.raises(OutOfMemory, match="holds no KV block"):
        load_runner(folder, replace(OPTIONS, kv_cache_bytes=100))


def resident_bytes(mapped: str = "") -> int:
    """Of the process, or of one mapped file whose path ends so."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0].isdigit() or line[0] in "abcdef":
            counts = line.endswith(mapped)
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_cost_no_memory_before_they_are_written(folder: Path) -> None:
    before = resident_bytes()
    runner = load_runner(folder, replace(OPTIONS, kv_cache_bytes=1024**3, max_sequences=100_000))
    assert runner.memory_bytes > 900 * 1024**2
    assert resident_bytes() - before < 200 * 1024**2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_pages_are_let_go_after_warm_up(folder: Path, tmp_path: Path) -> None:
    runner = load_runner(folder, replace(OPTIONS, cache_dir=tmp_path / "cache"))
    assert resident_bytes("/decoder.bin") > 0
    runner.warm_up()
    assert resident_bytes("/decoder.bin") == 0


@pytest.mark.parametrize("precision", ["u8", "f16", "f32"])
def test_the_layout_is_read_off_the_compiled_model(folder: Path, precision: str) -> None:
    core = ov.Core()
    paged = read_paged_model(core, folder / "model.onnx", None)
    compiled = core.compile_model(paged.model, "CPU", {**PRECISE, "KV_CACHE_PRECISION": precision})
    layout = read_layout(compiled)
    cache = KVCache(core, "CPU", layout, 7)
    shapes = {name: tuple(tensor.shape) for name, tensor in cache.tensors.items()}
    assert layout.block_size == shapes["value_cache.1"][2]
    assert {shape[0] for shape in shapes.values()} == {7}
    assert cache.num_bytes == sum(tensor.byte_size for tensor in cache.tensors.values()) == 7 * layout.block_bytes


def test_a_device_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(RuntimeFailed, match=r"GPU\.7") as caught:
        load_runner(folder, replace(OPTIONS, device="GPU.7"))
    assert "CPU" in (caught.value.hint or "")


def test_threads_are_set(folder: Path) -> None:
    runner = load_runner(folder, replace(OPTIONS, num_threads=1))
    assert runner._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_a_closed_runner_refuses_work(folder: Path) -> None:
    runner = load_runner(folder, OPTIONS)
    runner.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        runner.execute(Batch((Chunk([1], 0, [0]),)))
    with pytest.raises(RuntimeFailed, match="closed"):
        runner.copy_blocks([(0, 1)])


def test_copying_a_block_that_is_not_there_is_refused(folder: Path) -> None:
    runner = load_runner(folder, OPTIONS)
    with pytest.raises(RuntimeFailed, match="copy of blocks"):
        runner.copy_blocks([(0, runner.num_blocks)])


def test_the_context_length_is_the_lesser_of_config_and_rotary_cache(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path, TinyDecoder(context_length=96))
    config = folder / "genai_config.json"
    described = json.loads(config.read_text())
    for length, expected in ((4096, 96), (64, 64)):
        described["model"]["context_length"] = length
        config.write_text(json.dumps(described))
        assert load_runner(folder, OPTIONS).context_length == expected


class TestModelFolder:
    def test_genai_config_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "decoder.onnx").touch()
        config = {"model": {"context_length": 77, "decoder": {"filename": "decoder.onnx"}}}
        (tmp_path / "genai_config.json").write_text(json.dumps(config))
        found = read_model_folder(tmp_path)
        assert found.decoder.name == "decoder.onnx"
        assert found.context_length == 77

    def test_an_ir_folder_has_its_length_in_config_json(self, tmp_path: Path) -> None:
        (tmp_path / "openvino_model.xml").touch()
        (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 99}}))
        found = read_model_folder(tmp_path)
        assert found.decoder.name == "openvino_model.xml"
        assert found.context_length == 99

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedModel, match=r"no model\.onnx or openvino_model\.xml"):
            read_model_folder(tmp_path)

    def test_a_missing_named_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "gone.onnx"}}}))
        with pytest.raises(UnsupportedModel, match=r"no gone\.onnx"):
            read_model_folder(tmp_path)

    def test_a_broken_config_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "genai_config.json").write_text("{")
        with pytest.raises(UnsupportedModel, match=r"genai_config\.json"):
            read_model_folder(tmp_path)


class TestCache:
    @pytest.fixture
    def cached(self, tmp_path: Path) -> RunnerOptions:
        return replace(OPTIONS, cache_dir=tmp_path / "cache")

    @pytest.fixture
    def plain(self, folder: Path) -> FloatArray:
        return logits_of(load_runner(folder, OPTIONS, properties=PRECISE))

    def entries(self, options: RunnerOptions) -> list[Path]:
        assert options.cache_dir is not None
        return sorted(options.cache_dir.iterdir())

    def test_both_starts_give_the_same_logits(self, folder: Path, cached: RunnerOptions, plain: FloatArray) -> None:
        first = load_runner(folder, cached, properties=PRECISE)
        second = load_runner(folder, cached, properties=PRECISE)
        np.testing.assert_array_equal(logits_of(first), plain)
        np.testing.assert_array_equal(logits_of(second), plain)
        assert second.context_length == first.context_length == 256
        assert len(self.entries(cached)) == 1

    def test_a_hit_reads_no_onnx(self, folder: Path, cached: RunnerOptions) -> None:
        load_runner(folder, cached)
        onnx = folder / "model.onnx"
        state = onnx.stat()
        onnx.write_bytes(b"x" * state.st_size)
        os.utime(onnx, ns=(state.st_atime_ns, state.st_mtime_ns))
        load_runner(folder, cached)

    def test_sliding_windows_survive(self, tmp_path: Path, cached: RunnerOptions) -> None:
        folder = write_decoder(tmp_path / "windows", TinyDecoder(windows=(8, -1)))
        load_runner(folder, cached)
        again = load_runner(folder, cached, properties=PRECISE)
        uncached = load_runner(folder, OPTIONS, properties=PRECISE)
        np.testing.assert_array_equal(logits_of(again), logits_of(uncached))

    def test_weights_stay_usable_when_their_pages_are_let_go(
        self, folder: Path, cached: RunnerOptions, plain: FloatArray
    ) -> None:
        runner = load_runner(folder, cached, properties=PRECISE)
        runner.warm_up()
        np.testing.assert_allclose(logits_of(runner), plain, atol=1e-5)

    @pytest.mark.parametrize("name", ["decoder.xml", "decoder.bin", "decoder.sha256"])
    @pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
    def test_a_damaged_entry_is_made_again(
        self,
        folder: Path,
        cached: RunnerOptions,
        plain: FloatArray,
        caplog: pytest.LogCaptureFixture,
        name: str,
        damage: str,
    ) -> None:
        load_runner(folder, cached)
        file = self.entries(cached)[0] / name
        whole = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(logits_of(load_runner(folder, cached, properties=PRECISE)), plain)
        assert "made again" in caplog.text
        assert file.stat().st_size > len(whole) // 2

    def test_a_graph_that_was_tampered_with_is_made_again(
        self, tmp_path: Path, cached: RunnerOptions, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = write_decoder(tmp_path / "windows", TinyDecoder(windows=(8, -1)))
        expected = logits_of(load_runner(folder, cached, properties=PRECISE))
        xml = self.entries(cached)[0] / "decoder.xml"
        text = xml.read_text()
        assert "[8, null]" in text
        xml.write_text(text.replace("[8, null]", "[9, null]"))
        np.testing.assert_array_equal(logits_of(load_runner(folder, cached, properties=PRECISE)), expected)
        assert "made again" in caplog.text

    def test_a_changed_model_replaces_its_entry(self, folder: Path, cached: RunnerOptions) -> None:
        load_runner(folder, cached)
        before = self.entries(cached)
        write_decoder(folder, TinyDecoder(weight_bits=4), seed=1, external_data=True)
        changed = logits_of(load_runner(folder, cached, properties=PRECISE))
        np.testing.assert_array_equal(changed, logits_of(load_runner(folder, OPTIONS, properties=PRECISE)))
        assert len(self.entries(cached)) == 1
        assert self.entries(cached) != before

    def test_what_a_killed_process_left_is_removed(self, folder: Path, cached: RunnerOptions) -> None:
        assert cached.cache_dir is not None
        old, young = (cached.cache_dir / name for name in (".new-old", ".new-young"))
        for path in (old, young):
            path.mkdir(parents=True)
        os.utime(old, (0, 0))
        load_runner(folder, cached)
        assert not old.exists()
        assert young.exists()

    def test_a_folder_that_cannot_be_written_only_warns(
        self, folder: Path, tmp_path: Path, plain: FloatArray, caplog: pytest.LogCaptureFixture
    ) -> None:
        blocked = tmp_path / "file"
        blocked.touch()
        runner = load_runner(folder, replace(OPTIONS, cache_dir=blocked), properties=PRECISE)
        np.testing.assert_array_equal(logits_of(runner), plain)
        assert "not kept" in caplog.text

    def test_several_may_start_at_once(self, folder: Path, cached: RunnerOptions, plain: FloatArray) -> None:
        with ThreadPoolExecutor(4) as threads:
            runners = list(threads.map(lambda _: load_runner(folder, cached, properties=PRECISE), range(4)))
        for runner in runners:
            np.testing.assert_array_equal(logits_of(runner), plain)
        assert len(self.entries(cached)) == 1

    def test_entries_of_other_models_stay(self, folder: Path, tmp_path: Path, cached: RunnerOptions) -> None:
        other = write_decoder(tmp_path / "other", TinyDecoder())
        load_runner(folder, cached)
        load_runner(other, cached)
        assert len(self.entries(cached)) == 2
        assert cached.cache_dir is not None
        assert IRCache(cached.cache_dir).read(ov.Core(), folder / "model.onnx") is not None
