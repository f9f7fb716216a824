"""The scripted test model: which answer it gives, and how it keeps to it."""

import json
from pathlib import Path

import numpy as np
import pytest

from vmm_adapters.catalog import load_causal_lm
from vmm_adapters.echo import ASSISTANT, END, USER, decode, write_echo_model
from vmm_adapters.echo_script import NO_THINKING, Entry, Script, next_byte, read_script
from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions

SCRIPT = [
    {"when": ["weather", "<tools>"], "unless": ["<|tool|>"], "say": "<tool_call>"},
    {"when": ["weather"], "say": "Sunny, 20 °C."},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_echo_model(tmp_path)
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT), "utf-8")
    return tmp_path


def test_the_first_entry_that_matches_decides(folder: Path) -> None:
    script = read_script(folder)
    assert script
    assert script.answer(b"<tools>[]</tools><|user|>weather?") == b"<tool_call>"
    assert script.answer(b"<tools>[]</tools><|user|>weather?<|tool|>20") == "Sunny, 20 °C.".encode()
    assert script.answer(b"<|user|>weather?") == "Sunny, 20 °C.".encode()
    assert script.answer(b"<|user|>hello") is None


@pytest.mark.parametrize("text", ["{", "3", "[3]", '[{"when": []}]', '[{"when": [1], "say": ""}]', '[{"if": []}]'])
def test_what_is_no_script_is_refused(folder: Path, text: str) -> None:
    (folder / "script.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"script\.json is not a script"):
        read_script(folder)


def test_a_forced_byte_does_not_lead_it_astray() -> None:
    answer = b'{"a": 1, "b": 2}'
    assert next_byte(answer, b"") == ord("{")
    assert next_byte(answer, b'{"a": 1,') == ord(" ")
    assert next_byte(answer, b'{"a":') == ord(" ")
    assert next_byte(answer, b'{"a":1') == ord(",")
    assert next_byte(answer, b'{"a":1,"b') == ord('"')
    assert next_byte(answer, b"xyz") is None
    assert next_byte(answer, answer) is None
    assert next_byte(answer, b"xyz" + answer) is None


def test_it_does_not_think_when_the_prompt_says_so() -> None:
    answer = b"<think>\nWell.\n</think>\n\nYes."
    assert next_byte(answer, b"") == ord("<")
    assert next_byte(answer, NO_THINKING) == ord("Y")
    assert next_byte(answer, NO_THINKING + b"Yes") == ord(".")
    assert next_byte(b"No.", NO_THINKING) == ord("N")


def test_the_script_is_followed_in_any_chunks_and_the_rest_is_echoed(folder: Path) -> None:
    runner = load_causal_lm("echo", folder, RunnerOptions())

    def answer(question: bytes, chunk_size: int, blocks: list[int], begun: bytes = b"") -> bytes:
        tokens, start = [USER, *question, END, ASSISTANT, *begun], 0
        while True:
            chunk = tokens[start : start + chunk_size]
            logits = runner.execute(Batch((Chunk(chunk, start, blocks),)))
            start += len(chunk)
            if start == len(tokens):
                tokens.append(int(logits[-1].argmax()))
                if tokens[-1] == END:
                    return decode(np.array(tokens[:-1], np.int32)).rpartition(b"<|assistant|>")[2]

    for chunk_size in (100, 7):
        assert answer(b"How is the weather?", chunk_size, [3, 1, 4, 5]) == "Sunny, 20 °C.".encode()
        assert answer(b"hello", chunk_size, [1, 0, 2]) == b"hello"
        assert answer(b"hello", chunk_size, [1, 0, 2], NO_THINKING) == NO_THINKING + b"hello"


def test_old_answers_are_forgotten(folder: Path) -> None:
    runner = load_causal_lm("echo", folder, RunnerOptions())
    for number in range(300):
        tokens = [USER, *str(number).encode(), END, ASSISTANT]
        assert runner.execute(Batch((Chunk(tokens, 0, [0]),))).argmax() == tokens[1]
    assert len(runner._answers) < 300  # type: ignore[attr-defined]


def test_special_tokens_have_names() -> None:
    assert decode(np.array([256, *b"a", 260, 257], np.int32)) == b"<|system|>a<|end|><|user|>"
    assert decode(np.array([], np.int32)) == b""
    assert Script((Entry((), (), b"x"),)).answer(b"") == b"x"


def test_the_scripted_model_of_the_compat_tests_is_of_this_making(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "compat_tests" / "scripted"
    write_echo_model(tmp_path, context_length=131072, block_size=256)
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json"):
        assert (folder / name).read_text("utf-8") == (tmp_path / name).read_text("utf-8")
    script = read_script(folder)
    assert script
    assert script.answer(b"<|user|>How is the weather in Paris?<|tool|>sunny") == b"It is sunny in Paris."
