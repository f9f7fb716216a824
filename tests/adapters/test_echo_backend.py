"""The test model that schedules itself: the runner's words, and failures when it is told to."""

import json
from pathlib import Path

import numpy as np
import pytest

from vmm_adapters.catalog import load_text_backend
from vmm_adapters.echo import ASSISTANT, END, USER, Gate, encode, write_echo_model
from vmm_adapters.echo_backend import EchoBackend
from vmm_adapters.errors import AdapterError, OutOfMemory, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import FinishReason, RunnerOptions, SamplingParams, TextRequest

from .backend_subjects import GREEDY, Session

EOS = frozenset({END})
LONG = SamplingParams(temperature=0, max_tokens=60)


def chat(text: str) -> list[int]:
    return [USER, *text.encode(), END, ASSISTANT]


def test_it_says_what_the_runner_says(tmp_path: Path) -> None:
    write_echo_model(tmp_path)
    (tmp_path / "script.json").write_text(json.dumps([{"when": ["weather"], "say": "It rains."}]))
    session = Session(load_text_backend("echo-backend", tmp_path, RunnerOptions()))
    for question, said in (("hi there", "hi there"), ("the weather?", "It rains.")):
        answer = session.ask(chat(question), LONG, eos_token_ids=EOS)
        assert answer.token_ids == [*said.encode(), END]
        assert answer.finish_reason is FinishReason.STOP
    assert session.ask(b"xyz").token_ids == list(b"abcdefgh")


def test_images_come_back_as_their_sizes_in_order() -> None:
    images = tuple(np.zeros(shape, np.uint8) for shape in ((3, 4, 3), (1, 2, 3)))
    text = "<|user|>old<|end|><|assistant|>old<|end|><|user|>what?<|end|><|assistant|>"
    session = Session(EchoBackend())
    answer = session.ask((), LONG, text=text, images=images, eos_token_ids=EOS)
    assert bytes(answer.token_ids[:-1]) == b"[4x3][2x1]what?"
    assert answer.num_prompt_tokens == len(encode(text)) + len("[4x3][2x1]")


def test_the_longest_prefix_that_any_block_holds_is_cached() -> None:
    session = Session(EchoBackend(max_sequences=2))
    for prompt in (b"abcd", b"1234"):
        session.add(prompt)
    session.finish()
    answers = [session.ask(prompt) for prompt in (b"12345", b"abcx", b"abcx", b"zzz")]
    assert [answer.num_cached_tokens for answer in answers] == [4, 3, 3, 0]


def test_a_request_fails_when_it_is_told_to() -> None:
    def fail(request: TextRequest, num_drawn: int) -> AdapterError | None:
        return RuntimeFailed("told to") if request.token_ids[0] == ord("!") and num_drawn == 2 else None

    session = Session(EchoBackend(fail=fail))
    bad, good = session.add(b"!a"), session.add(b"a")
    session.finish()
    assert (bad.token_ids, str(bad.error)) == ([*b"bc"], "told to")
    assert good.token_ids == [*b"bcdefghi"]


def test_a_step_that_fails_loses_all_requests_and_no_later_ones() -> None:
    errors = [RuntimeFailed("once")]

    def gate(batch: object) -> None:
        if errors:
            raise errors.pop()

    backend = EchoBackend(gate=gate)
    lost = Session(backend)
    lost.add(b"abc")
    with pytest.raises(RuntimeFailed, match="once"):
        lost.step()
    assert not backend.step()
    answer = Session(backend).ask(b"abc")
    assert answer.token_ids == [*b"defghijk"]
    assert answer.num_cached_tokens == 0, "nothing of a failed step is kept"


def test_a_gate_holds_a_step() -> None:
    gate = Gate()
    gate.release()
    session = Session(EchoBackend(gate=gate))
    session.add(b"abc")
    session.step()
    assert len(gate.batch.chunks) == 1


def test_more_than_it_computes_at_once_is_refused() -> None:
    session = Session(EchoBackend(max_sequences=1))
    session.add(b"a")
    with pytest.raises(RuntimeFailed, match="1 requests at the same time"):
        session.add(b"a", GREEDY)


def test_other_folders_and_too_little_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel):
        load_text_backend("echo-backend", tmp_path, RunnerOptions())
    write_echo_model(tmp_path)
    with pytest.raises(OutOfMemory):
        load_text_backend("echo-backend", tmp_path, RunnerOptions(kv_cache_bytes=100))
    assert load_text_backend("echo-backend", tmp_path, RunnerOptions(max_sequences=2)).max_sequences == 2
