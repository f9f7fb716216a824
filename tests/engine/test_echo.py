"""The test model itself: predictable, and strict about its blocks."""

from pathlib import Path

import numpy as np
import pytest

from vmm_adapters.catalog import load_causal_lm
from vmm_adapters.echo import END, Gate, next_token, write_echo_model
from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions


def token_after(text: bytes | list[int]) -> int:
    return next_token(np.array(list(text), np.int32))


def test_the_alphabet_goes_on_after_text() -> None:
    assert [token_after(text) for text in (b"a", b"xyz", b"Y", b"Z", b"1")] == [*b"baZaa"]


def test_the_last_user_message_comes_back() -> None:
    context = [256, *b"s", END, 257, *b"old", END, 258, *b"old", END, 257, *b"hi", END, 258]
    assert token_after(context) == ord("h")
    assert token_after([*context, *b"h"]) == ord("i")
    assert token_after([*context, *b"hi"]) == END
    assert token_after([258]) == END


def test_a_step_may_mix_prompt_chunks_and_decodes(tmp_path: Path) -> None:
    write_echo_model(tmp_path, block_size=4)
    runner = load_causal_lm("echo", tmp_path, RunnerOptions())
    logits = runner.execute(Batch((Chunk([*b"abcdef"], 0, [5, 2], 3), Chunk([*b"xy"], 0, [0], 0))))
    assert logits.shape == (3, runner.vocab_size)
    assert logits.dtype == np.float32
    assert logits.argmax(axis=1).tolist() == [*b"efg"]
    logits = runner.execute(Batch((Chunk([*b"g"], 6, [5, 2]), Chunk([*b"z"], 2, [0]))))
    assert logits.argmax(axis=1).tolist() == [*b"ha"]
    runner.close()
    runner.close()


def test_logits_depend_on_the_whole_context_and_not_on_the_chunks(tmp_path: Path) -> None:
    write_echo_model(tmp_path, block_size=4)
    runner = load_causal_lm("echo", tmp_path, RunnerOptions())
    whole = runner.execute(Batch((Chunk([*b"abcdef"], 0, [0, 1]),))).copy()
    runner.execute(Batch((Chunk([*b"abc"], 0, [2], 0),)))
    parts = runner.execute(Batch((Chunk([*b"def"], 3, [2, 3]),))).copy()
    other = runner.execute(Batch((Chunk([*b"bbcdef"], 0, [4, 5]),))).copy()
    assert (whole == parts).all()
    assert whole.argmax() == other.argmax()
    assert (whole != other).sum() > 200


@pytest.mark.parametrize(
    ("table", "start"),
    [([0, 9], 4), ([1, 0], 7), ([2, 1], 7), ([0], 4)],
    ids=["never written", "swapped", "another's", "too short"],
)
def test_a_wrong_block_table_is_noticed(tmp_path: Path, table: list[int], start: int) -> None:
    write_echo_model(tmp_path, block_size=4)
    runner = load_causal_lm("echo", tmp_path, RunnerOptions())
    runner.execute(Batch((Chunk([*b"aaaaaaa"], 0, [0, 1]), Chunk([*b"baaa"], 0, [2]))))
    with pytest.raises(RuntimeFailed):
        runner.execute(Batch((Chunk([*b"a"], start + (table == [0, 9]), table),)))


def test_blocks_are_copied_in_order(tmp_path: Path) -> None:
    write_echo_model(tmp_path, block_size=4)
    runner = load_causal_lm("echo", tmp_path, RunnerOptions())
    runner.execute(Batch((Chunk([*b"abcd"], 0, [0]),)))
    runner.copy_blocks([(0, 1), (1, 2)])
    assert runner.execute(Batch((Chunk([*b"m"], 4, [2, 3]),))).argmax() == ord("n")


def test_the_number_of_blocks_follows_the_memory(tmp_path: Path) -> None:
    write_echo_model(tmp_path, context_length=100, block_size=16)
    options = RunnerOptions(kv_cache_bytes=16 * 12 * 5, max_sequences=64)
    assert load_causal_lm("echo", tmp_path, options).num_blocks == 5
    assert load_causal_lm("echo", tmp_path, RunnerOptions(max_sequences=2)).num_blocks == 14
    with pytest.raises(OutOfMemory):
        load_causal_lm("echo", tmp_path, RunnerOptions(kv_cache_bytes=10))


@pytest.mark.parametrize(
    "config", [None, "{", "[]", '{"model": {}}', '{"model": {"type": "llama", "context_length": 1}}']
)
def test_other_folders_are_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "genai_config.json").write_text(config)
    with pytest.raises(UnsupportedModel):
        load_causal_lm("echo", tmp_path, RunnerOptions())


def test_a_gate_says_when_nothing_comes() -> None:
    with pytest.raises(TimeoutError):
        Gate().wait_entered(timeout_s=0.01)
