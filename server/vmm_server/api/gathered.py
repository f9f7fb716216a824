"""A whole answer, gathered from its deltas. Pure."""

from dataclasses import dataclass, field

from vmm_adapters.types import FinishReason, TokenLogprob
from vmm_server.engine.stream import Delta, Usage
from vmm_server.errors import GenerationFailed


@dataclass(slots=True)
class Gathered:
    """A whole answer."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    last_usage: Usage | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens but the first, if they were asked for."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    @property
    def usage(self) -> Usage:
        """What it took. Raises `GenerationFailed` when the generation stopped without an end."""
        if self.last_usage is None:
            raise GenerationFailed("the generation ended early")
        return self.last_usage

    @property
    def reason(self) -> FinishReason:
        """Why it ended: `STOP` or `LENGTH`. Raises `GenerationFailed` for any other end."""
        return completed(self.finish_reason)

    def add(self, delta: Delta) -> None:
        """Append the next delta."""
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.finish_reason = delta.finish_reason
        self.last_usage = delta.usage


def completed(reason: FinishReason | None) -> FinishReason:
    """`STOP` or `LENGTH`, the ends an answer may have. Raises `GenerationFailed` for an answer that was broken off."""
    if reason is not FinishReason.STOP and reason is not FinishReason.LENGTH:
        raise GenerationFailed(f"the generation ended early: {reason or 'no reason given'}")
    return reason
