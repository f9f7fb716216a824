"""Requests that are over: what figures, traces and the log are made of. Nothing is noted on the way."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from vmm_server.engine.stream import Usage
from vmm_server.errors import RequestCancelled
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel

Operation = Literal[
    "chat",
    "text_completion",
    "embeddings",
    "rerank",
    "detection",
    "classification",
    "image_embedding",
    "transcription",
    "speech",
    "voice_activity",
]
"""What is asked of a model: `gen_ai.operation.name`, of which OpenTelemetry has the first three."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a request came to. Times are seconds on one clock, `time.perf_counter`'s."""

    operation: Operation
    model: InstalledModel
    began_at: float
    ended_at: float
    placement: Placement | None = None
    """`None`: it got none."""
    load_s: float = 0.0
    """Of the time up to `leased_at`, what it waited for a load."""
    leased_at: float | None = None
    """When the model was there."""
    submitted_at: float | None = None
    """When the prompt was with the engine."""
    queued_s: float | None = None
    """How long it waited for other requests from then on; `None`: it still did."""
    first_token_at: float | None = None
    """When the first token was drawn, if one was."""
    usage: Usage | None = None
    """Of an answer in tokens that was drawn to its end."""
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    finish_reason: str | None = None
    error: BaseException | None = None
    """Why it ended before its end; a client that left is a cancellation."""

    @property
    def duration_s(self) -> float:
        """From its beginning to its end."""
        return self.ended_at - self.began_at

    @property
    def error_type(self) -> str | None:
        """The class of what went wrong."""
        return None if self.error is None else type(self.error).__name__


Observe = Callable[[Observed], None]
"""Told of each request that is over, in the task that ran it."""


def nobody_observes(observed: Observed) -> None:
    """Does nothing."""


def to_all(*observers: Observe) -> Observe:
    """Tells each of them, in this order."""

    def observe(observed: Observed) -> None:
        for each in observers:
            each(observed)

    return observe


@dataclass(slots=True)
class Watch:
    """A request under way. Whoever runs it says what is known by the end; as a context, it ends with that."""

    operation: Operation
    observe: Observe
    clock: Callable[[], float]
    model: InstalledModel | None = None
    """One that it never got as far as is not observed: nobody knows what it asked for."""
    placement: Placement | None = None
    load_s: float = 0.0
    leased_at: float | None = None
    submitted_at: float | None = None
    queued_s: float | None = None
    first_token_at: float | None = None
    usage: Usage | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    finish_reason: str | None = None
    error: BaseException | None = None
    """What was told in the middle of the answer."""
    began_at: float = field(init=False)
    _is_over: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.began_at = self.clock()

    def leased(self, placement: Placement, load_s: float) -> None:
        """The model is there."""
        self.leased_at = self.submitted_at = self.clock()
        self.placement = placement
        self.load_s += load_s

    def end(self, error: BaseException | None = None) -> None:
        """It is over. Idempotent. A client that leaves once all was said has taken the whole answer."""
        if self._is_over or self.model is None:
            return
        self._is_over = True
        error = self.error or error
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            error = None if self.finish_reason else RequestCancelled()
        self.observe(
            Observed(
                operation=self.operation,
                model=self.model,
                began_at=self.began_at,
                ended_at=self.clock(),
                placement=self.placement,
                load_s=self.load_s,
                leased_at=self.leased_at,
                submitted_at=self.submitted_at,
                queued_s=self.queued_s,
                first_token_at=self.first_token_at,
                usage=self.usage,
                num_input_tokens=self.num_input_tokens,
                num_output_tokens=self.num_output_tokens,
                finish_reason=self.finish_reason,
                error=error,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)
