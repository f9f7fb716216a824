"""`truncation: auto`: the oldest exchanges go, until what is left fits. Pure.

An exchange is what a user said and all that followed, calls and their results included; so nothing is left without its
other half. System messages and the last exchange stay: when they alone do not fit, the request is refused.
"""

from collections.abc import Sequence
from dataclasses import replace

from vmm_server.requests import ChatPrompt, GenerateRequest, Message

_MARGIN = 0.98
"""Texts of one length differ in tokens."""


def shortened(request: GenerateRequest, *, asked: int, limit: int) -> GenerateRequest | None:
    """The request without its oldest exchanges: as few as may do, at least one. `None`: there is none to drop.

    Its prompt has `asked` tokens and may have `limit`, less some for the answer; how many an exchange has is told by
    its share of the text.
    """
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return None
    starts = _exchanges(prompt.messages)[1:]
    if not starts:
        return None
    room = _MARGIN * (limit - min(request.sampling.max_tokens or limit // 8, limit // 2))
    too_much = (asked - room) * sum(map(_size, prompt.messages)) / asked
    dropped = 0
    for start in starts:
        dropped = sum(_size(message) for message in prompt.messages[:start] if message.role != "system")
        if dropped >= too_much:
            break
    kept = [message for index, message in enumerate(prompt.messages) if index >= start or message.role == "system"]
    return replace(request, prompt=replace(prompt, messages=tuple(kept)))


def num_messages(request: GenerateRequest) -> int:
    """Of the conversation."""
    return len(request.prompt.messages) if isinstance(request.prompt, ChatPrompt) else 0


def _exchanges(messages: Sequence[Message]) -> list[int]:
    """Where exchanges begin; what comes before the first user belongs to the first."""
    roles = [message.role for message in messages]
    later = [index for index, role in enumerate(roles) if role == "user" and index and roles[index - 1] != "user"]
    return [0, *(index for index in later if any(role != "system" for role in roles[:index]))]


def _size(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return 1 + len(message.content) + len(message.thinking or "") + calls
