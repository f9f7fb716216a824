"""Which model of a release a request goes to.

Every conversation that begins takes the next turn. Turns are dealt by smooth weighted round robin: each model gains its
share, the one that has most is chosen and pays all shares together. That is the most even order there is for whole
shares, and it repeats after a hundred turns: any hundred in a row are divided exactly.

A conversation stays where it began. It has no id on the wire, but every later request repeats how it began: who asks,
and all up to the first message of the user. So a request with an answer in it goes where the last one went that began
with the same words.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from vmm_server.callers import caller
from vmm_server.models.names import ModelName
from vmm_server.models.releases import ALL, Release
from vmm_server.requests import ChatPrompt, GenerateRequest

MAX_CONVERSATIONS = 10_000
"""Remembered; the one that was longest silent is forgotten."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request belongs to."""

    handle: bytes
    """Of how it began."""
    begins: bool
    """Nothing was answered in it yet."""


def conversation_of(request: GenerateRequest) -> Conversation | None:
    """The conversation of a request; `None` of a prompt that is no chat."""
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return None
    handle = hashlib.sha256(caller.get().tenant.encode())
    for message in prompt.messages:
        for part in (message.role, message.content):
            handle.update(f"\0{len(part)}\0{part}".encode(errors="surrogatepass"))
        if message.role == "user":
            break
    return Conversation(handle.digest(), all(message.role != "assistant" for message in prompt.messages))


class Turns:
    """Deals requests to models. Belongs to one event loop, and begins anew with the process."""

    def __init__(self) -> None:
        self._gained: dict[str, tuple[Release, list[int]]] = {}
        self._went: OrderedDict[tuple[str, bytes], ModelName] = OrderedDict()

    def take(self, release: Release, conversation: Callable[[], Conversation | None]) -> ModelName:
        """The model for one request; what it belongs to is asked for only where that matters."""
        if len(release.shares) == 1:
            return release.main
        told = conversation()
        if told is None:
            return self._next(release)
        key = release.name.key, told.handle
        went = None if told.begins else self._went.get(key)
        if went is None or went not in (model for model, _ in release.shares):
            went = self._next(release)
        self._went[key] = went
        self._went.move_to_end(key)
        if len(self._went) > MAX_CONVERSATIONS:
            self._went.popitem(last=False)
        return went

    def _next(self, release: Release) -> ModelName:
        known = self._gained.get(release.name.key)
        if known is None or known[0] != release:
            known = self._gained[release.name.key] = (release, [0] * len(release.shares))
        gained = known[1]
        for index, (_, share) in enumerate(release.shares):
            gained[index] += share
        chosen = max(range(len(gained)), key=gained.__getitem__)
        gained[chosen] -= ALL
        return release.shares[chosen][0]
