"""What every `TextBackend` promises, whatever computes it (`vmm_adapters/base.py`)."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from vmm_adapters.base import TextBackend
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import FinishReason, Guidance, SamplingParams
from vmm_server.engine.backend_executor import BackendExecutor
from vmm_server.engine.sequence import Sequence, SequenceStatus

from .backend_subjects import BACKENDS, GREEDY, PATIENCE, Answer, BackendSubject, Session, ids


@pytest.fixture(scope="module", params=BACKENDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BackendSubject:
    built: BackendSubject = request.param(tmp_path_factory.mktemp("model"))
    return built


@pytest.fixture(scope="module")
def backend(subject: BackendSubject) -> Iterator[TextBackend]:
    loaded = subject.load()
    yield loaded
    loaded.close()


@pytest.fixture
def session(backend: TextBackend) -> Iterator[Session]:
    session = Session(backend)
    yield session
    for request_id, answer in session.answers.items():
        if not answer.is_over:
            backend.abort(request_id)
    assert not backend.step(), "an aborted request says nothing"


def prompt_of(seed: int, length: int = 12) -> tuple[int, ...]:
    """Ids that every vocabulary under test has, none of them special. The last one is a letter, for the echo model."""
    return (*np.random.default_rng(seed).integers(10, 70, length - 1).tolist(), ord("A") + seed % 5)


def needs(backend: TextBackend, *fields: str) -> None:
    """Skip what the backend says it lacks."""
    for field in fields:
        if field in backend.lacks:
            pytest.skip(f"lacks {field}: {backend.lacks[field]}")


def new_token(answer: Answer, first: int) -> int:
    """The index, `first` or later, of a token of the answer that does not come before it."""
    ids = answer.token_ids
    return next(index for index in range(first, len(ids)) if ids[index] not in ids[:index])


def varied(session: Session, first: int = 2) -> tuple[tuple[int, ...], Answer, int]:
    """A prompt whose greedy answer brings a new token at an index of `first` or later; the answer and the index."""
    for seed in range(100, 140):
        answer = session.ask(prompt_of(seed), replace(GREEDY, max_tokens=12))
        if len(set(answer.token_ids[first:]) - set(answer.token_ids[:first])):
            return prompt_of(seed), answer, new_token(answer, first)
    raise AssertionError("the model always says the same")


def test_its_sizes_are_sane(backend: TextBackend) -> None:
    assert backend.max_sequences >= 1
    assert backend.vocab_size >= 80
    assert backend.context_length >= 100
    assert backend.memory_bytes > 0
    assert backend.device


def test_what_it_lacks_are_fields_and_reasons(backend: TextBackend) -> None:
    assert set(backend.lacks) <= {*SamplingParams.__dataclass_fields__, "guidance"}
    assert all(backend.lacks.values())
    assert not {"temperature", "max_tokens", "ignore_eos"} & set(backend.lacks), "nothing works without these"
    assert not {"stop", "stop_token_ids"} & set(backend.lacks), "it is never asked for these"


def test_tokens_are_in_the_vocabulary(session: Session, subject: BackendSubject) -> None:
    for seed in range(3):
        answer = session.ask(prompt_of(seed), replace(subject.lively, seed=seed, max_tokens=12))
        assert all(0 <= token_id < session.backend.vocab_size for token_id in answer.token_ids)


def test_nothing_is_said_without_requests(backend: TextBackend) -> None:
    assert not backend.step()


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_cuts_the_answer(session: Session, max_tokens: int) -> None:
    answer = session.ask(prompt_of(1), replace(GREEDY, max_tokens=max_tokens))
    assert len(answer.token_ids) == max_tokens
    assert answer.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("room", [1, 2, 7])
def test_max_length_counts_prompt_and_answer(session: Session, room: int) -> None:
    prompt = prompt_of(2, 20)
    answer = session.ask(prompt, replace(GREEDY, max_tokens=None), max_length=len(prompt) + room)
    assert len(answer.token_ids) == room
    assert answer.finish_reason is FinishReason.LENGTH


def test_the_context_length_ends_an_answer_that_nothing_else_ends(session: Session) -> None:
    context_length = session.backend.context_length
    prompt = prompt_of(3, context_length - 5)
    answer = session.ask(prompt, replace(GREEDY, max_tokens=None))
    assert len(answer.token_ids) == 5
    assert answer.finish_reason is FinishReason.LENGTH


def test_a_prompt_of_one_token_is_answered(session: Session) -> None:
    assert len(session.ask(prompt_of(4, 1)).token_ids) == 8


@pytest.mark.parametrize("excess", [0, 30])
def test_a_prompt_that_leaves_no_room_is_refused_and_harms_nobody(session: Session, excess: int) -> None:
    expected = session.ask(prompt_of(5)).token_ids
    other = session.add(prompt_of(5))
    with pytest.raises(AdapterError):
        session.add(prompt_of(6, session.backend.context_length + excess))
    session.finish()
    assert other.token_ids == expected


def test_an_end_token_ends_the_answer_and_is_its_last_one(session: Session) -> None:
    prompt, plain, index = varied(session)
    answer = session.ask(prompt, replace(GREEDY, max_tokens=12), eos_token_ids=frozenset({plain.token_ids[index]}))
    assert answer.token_ids == plain.token_ids[: index + 1]
    assert answer.finish_reason is FinishReason.STOP


def test_an_end_token_at_the_limit_is_an_end(session: Session) -> None:
    prompt, plain, index = varied(session)
    eos = frozenset({plain.token_ids[index]})
    answer = session.ask(prompt, replace(GREEDY, max_tokens=index + 1), eos_token_ids=eos)
    assert len(answer.token_ids) == index + 1
    assert answer.finish_reason is FinishReason.STOP


def test_end_tokens_are_each_requests_own(session: Session) -> None:
    needs_company(session.backend)
    prompt, plain, index = varied(session)
    ends = session.add(prompt, replace(GREEDY, max_tokens=12), eos_token_ids=frozenset({plain.token_ids[index]}))
    goes_on = session.add(prompt, replace(GREEDY, max_tokens=12))
    session.finish()
    assert len(ends.token_ids) == index + 1
    assert len(goes_on.token_ids) == 12


def test_without_end_tokens_nothing_but_a_limit_ends_the_answer(session: Session, subject: BackendSubject) -> None:
    sampling = replace(subject.lively, seed=1, max_tokens=60, ignore_eos=True)
    answer = session.ask(prompt_of(7), sampling)
    assert len(answer.token_ids) == 60
    assert answer.finish_reason is FinishReason.LENGTH


def test_no_end_comes_before_min_tokens(session: Session) -> None:
    needs(session.backend, "min_tokens")
    prompt, plain, index = varied(session)
    sampling = replace(GREEDY, max_tokens=12, min_tokens=index + 2)
    eos = plain.token_ids[index]
    answer = session.ask(prompt, sampling, eos_token_ids=frozenset({eos}))
    assert len(answer.token_ids) >= index + 2
    assert eos not in answer.token_ids[: index + 2][:-1]
    assert answer.token_ids[:index] == plain.token_ids[:index]


def needs_company(backend: TextBackend) -> None:
    if backend.max_sequences < 2:
        pytest.skip("computes one request at a time")


def test_a_greedy_answer_is_the_same_alone_and_in_a_batch(session: Session, subject: BackendSubject) -> None:
    needs_company(session.backend)
    prompts = [prompt_of(20 + index, 5 + 9 * index) for index in range(min(4, session.backend.max_sequences))]
    alone = [session.ask(prompt).token_ids for prompt in prompts]
    together = [session.add(prompt) for prompt in prompts[:2]]
    session.step()  # the rest comes when these are on their way
    together += [session.add(prompt) for prompt in prompts[2:]]
    session.finish()
    size = None if subject.is_exact else 1
    assert [answer.token_ids[:size] for answer in together] == [token_ids[:size] for token_ids in alone]
    assert len({tuple(token_ids) for token_ids in alone}) > 1, "the prompts should matter"


def test_as_many_requests_as_it_says_run_at_once(session: Session) -> None:
    answers = [session.add(prompt_of(30 + index)) for index in range(session.backend.max_sequences)]
    session.step_until(*answers, num_tokens=1)
    assert all(answer.token_ids for answer in answers)
    session.finish()
    assert {answer.finish_reason for answer in answers} == {FinishReason.LENGTH}


def test_a_seed_says_the_same_again(session: Session, subject: BackendSubject) -> None:
    needs(session.backend, "seed")
    lively = replace(subject.lively, max_tokens=16)
    said = [session.ask(prompt_of(8), replace(lively, seed=seed)).token_ids for seed in (7, 7, 8)]
    assert said[0] == said[1] != said[2]


def test_no_seed_is_another_one_each_time(session: Session, subject: BackendSubject) -> None:
    said = {tuple(session.ask(prompt_of(8), replace(subject.lively, max_tokens=16)).token_ids) for _ in range(4)}
    assert len(said) > 1


def test_top_k_of_one_is_greedy(session: Session, subject: BackendSubject) -> None:
    needs(session.backend, "top_k")
    greedy = session.ask(prompt_of(9)).token_ids
    assert session.ask(prompt_of(9), replace(subject.lively, top_k=1, max_tokens=8)).token_ids == greedy


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 22]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("guidance", "pattern"),
    [
        (Guidance("regex", "[0-9]{3,5}x"), "[0-9]{3,5}x"),
        (Guidance("lark", 'start: "ab" one{2}\none: "cd" | /[xyz]{2}/'), "ab(cd|[xyz]{2}){2}"),
        (Guidance("json_schema", json.dumps(SCHEMA)), r'\s*\{\s*"a"\s*:\s*(true|false)\s*,\s*"b"\s*:\s*(1|22)\s*\}\s*'),
    ],
    ids=lambda value: value.kind if isinstance(value, Guidance) else "",
)
@pytest.mark.parametrize("temperature", ["greedy", "lively"])
def test_guidance_holds(
    session: Session, subject: BackendSubject, guidance: Guidance, pattern: str, temperature: str
) -> None:
    needs(session.backend, "guidance")
    sampling = replace(GREEDY if temperature == "greedy" else subject.lively, seed=3, max_tokens=80)
    free = session.add(prompt_of(10), replace(GREEDY, max_tokens=4)) if session.backend.max_sequences > 1 else None
    answer = session.ask(prompt_of(10), sampling, eos_token_ids=subject.eos_token_ids, guidance=guidance)
    text = subject.decode(answer.token_ids)
    if answer.finish_reason is FinishReason.STOP:
        assert re.fullmatch(pattern, text), text
    else:
        assert guidance.kind == "json_schema", "only blanks can be so many"
        assert text.lstrip().startswith("{")
    if free is not None:
        assert free.token_ids == session.ask(prompt_of(10), replace(GREEDY, max_tokens=4)).token_ids


def test_guidance_that_does_not_compile_fails_its_request_alone(session: Session) -> None:
    needs(session.backend, "guidance")
    expected = session.ask(prompt_of(11)).token_ids
    other = session.add(prompt_of(11)) if session.backend.max_sequences > 1 else None
    wrong = Guidance("lark", "start: no_such_rule")
    try:
        answer = session.add(prompt_of(12), guidance=wrong)
    except AdapterError:
        pass  # nothing is kept of it
    else:
        session.finish()
        assert answer.error is not None
        assert answer.token_ids == []
    session.finish()
    if other is not None:
        assert other.token_ids == expected
    assert session.ask(prompt_of(11)).token_ids == expected


@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_an_abort_leaves_the_others_alone(session: Session, num_tokens: int) -> None:
    needs_company(session.backend)
    expected = session.ask(prompt_of(13)).token_ids
    other, doomed = session.add(prompt_of(13)), session.add(prompt_of(14), replace(GREEDY, max_tokens=30))
    session.step_until(doomed, num_tokens=num_tokens)
    session.abort(doomed)
    num_said = len(doomed.token_ids)
    session.finish()
    assert other.token_ids == expected
    assert len(doomed.token_ids) == num_said


def test_an_abort_makes_room(session: Session) -> None:
    for _ in range(2):
        doomed = [
            session.add(prompt_of(15 + i), replace(GREEDY, max_tokens=40)) for i in range(session.backend.max_sequences)
        ]
        session.step()
        for answer in doomed:
            session.abort(answer)
    assert len(session.ask(prompt_of(15)).token_ids) == 8


def test_aborting_what_is_not_there_is_fine(session: Session) -> None:
    answer = session.ask(prompt_of(16))
    session.abort(answer)
    session.backend.abort(next(ids))
    assert len(session.ask(prompt_of(16)).token_ids) == 8


def test_cached_tokens_are_of_the_prompt(session: Session) -> None:
    prompt = prompt_of(17, 40)
    first, second = session.ask(prompt), session.ask(prompt)
    assert second.token_ids == first.token_ids
    for answer in (first, second):
        assert answer.num_prompt_tokens in (None, len(prompt))
        assert answer.num_cached_tokens is None or 0 <= answer.num_cached_tokens < len(prompt)


def test_images_are_part_of_the_prompt(session: Session, subject: BackendSubject) -> None:
    if subject.sees is None:
        pytest.skip("does not see")
    seeing, blind = subject.sees
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 56, 3)).astype(np.uint8)
    first = session.ask((), text=seeing, images=tuple(pixels))
    assert first.num_prompt_tokens is not None, "who asks does not know it"
    assert 0 < first.num_prompt_tokens < session.backend.context_length
    assert session.ask((), text=seeing, images=tuple(pixels)).token_ids == first.token_ids
    without = session.ask((), text=blind)
    assert without.num_prompt_tokens is not None
    assert without.num_prompt_tokens < first.num_prompt_tokens


def test_what_is_cached_changes_no_answer(subject: BackendSubject) -> None:
    """A prompt after its beginnings were answered, and in a backend that has seen nothing."""
    prompt = prompt_of(18, 40)
    loaded = subject.load()
    cold = Session(loaded).ask(prompt).token_ids
    loaded.close()
    loaded = subject.load()
    warm = Session(loaded)
    for length in (10, 25, 39):
        warm.ask((*prompt[:length], *prompt_of(19, 3)), replace(GREEDY, max_tokens=2))
    assert warm.ask(prompt).token_ids[: None if subject.is_exact else 1] == cold[: None if subject.is_exact else 1]
    loaded.close()


def test_more_requests_than_it_computes_at_once_are_answered(session: Session, subject: BackendSubject) -> None:
    """Through the executor, whose queue they wait in; a few are dropped on the way."""
    backend = session.backend
    num_requests = 2 * backend.max_sequences + 3
    prompts = [prompt_of(40 + index, 5 + index) for index in range(num_requests)]
    executor = BackendExecutor(backend, max_sequences=64, clock=lambda: 0.0)
    sequences = [Sequence(list(prompt), GREEDY, max_length=backend.context_length) for prompt in prompts]
    for sequence in sequences:
        executor.add(sequence, None)
    dropped = [sequences[0], sequences[-1]]
    for turn in range(PATIENCE):
        if not executor.has_work:
            break
        for outcome in executor.step():
            assert outcome.error is None
            if outcome.sequence.is_finished:
                executor.finish(outcome.sequence, outcome.sequence.status)
        if turn == 0:
            for sequence in dropped:
                executor.finish(sequence, SequenceStatus.ABORTED)
        assert executor.stats.num_running <= backend.max_sequences
    assert not executor.has_work
    size = None if subject.is_exact else 1
    for sequence, prompt in zip(sequences, prompts, strict=True):
        if sequence not in dropped:
            assert sequence.num_generated_tokens == 8
            assert sequence.token_ids[len(prompt) :][:size] == session.ask(prompt).token_ids[:size]


def test_warming_up_changes_no_answer(subject: BackendSubject) -> None:
    loaded = subject.load()
    session = Session(loaded)
    loaded.warm_up()
    first = session.ask(prompt_of(19)).token_ids
    loaded.warm_up()
    assert session.ask(prompt_of(19)).token_ids == first
    loaded.close()


def test_closing_twice_and_in_the_middle_is_fine(subject: BackendSubject) -> None:
    loaded = subject.load()
    Session(loaded).add(prompt_of(20))
    loaded.step()
    loaded.close()
    loaded.close()
