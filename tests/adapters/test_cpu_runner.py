"""What the CPU adapter's runner does beyond the contract: threads, several at a time, limits, and its cache."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vmm_adapters.catalog import load_causal_lm
from vmm_adapters.cpu.codegen.kernels import SIZES
from vmm_adapters.cpu.codegen.target import supported
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.cpu.kernels import compile_kept, writable
from vmm_adapters.cpu.objects import Code
from vmm_adapters.cpu.runner import CPURunner, load_runner
from vmm_adapters.cpu.share import COUNTER
from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions

from .tiny_decoder import TinyDecoder, dense_logits, write_decoder

pytestmark = pytest.mark.runtime

Logits = NDArray[np.float32]
Load = Callable[..., CPURunner]
TOKENS = np.random.default_rng(0).integers(0, 80, 70).tolist()


@pytest.fixture
def load(tmp_path: Path, kernel_cache: Path) -> Iterator[Load]:
    """`load(decoder, **options)`: a runner of a tiny model, closed in the end."""
    loaded: list[CPURunner] = []

    def run(decoder: TinyDecoder | None = None, isa: InstructionSet | None = None, **options: Any) -> CPURunner:
        folder = tmp_path / str(len(loaded))
        write_decoder(folder, decoder or TinyDecoder(weight_bits=4))
        chosen = RunnerOptions(
            kv_cache_bytes=4 << 20,
            num_threads=2,
            max_batched_tokens=96,
            max_sequences=8,
            shared_cache_dir=kernel_cache,
        )
        loaded.append(load_runner(folder, replace(chosen, **options), isa=isa))
        return loaded[-1]

    yield run
    for runner in loaded:
        runner.close()


def logits_of(runner: CPURunner, tokens: list[int] = TOKENS) -> Logits:
    return runner.execute(Batch((Chunk(tokens, 0, range(3), len(tokens)),))).copy()


def test_a_float_model_says_what_onnx_runtime_says(load: Load, tmp_path: Path) -> None:
    decoder = TinyDecoder(windows=(-1, 20))
    write_decoder(tmp_path / "reference", decoder)
    expected = dense_logits(tmp_path / "reference", decoder, TOKENS)
    assert np.abs(logits_of(load(decoder)) - expected).max() < 3e-3 * np.abs(expected).max()


@pytest.mark.skipif(len(supported()) < 3, reason="this machine has one set of vector instructions at most")
def test_another_instruction_set_gives_the_same_bits(load: Load) -> None:
    decoder = TinyDecoder(weight_bits=4, float_zero_points=True)
    assert (logits_of(load(decoder)) == logits_of(load(decoder, supported()[1]))).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int, load: Load) -> None:
    assert (logits_of(load(num_threads=num_threads)) == logits_of(load(num_threads=2))).all()


def test_several_runners_compute_at_the_same_time(load: Load) -> None:
    decoders = [
        TinyDecoder(weight_bits=4),
        TinyDecoder(weight_bits=8, num_layers=3),
        TinyDecoder(),
        TinyDecoder(half=True),
    ]
    runners = [load(decoder) for decoder in decoders]
    expected = [logits_of(runner) for runner in runners]

    def work(index: int) -> bool:
        return all((logits_of(runners[index]) == expected[index]).all() for _ in range(20))

    with ThreadPoolExecutor(len(runners)) as executor:
        assert all(executor.map(work, range(len(runners))))


def test_a_runner_is_closed_while_others_compute(load: Load) -> None:
    steady, others = load(), [load() for _ in range(4)]
    expected = logits_of(steady)
    with ThreadPoolExecutor(1) as executor:
        answers = executor.submit(lambda: [logits_of(steady) for _ in range(30)])
        for other in others:
            logits_of(other)
            other.close()
        assert all((answer == expected).all() for answer in answers.result(60))


def test_closing_ends_the_threads_and_what_comes_later_is_refused(load: Load) -> None:
    before = threading.active_count()
    runner = load(num_threads=4)
    assert threading.active_count() == before + 3
    runner.close()
    runner.close()
    assert threading.active_count() == before
    for act in (lambda: logits_of(runner), lambda: runner.copy_blocks([(0, 1)]), runner.warm_up):
        with pytest.raises(RuntimeFailed, match="closed"):
            act()


def test_a_step_that_is_too_large_is_refused_by_its_limit(load: Load) -> None:
    runner = load(max_batched_tokens=32, max_sequences=2)
    expected = logits_of(runner, TOKENS[:32])
    with pytest.raises(RuntimeFailed, match=r"33 tokens .* max_batched_tokens \(32\)"):
        logits_of(runner, TOKENS[:33])
    with pytest.raises(RuntimeFailed, match=r"3 chunks .* max_sequences \(2\)"):
        runner.execute(Batch(tuple(Chunk([1], 0, [block]) for block in range(3))))
    assert (logits_of(runner, TOKENS[:32]) == expected).all()


def test_tables_longer_than_all_sequences_are_refused(load: Load) -> None:
    runner = load(max_sequences=1)
    most = runner.context_length // runner.block_size
    runner.execute(Batch((Chunk(TOKENS, 0, [*range(3), *[0] * (most - 3)], 1),)))
    with pytest.raises(RuntimeFailed, match=f"{most + 1} blocks, more than {most}"):
        runner.execute(Batch((Chunk(TOKENS, 0, [*range(3), *[0] * (most - 2)], 1),)))


def test_keys_and_values_in_bytes_take_half_the_memory(load: Load) -> None:
    budget = 1 << 20
    wide, narrow = (load(kv_cache_bytes=budget, max_sequences=64, kv_cache_type=kind) for kind in (None, "u8"))
    assert 1.5 * wide.num_blocks < narrow.num_blocks < 2 * wide.num_blocks
    assert max(wide.memory_bytes, narrow.memory_bytes) >= budget // 2


def test_no_room_for_a_block_is_said(load: Load) -> None:
    with pytest.raises(OutOfMemory, match="holds no KV block; one takes"):
        load(kv_cache_bytes=1000)


def test_no_more_blocks_than_all_sequences_need(load: Load) -> None:
    runner = load(kv_cache_bytes=1 << 30, max_sequences=2)
    assert runner.num_blocks * runner.block_size == 2 * runner.context_length


def test_what_is_not_for_it_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match=r"on CPU alone, not on GPU\.0"):
        load(device="GPU.0")
    folder = tmp_path / "ir"
    folder.mkdir()
    (folder / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(UnsupportedModel):
        load_causal_lm("cpu", folder, RunnerOptions())


def test_what_is_compiled_is_said_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmm_adapters.cpu")
    (compiled,) = compile_kept(InstructionSet.PORTABLE, ["1"], tmp_path)
    before, after = (record.getMessage() for record in caplog.records)
    assert before == "compiling kernels for this machine, once (1)"
    assert re.fullmatch(r"compiled kernels in \d+\.\d s", after)
    caplog.clear()
    assert compile_kept(InstructionSet.PORTABLE, ["1"], tmp_path) == [compiled]
    assert not caplog.records
    assert len(Code(compiled).addresses) == len(SIZES)


@pytest.mark.parametrize(
    "change", [lambda kept: kept[:-1], lambda kept: kept[:99] + b"?" + kept[100:], lambda kept: b""]
)
def test_what_is_no_longer_as_it_was_kept_is_compiled_again(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (compiled,) = compile_kept(InstructionSet.PORTABLE, ["1"], tmp_path)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert compile_kept(InstructionSet.PORTABLE, ["1"], tmp_path) == [compiled]
    assert path.read_bytes() == whole


def test_what_the_machine_cannot_run_is_not_compiled(tmp_path: Path) -> None:
    (lacking, *_) = set(InstructionSet) - set(supported())
    with pytest.raises(RuntimeFailed, match=f"cannot be compiled here: this machine has no {lacking.name}") as failed:
        compile_kept(lacking, ["1"], tmp_path)
    assert "VMM_BACKEND=openvino" in str(failed.value.hint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert writable(None) is None
    assert writable(tmp_path / "new" / "kernels") == tmp_path / "new" / "kernels"
    assert not caplog.records
    (tmp_path / "file").write_text("")
    assert writable(tmp_path / "file" / "kernels") is None
    assert "compiled kernels are not kept" in caplog.text


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_locked_folder_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert writable(tmp_path / "locked") is None
    assert "nothing can be written" in caplog.text


def test_a_step_without_logits_ends_the_phases_of_logits_too(load: Load) -> None:
    runner = load(num_threads=1)
    team = runner._team
    assert team is not None
    ends = []
    for num_logits in (1, 0, 1):
        runner.execute(Batch((Chunk(TOKENS, 0, range(3), num_logits),)))
        ends.append(team._state[COUNTER])
    assert ends[1] - ends[0] == ends[2] - ends[1], "every step ends at the same phase"
