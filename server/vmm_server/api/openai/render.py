"""What chat and text completions have in common: deltas → OpenAI's objects and chunks. Pure.

Everything of a chunk that stays the same - id, model, time - is encoded once a request, so that a chunk costs one JSON
string and one concatenation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from vmm_server.api.framing import sse_event
from vmm_server.engine.stream import Delta, Usage

DONE = b"data: [DONE]\n\n"

TokenText = Callable[[int], bytes]
"""The bytes a token id stands for."""

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Identity:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """As the client wrote it."""
    system_fingerprint: str

    def fields(self, kind: str) -> dict[str, object]:
        """The first fields of an object of that kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def usage_fields(usages: Sequence[Usage], per_prompt: int = 1) -> dict[str, object]:
    """`usage`, summed over a request: each prompt once, with its first generation's cached tokens; all that was drawn.

    `per_prompt` generations of a prompt stand one behind the other. Tokens of a `prediction` are rejected when they
    were computed and not drawn; unlike OpenAI's, they are no part of the completion's.
    """
    firsts = usages[::per_prompt]
    prompt = sum(usage.num_prompt_tokens for usage in firsts)
    generated = sum(usage.num_generated_tokens for usage in usages)
    predicted = sum(usage.num_drafted_predictions for usage in usages)
    accepted = sum(usage.num_accepted_predictions for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.num_cached_tokens for usage in firsts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.num_reasoning_tokens for usage in usages),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": predicted - accepted,
        },
    }


class Chunks(ABC):
    """What both kinds of stream share: each choice ends once, and the last one to end brings usage and `[DONE]`."""

    KIND: ClassVar[str]

    def __init__(self, identity: Identity, num_choices: int, *, include_usage: bool, per_prompt: int) -> None:
        self._identity = identity
        self._include_usage = include_usage
        self._per_prompt = per_prompt
        self._usages: list[Usage | None] = [None] * num_choices
        self._num_open = num_choices
        self._start = sse_event(identity.fields(self.KIND)).rstrip()[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    @abstractmethod
    def events(self, index: int, delta: Delta) -> list[bytes]:
        """The events for one delta of choice `index`; the last one of all brings usage and `[DONE]`."""

    def _end(self, index: int, usage: Usage | None) -> list[bytes]:
        self._num_open -= 1
        self._usages[index] = usage
        if self._num_open:
            return []
        if not self._include_usage:
            return [DONE]
        usages = [usage for usage in self._usages if usage is not None]
        fields = {"choices": [], "usage": usage_fields(usages, self._per_prompt)}
        return [sse_event(self._identity.fields(self.KIND) | fields), DONE]
