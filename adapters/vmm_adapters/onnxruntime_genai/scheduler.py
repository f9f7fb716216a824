"""Which request is computed on which engine, and when. Used from one thread.

A model without a paged KV cache gets an engine for every batch: requests that are there at the same time and of similar
length go into one together, a later one starts at once in an engine of its own, and all engines take turns. What was
answered alone stays as an idle session, which a prompt that begins with all its tokens goes on in. A paged model has
one engine that takes requests at any time; all its sessions stay, and can be rewound to where a turn began.

The static engine computes a prompt in one step, whatever its length, and the logits of every position with it:
gigabytes for a long one. So long prompts are taken in pieces. A piece is a turn, and a turn has to say something: it is
made to say the prompt's next token.

Nothing is started for which there is no memory while something else runs: it waits, in order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from vmm_adapters.errors import AdapterError, OutOfMemory, RuntimeFailed
from vmm_adapters.onnxruntime_genai.lane import Event, Lane, Session, Turn
from vmm_adapters.onnxruntime_genai.sampling import TurnPlan, end_token, ends, plan_turn
from vmm_adapters.onnxruntime_genai.sessions import SessionCache
from vmm_adapters.types import FinishReason, Guidance, SamplingParams, TextOutput, TextRequest

_HEADROOM = 512
"""Tokens of an answer that memory is set aside for where the KV cache grows with it."""
_MAX_IDLE = 16
"""Idle sessions; each costs an engine, which is small."""
_MAX_BLOCKED = 1000
"""Steps that a request waits for blocks that nobody gives back."""
_WARM_PROMPT = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """What is known of the model and the memory."""

    context_length: int
    vocab_size: int
    model_ends: tuple[int, ...]
    max_sequences: int
    max_tokens: int
    """In all KV caches together."""
    is_paged: bool
    grows: bool
    """Whether a session's KV cache grows with its text, or is as large as it may get from the start."""
    continues: bool
    """Whether the device can go on in a session. One that is rewound keeps its cache only when it is paged."""
    piece: int | None = None
    """The most tokens of a prompt that are computed at once; `None`: all of them."""


