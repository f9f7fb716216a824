"""What is computed when, of a model with a paged KV cache: over an engine that says what the test wants."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from vmm_adapters.errors import OutOfMemory, RuntimeFailed
from vmm_adapters.onnxruntime_genai.lane import Event, Lane, Session, Turn
from vmm_adapters.onnxruntime_genai.sampling import TurnPlan
from vmm_adapters.onnxruntime_genai.scheduler import Limits, Scheduler
from vmm_adapters.types import FinishReason, SamplingParams, TextOutput, TextRequest

pytestmark = pytest.mark.runtime  # the module under test imports it

LIMITS = Limits(
    context_length=100,
    vocab_size=1000,
    model_ends=(2,),
    max_sequences=8,
    max_tokens=1000,
    is_paged=True,
    grows=False,
    continues=True,
)
WORDS = 500
"""The n-th token of every answer is this and n."""


@dataclass
class Handle:
    """Stands for an `og.Request`."""

    rewound: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    def rewind_to_start_of_turn(self, turn_id: int) -> None:
        self.rewound.append(turn_id)

    def cancel_turn(self, turn_id: int) -> None:
        self.cancelled.append(turn_id)


class FakeLane(Lane):
    """One token a step for every turn, unless `script` says something else."""

    def __init__(self) -> None:
        self.turns: dict[int, Turn] = {}
        self.sessions: dict[int, Session] = {}
        self.script: Callable[[Turn], Event | None] = lambda turn: None
        self.closed: list[int] = []
        self.num_turns = 0

    def open(self, key: int, max_tokens: int) -> Session:
        self.sessions[key] = Session(key, self, Handle(), max_tokens)
        return self.sessions[key]

    def begin(self, session: Session, request: TextRequest, plan: TurnPlan, cut: int | None = None) -> Turn:
        assert cut is None, "the paged engine cuts prompts by itself"
        self.num_turns += 1
        start = len(session.token_ids)
        assert tuple(session.token_ids) == request.token_ids[:start], "a session holds the beginning of its prompt"
        session.turn_starts[start] = self.num_turns
        session.token_ids.extend(request.token_ids[start:])
        turn = self.turns[id(session.handle)] = Turn(session, self.num_turns, request, plan, start)
        return turn

    def step(self) -> Iterator[Event]:
        yield from [self.event(turn) for turn in list(self.turns.values())]

    def event(self, turn: Turn) -> Event:
        count = len(turn.token_ids)
        event = self.script(turn)
        if event is None and turn.session.handle.cancelled:
            event = Event(turn, None, "cancelled", num_generated=count)
        elif event is None:
            end = "length" if count + 1 == turn.plan.max_tokens else None
            event = Event(turn, WORDS + count, end, num_generated=count + 1)
        if event.end is not None:
            turn.session.handle.cancelled.clear()
            del self.turns[id(turn.session.handle)]
        return event

    def close(self, session: Session) -> None:
        del self.sessions[session.key]
        self.closed.append(session.key)


class Bench:
    """A scheduler over one fake engine, and all it said."""

    def __init__(self, **changes: object) -> None:
        self.lane = FakeLane()
        self.scheduler = Scheduler(lambda: self.lane, replace(LIMITS, **changes))
        self.said: dict[int, list[TextOutput]] = {}

    def add(self, request_id: int, prompt: tuple[int, ...], max_tokens: int = 3) -> None:
        self.said[request_id] = []
        sampling = SamplingParams(max_tokens=max_tokens)
        self.scheduler.add(TextRequest(request_id, prompt, sampling, 100, frozenset({2})))

    def step(self) -> None:
        for output in self.scheduler.step():
            self.said[output.id].append(output)

    def run(self) -> None:
        for _ in range(3000):
            if all(said and (said[-1].finish_reason or said[-1].error) for said in self.said.values()):
                return
            self.step()
        raise AssertionError("it never ends")

    def answer(self, request_id: int) -> list[int]:
        return [token for output in self.said[request_id] for token in output.token_ids]


def test_requests_join_while_others_run() -> None:
    bench = Bench()
    bench.add(1, (5, 6), max_tokens=10)
    bench.step()
    bench.add(2, (7,), max_tokens=2)
    bench.run()
    assert bench.answer(1) == [WORDS + index for index in range(10)]
    assert bench.answer(2) == [WORDS, WORDS + 1]


def test_a_session_is_rewound_to_where_a_turn_began() -> None:
    bench = Bench()
    bench.add(1, (5, 6))
    bench.run()
    bench.add(2, (5, 6, WORDS, WORDS + 1, WORDS + 2, 7, 8))
    bench.run()
    (session,) = bench.lane.sessions.values()
    bench.add(3, (5, 6, WORDS, WORDS + 1, WORDS + 2, 9))
    bench.run()
    assert session.handle.rewound == [2]
    assert [said[-1].num_cached_tokens for said in bench.said.values()] == [0, 5, 5]


def test_a_blocked_answer_takes_the_blocks_of_idle_sessions() -> None:
    bench = Bench()
    for index in range(3):
        bench.add(index, (10 + index,))
    bench.run()
    bench.lane.script = lambda turn: Event(turn, is_blocked=True) if len(bench.lane.closed) < 2 else None
    bench.add(9, (50,))
    bench.run()
    assert bench.lane.closed == [0, 1], "the oldest"
    assert bench.answer(9) == [WORDS, WORDS + 1, WORDS + 2]


def test_one_that_is_blocked_for_ever_fails_alone() -> None:
    bench = Bench()
    bench.add(1, (5,))
    bench.add(2, (6,))
    bench.lane.script = lambda turn: (
        Event(turn, is_blocked=True)
        if turn.session.token_ids[:1] == [6] and not turn.session.handle.cancelled
        else None
    )
    bench.run()
    assert len(bench.answer(1)) == 3
    assert isinstance(bench.said[2][-1].error, OutOfMemory)


def test_one_that_the_runtime_fails_leaves_the_others() -> None:
    bench = Bench()
    bench.add(1, (5,))
    bench.add(2, (6,))
    failure = RuntimeFailed("no")
    bench.lane.script = lambda turn: Event(turn, None, "failed", failure) if turn.session.token_ids[:1] == [6] else None
    bench.run()
    assert len(bench.answer(1)) == 3
    assert bench.said[2][-1].error is failure
    assert len(bench.lane.sessions) == 1, "what failed is not continued"


def test_the_runtimes_own_cache_is_told_at_the_end() -> None:
    bench = Bench()
    bench.lane.script = lambda turn: Event(turn, 7, "length", None, False, 4, 1)
    bench.add(1, (5,) * 6)
    bench.run()
    assert bench.said[1][-1].num_cached_tokens == 4


def test_a_session_that_counts_otherwise_than_the_runtime_is_not_continued() -> None:
    bench = Bench()
    bench.lane.script = lambda turn: Event(turn, 7, "length", num_generated=2)
    bench.add(1, (5,))
    bench.run()
    assert not bench.lane.sessions


def test_aborting_what_waits_is_not_telling_the_runtime() -> None:
    bench = Bench(max_sequences=1)
    bench.add(1, (5,))
    bench.add(2, (6,))
    bench.step()
    bench.scheduler.abort(2)
    del bench.said[2]
    bench.run()
    assert bench.lane.num_turns == 1


def test_an_end_token_of_the_request_stops_the_turn() -> None:
    bench = Bench()
    bench.lane.script = lambda turn: None if turn.session.handle.cancelled else Event(turn, 2)
    bench.add(1, (5,))
    bench.step()
    assert bench.said[1][-1].finish_reason is FinishReason.STOP
    assert bench.answer(1) == [2]
    bench.step()
    assert not bench.lane.turns


def test_when_the_engine_fails_everything_is_lost() -> None:
    bench = Bench()

    def fail(turn: Turn) -> Event:
        raise RuntimeFailed("gone")

    bench.lane.script = fail
    bench.add(1, (5,))
    with pytest.raises(RuntimeFailed, match="gone"):
        bench.step()
    bench.lane = FakeLane()
    bench.said.clear()
    bench.add(2, (5,))
    bench.run()
    assert len(bench.answer(2)) == 3
