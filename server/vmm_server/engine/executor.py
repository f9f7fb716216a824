"""What the worker drives: sequences in, drawn tokens out, whoever decides what is computed next.

`PagedExecutor` schedules a `CausalLMRunner` and draws the tokens itself; `BackendExecutor` hands requests to a
`TextBackend`, which does both. Text, stop strings and deltas are the worker's for both of them.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vmm_adapters.errors import AdapterError
from vmm_adapters.types import TokenLogprob
from vmm_server.engine.forecast import Pace
from vmm_server.engine.grammar import CompiledGrammar
from vmm_server.engine.sampler import Sampled
from vmm_server.engine.sequence import Sequence, SequenceStatus
from vmm_server.errors import GenerationFailed, VMMError


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A look at the engine, a step old at most."""

    num_waiting: int
    num_running: int
    num_blocks: int
    """0 where the runtime keeps its KV cache to itself."""
    num_free_blocks: int
    """Held by no sequence; most of them still hold cached prefixes."""
    num_preempted: int
    """Preemptions since the start."""
    num_drafted_tokens: int = 0
    """Guessed and computed since the start."""
    num_accepted_tokens: int = 0
    """Of them, those that were drawn."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How much is left to do, a step old at most. Of what runs and what waits together, except where it says."""

    num_waiting: int
    num_running: int
    num_pending_prompt_tokens: int
    num_pending_output_tokens: int
    """At most: what `max_tokens` and the context length leave."""


class Outcome(NamedTuple):
    """What a step gave for one sequence: something to say, an end (`sequence.is_finished`), or an error and an end."""

    sequence: Sequence
    drawn: Sampled | None = None
    scored: tuple[TokenLogprob, ...] = ()
    """Of the next prompt tokens; to be said before what was drawn."""
    error: VMMError | None = None


class Executor(Protocol):
    """Runs sequences. One thread calls the methods; any thread may look at the attributes, a step old at most."""

    device: str
    vocab_size: int
    context_length: int
    """Tokens of a prompt and its answer."""
    max_prompt_tokens: int
    """Of them, those a prompt may have: the whole context where one more token can be drawn all the same."""
    max_sequences: int
    """Sequences that run at the same time."""
    step_tokens: int
    """Prompt tokens that are computed at a time, at most."""
    pace: Pace
    """How fast it is."""
    lacks: Mapping[str, str]
    """See `TextBackend.lacks`."""
    takes_images: bool
    """Whether a sequence may have a `SeenPrompt`; a runtime whose model is blind refuses it then."""
    waiting: list[Sequence]
    running: list[Sequence]
    involved: Collection[Sequence] | None
    """Whom it concerns if the step under way fails; `None`: everybody."""

    num_step_tokens: int
    """New tokens of the last step; 0 where the runtime does not say."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Counts of sequences and blocks."""
        ...

    def add(self, sequence: Sequence, grammar: CompiledGrammar | None) -> None:
        """Queue a sequence, behind those of its tenant and priority."""
        ...

    def step(self) -> Iterable[Outcome]:
        """Compute, and book what was drawn, each token as its outcome is read: one that is finished then has no more.

        Raises when the step failed; everything of the `involved` sequences is then lost.
        """
        ...

    def finish(self, sequence: Sequence, status: SequenceStatus) -> None:
        """Forget a sequence, whatever it is doing, and free what it holds; only sets the status if it is gone."""
        ...

    def close(self) -> None:
        """Close the runtime. Idempotent."""
        ...


def runtime_failed(error: AdapterError) -> GenerationFailed:
    """A runtime's error in the words of an answer."""
    return GenerationFailed(f"the runtime failed: {error.message}", hint=error.hint)