class Scheduler:
    """Requests in, outputs out, over one loaded `og.Model`."""

    def __init__(self, new_lane: Callable[[], Lane], limits: Limits) -> None:
        self._new_lane = new_lane
        self._limits = limits
        self._keys = count()
        self._lanes: list[Lane] = []
        self._waiting: deque[TextRequest] = deque()
        self._live: dict[int, Turn] = {}
        self._idle: dict[int, Session] = {}
        self._cache = SessionCache(max_sessions=_MAX_IDLE, max_tokens=limits.max_tokens)

    def add(self, request: TextRequest) -> None:
        """Queue it; the next step starts it."""
        self._waiting.append(request)

    def abort(self, request_id: int) -> None:
        """See `TextBackend.abort`."""
        turn = self._live.pop(request_id, None)
        if turn is not None:
            turn.cancel()
        else:
            self._waiting = deque(request for request in self._waiting if request.id != request_id)

    def step(self) -> list[TextOutput]:
        """See `TextBackend.step`."""
        self._drain()
        outputs = list(self._admit())
        for lane in list(self._lanes):
            if lane.turns:
                outputs.extend(self._step(lane))
        return outputs

    def warm_up(self) -> None:
        """See `TextBackend.warm_up`."""
        if self._live or self._waiting:
            return
        length = max(1, min(_WARM_PROMPT, self._limits.context_length - 2))
        sampling = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        request = TextRequest(-1, (0,) * length, sampling, self._limits.context_length)
        self._run(request)
        if self._limits.piece is not None:
            try:  # the first guidance reads the tokeniser
                self._run(replace(request, guidance=Guidance("regex", "[0-9]{2}")))
            except AdapterError:
                self._limits = replace(self._limits, piece=None)
        self._drop(self._cache.pop_all())

    def _run(self, request: TextRequest) -> None:
        """Answer it alone. Raises what it fails with."""
        self.add(request)
        while self._waiting or self._live:
            for output in self.step():
                if output.error is not None:
                    raise output.error

    def close(self) -> None:
        """Let go of everything."""
        self._cache.pop_all()
        self._waiting.clear()
        self._live.clear()
        self._idle.clear()
        self._lanes.clear()

    def _drain(self) -> None:
        """Let engines where nobody waits for anything report the end of what was cancelled."""
        for lane in list(self._lanes):
            if lane.turns and all(turn.request is None for turn in lane.turns.values()):
                list(self._step(lane))

    def _admit(self) -> Iterator[TextOutput]:
        batch: Lane | None = None
        lengths: list[int] = []
        while self._waiting and len(self._live) < self._limits.max_sequences:
            request = self._waiting[0]
            plan = self._plan(request)
            needed = self._needed(request, plan)
            if self._live and self._reserved() + needed > self._limits.max_tokens:
                return
            self._waiting.popleft()
            if plan.max_tokens < 1:
                yield TextOutput(request.id, finish_reason=FinishReason.LENGTH)
                continue
            try:
                if self._resume(request, plan):
                    continue
                self._drop(self._cache.make_room(self._reserved() + needed))
                if self._cut(0, request) is not None:
                    self._begin(self._open(self._lane(), request), request, plan)
                    continue
                lengths.append(len(request.token_ids))
                if batch is None or max(lengths) * len(lengths) > 2 * sum(lengths):  # more than half were padding
                    batch, lengths = self._lane(), [len(request.token_ids)]
                self._begin(self._open(batch, request), request, plan)
            except AdapterError as error:
                batch = None
                yield TextOutput(request.id, error=error)

    def _plan(self, request: TextRequest) -> TurnPlan:
        limits = self._limits
        return plan_turn(
            request,
            context_length=limits.context_length,
            vocab_size=limits.vocab_size,
            model_ends=limits.model_ends,
            takes_seeds=limits.is_paged,
        )

    def _needed(self, request: TextRequest, plan: TurnPlan) -> int:
        """Tokens to set memory aside for."""
        room = min(plan.max_tokens, _HEADROOM) if self._limits.grows else plan.max_tokens
        return len(request.token_ids) + room

    def _reserved(self) -> int:
        return sum(self._needed(turn.request, turn.plan) for turn in self._live.values() if turn.request is not None)

    def _resume(self, request: TextRequest, plan: TurnPlan) -> bool:
        """Go on in an idle session, if there is one; what cannot be resumed is answered from the start."""
        reuse = self._cache.take(request.token_ids)
        if reuse is None:
            return False
        session = self._idle.pop(reuse.key)
        if session.max_tokens < len(request.token_ids) + plan.max_tokens:
            self._give_up(session)
            return False
        try:
            session.rewind(reuse.num_tokens)
            self._begin(session, request, plan)
        except AdapterError:  # what is wrong with the request itself will be raised again
            return False
        return True

    def _lane(self) -> Lane:
        if self._limits.is_paged and self._lanes:
            return self._lanes[0]
        self._lanes.append(self._new_lane())
        return self._lanes[-1]

    def _open(self, lane: Lane, request: TextRequest) -> Session:
        most = self._limits.context_length if self._limits.grows or self._limits.is_paged else request.max_length
        return lane.open(next(self._keys), min(most, self._limits.context_length))

    def _begin(self, session: Session, request: TextRequest, plan: TurnPlan, num_cached: int | None = None) -> None:
        """Begin the answer, or the next piece of its prompt; `num_cached` is given when it is not the first one."""
        try:
            turn = session.lane.begin(session, request, plan, self._cut(len(session.token_ids), request))
        except AdapterError:
            session.lane.sessions.pop(session.key)
            self._give_up(session)
            raise
        if num_cached is not None:
            turn.num_cached_tokens = num_cached
        self._live[request.id] = turn

    def _cut(self, start: int, request: TextRequest) -> int | None:
        """Where the piece from `start` ends; `None`: what is left is one. An end token cannot be said there."""
        piece, length = self._limits.piece, len(request.token_ids)
        if piece is None or length - start <= piece:
            return None
        cuts = range(min(start + piece, length - 2), start, -1)
        return next((cut for cut in cuts if request.token_ids[cut] not in self._limits.model_ends), None)

    def _step(self, lane: Lane) -> Iterator[TextOutput]:
        try:
            for event in lane.step():
                turn = event.turn
                if event.token_id is not None:
                    turn.num_blocked = 0
                    turn.token_ids.append(event.token_id)
                    turn.session.token_ids.append(event.token_id)
                if turn.request is not None and turn.cut is not None:
                    yield from self._go_on(event, turn.request, turn.cut)
                    continue
                if turn.request is not None and (output := self._say(event, turn.request)) is not None:
                    yield output
                if event.end is not None:
                    self._settle(event)
        except AdapterError as error:
            if self._limits.is_paged:
                self.close()
                raise
            self._lanes.remove(lane)
            for turn in lane.turns.values():
                if turn.request is not None:
                    del self._live[turn.request.id]
                    yield TextOutput(turn.request.id, error=error)

    def _go_on(self, event: Event, request: TextRequest, cut: int) -> Iterator[TextOutput]:
        """After a piece of a prompt the next one, or the answer."""
        error = event.error
        if event.end == "length" and event.token_id == request.token_ids[cut]:
            try:
                self._begin(event.turn.session, request, event.turn.plan, event.turn.num_cached_tokens)
                return
            except AdapterError as failure:
                error = failure
        del self._live[request.id]
        self._give_up(event.turn.session)
        yield TextOutput(request.id, error=error or RuntimeFailed("onnxruntime-genai lost its way in a long prompt"))

    def _say(self, event: Event, request: TextRequest) -> TextOutput | None:
        """What an event means to whoever waits for the answer."""
        turn, finish, error = event.turn, None, event.error
        token_ids: tuple[int, ...] = () if event.token_id is None else (event.token_id,)
        if event.token_id in ends(request):
            finish, error = FinishReason.STOP, None
        elif event.end == "end":
            finish = FinishReason.STOP
            token_ids += (end_token(request, self._limits.model_ends),)
        elif event.end == "length":
            finish = FinishReason.LENGTH
        elif event.is_blocked:
            error = self._make_blocks(turn)
        if finish is None and error is None and not token_ids:
            return None
        if finish is not None or error is not None:
            del self._live[request.id]
            if event.end is None:
                turn.cancel()
        cached = turn.num_cached_tokens + event.num_cached_tokens
        is_known = finish is not None if self._limits.is_paged else bool(token_ids)
        return TextOutput(request.id, token_ids, finish, None, cached if is_known else None, error)

    def _make_blocks(self, turn: Turn) -> AdapterError | None:
        """Give up the oldest idle session for a turn that has no room; an error when waiting does not help."""
        turn.num_blocked += 1
        oldest = self._cache.pop_oldest()
        if oldest is not None:
            self._drop([oldest])
        elif turn.num_blocked > _MAX_BLOCKED:
            return OutOfMemory("the KV cache has no room for this answer", hint="lower context_length or max_tokens")
        return None

    def _settle(self, event: Event) -> None:
        """Keep the session of a turn that is over, or give it up."""
        turn, session = event.turn, event.turn.session
        turn.request = None
        is_alone = self._limits.is_paged or len(session.lane.sessions) == 1
        is_whole = event.error is None and event.num_generated == len(turn.token_ids)
        if not (self._limits.continues and is_alone and is_whole):
            self._give_up(session)
            return
        self._idle[session.key] = session
        turn_starts = tuple(session.turn_starts) if self._limits.is_paged else ()
        size = len(session.token_ids) if self._limits.grows or self._limits.is_paged else session.max_tokens
        self._drop(self._cache.put(session.key, session.token_ids, turn_starts, size=size))

    def _drop(self, keys: list[int]) -> None:
        for key in keys:
            self._give_up(self._idle.pop(key))

    def _give_up(self, session: Session) -> None:
        """A static engine goes as a whole, when nothing runs on it."""
        lane = session.lane
        if self._limits.is_paged:
            lane.close(session)
        elif not lane.turns and lane in self._lanes:
            self._lanes.remove(lane)
