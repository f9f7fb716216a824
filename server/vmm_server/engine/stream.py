"""From the worker's thread to the event loop: what one generation says, merged when its reader lags."""

from dataclasses import dataclass

from vmm_adapters.types import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took. Times are seconds on the worker's clock."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt, found in the prefix cache and not computed again."""
    num_generated_tokens: int
    queued_s: float
    """From submission to the first step that held the sequence."""
    prefill_s: float
    """From that step to the first generated token."""
    decode_s: float
    """From the first generated token to the last."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. Text held back for a possible stop string comes with a later delta.

    `text` may be empty while `token_ids` is not (half a character, or held back); the last delta has `finish_reason`
    and `usage`.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
