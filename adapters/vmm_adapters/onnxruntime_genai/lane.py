"""One `onnxruntime_genai.Engine` and what is on it. Nothing here decides anything; all calls are of one thread.

What the runtime does (0.18), and this adapter counts on:

* An engine belongs to the thread that made it.
* The static engine, of models without a paged KV cache, computes the turns that were begun before its first step as one
  batch; later ones wait until all of those are over. A session of it can have a second turn when it is alone there, but
  is computed from its start after it was rewound.
* The paged one takes turns at any time and keeps a session's blocks until it is closed.
* An end token of the model's configuration ends a turn and is neither reported nor in the session's text.
* After `cancel_turn` one more step reports the end, and the session can go on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime_genai as og

from vmm_adapters.errors import AdapterError, OutOfMemory, RuntimeFailed, runtime_errors
from vmm_adapters.onnxruntime_genai.sampling import TurnPlan, force
from vmm_adapters.types import TextRequest

_EVENTS = 32
"""Reported by a step; what is more, the next one reports."""
_REASONS = {
    "EOS": "end",
    "MAX_GENERATED_TOKENS": "length",
    "MAX_SESSION_TOKENS": "length",
    "CANCELLED": "cancelled",
}


@dataclass
class Session:
    """A KV cache and the tokens in it."""

    key: int
    lane: "Lane"
    handle: Any
    """`og.Request`."""
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    turn_starts: dict[int, int] = field(default_factory=dict)
    """Length at which a turn began → the runtime's number of the turn."""

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first tokens. Raises `KeyError` unless that is where a turn began, or the end."""
        if num_tokens == len(self.token_ids):
            return
        with runtime_errors("rewinding a session", RuntimeError):
            self.handle.rewind_to_start_of_turn(self.turn_starts[num_tokens])
        del self.token_ids[num_tokens:]
        self.turn_starts = {start: turn for start, turn in self.turn_starts.items() if start < num_tokens}


@dataclass
class Turn:
    """One answer under way. `request` is `None` once nobody waits for it any more."""

    session: Session
    turn_id: int
    request: TextRequest | None
    plan: TurnPlan
    num_cached_tokens: int
    cut: int | None = None
    """This turn is only the prompt up to here, and says the prompt's next token."""
    token_ids: list[int] = field(default_factory=list)
    num_blocked: int = 0
    """Steps in a row in which there was no room for it."""

    def cancel(self) -> None:
        """Make the runtime end it; it says so in a later step."""
        self.request = None
        with runtime_errors("cancelling a turn", RuntimeError):
            self.session.handle.cancel_turn(self.turn_id)


@dataclass(frozen=True, slots=True)
class Event:
    """What a step says of one turn."""

    turn: Turn
    token_id: int | None = None
    end: str | None = None
    """`end`, `length`, `cancelled` or `failed`."""
    error: AdapterError | None = None
    is_blocked: bool = False
    num_cached_tokens: int = 0
    """By the runtime's own cache, known at the end."""
    num_generated: int = 0
    """As the runtime counts them, at the end."""


class Lane:
    """An engine with its sessions."""

    def __init__(self, model: Any) -> None:
        with runtime_errors("making an engine", RuntimeError):
            self._engine: Any = og.Engine(model)
            self._buffer: Any = self._engine.create_event_buffer(_EVENTS)
        self.turns: dict[int, Turn] = {}
        """Under way, by the identity of their session's handle."""
        self.sessions: dict[int, Session] = {}

    @property
    def max_batch_size(self) -> int:
        """Turns that it computes together."""
        with runtime_errors("asking an engine for its size", RuntimeError):
            return int(self._engine.get_capabilities().configured_max_batch_size)

    def open(self, key: int, max_tokens: int) -> Session:
        """A new session that will never hold more than `max_tokens`."""
        with runtime_errors("opening a session", RuntimeError):
            options = og.RequestOptions()
            options.set_max_session_tokens(max_tokens)
            session = Session(key, self, self._engine.create_request(options=options), max_tokens)
        self.sessions[key] = session
        return session

    def begin(self, session: Session, request: TextRequest, plan: TurnPlan, cut: int | None = None) -> Turn:
        """Let the session answer. Its tokens must be the beginning of the prompt. Raises `AdapterError`.

        With a `cut` it computes the prompt's tokens before that index, and has to answer with the one there.
        """
        start = len(session.token_ids)
        new = request.token_ids[start:cut]
        with runtime_errors("beginning an answer", RuntimeError, ValueError):
            options = og.TurnOptions(session.handle)
            (plan if cut is None else force(request.token_ids[cut])).apply(options)
            turn_id = session.handle.begin_turn(np.array(new, np.int32), options)
        session.turn_starts[start] = turn_id
        session.token_ids.extend(new)
        turn = self.turns[id(session.handle)] = Turn(session, turn_id, request, plan, start, cut)
        return turn

    def step(self) -> Iterator[Event]:
        """Compute once. Raises `AdapterError` when all that is under way here is lost."""
        with runtime_errors("computing a step", RuntimeError):
            if not self._engine.has_pending_requests():
                raise RuntimeFailed("onnxruntime-genai lost an answer")
            raw = self._engine.run(self._buffer)
            # the runtime writes the next step's events over these
            events = [event for each in raw if (event := self._read(each)) is not None]
        yield from events

    def close(self, session: Session) -> None:
        """Give up a session that has nothing under way."""
        self.sessions.pop(session.key, None)
        with runtime_errors("closing a session", RuntimeError):
            session.handle.close()

    def _read(self, raw: Any) -> Event | None:
        turn = self.turns.get(id(raw.request))
        if turn is None or raw.turn_id != turn.turn_id:
            return None
        flags, of = raw.flags.value, og.EngineEventFlags
        token_id = int(raw.token) if flags & of.TOKEN.value else None
        if flags & of.FAILED.value:
            del self.turns[id(raw.request)]
            return Event(turn, token_id, "failed", _error(raw.error_code.name))
        if flags & of.TURN_FINISHED.value:
            del self.turns[id(raw.request)]
            end, usage = _REASONS.get(raw.finish_reason.name, "failed"), raw.usage
            error = _error(raw.finish_reason.name) if end == "failed" else None
            return Event(turn, token_id, end, error, False, usage.cached_prompt_tokens, usage.generated_tokens)
        return Event(turn, token_id, is_blocked=bool(flags & (of.CAPACITY_BLOCKED.value | of.RETRYABLE.value)))


def _error(code: str) -> AdapterError:
    if code in ("REQUEST_UNSERVICEABLE", "EXECUTION_CAPACITY_EXCEEDED", "CAPACITY_DEFERRED"):
        return OutOfMemory(
            f"onnxruntime-genai has no room for this answer ({code})", hint="lower context_length or max_tokens"
        )
    return RuntimeFailed(f"onnxruntime-genai could not answer ({code})")
