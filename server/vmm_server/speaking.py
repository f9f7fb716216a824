"""The one way to have a text spoken: resolve → lease → phonemes → sentence after sentence.

Everything that deserves a 4xx happens before the first samples are there. While a client takes one sentence the next
one is computed, and no more than that: whoever listens slowly holds one sentence in memory.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from vmm_server.audio.encoding import Samples
from vmm_server.errors import PlacementFailed, VMMError
from vmm_server.models.leases import MAX_MOVES, Lease
from vmm_server.models.speech import ReadySpeaker, Utterance
from vmm_server.models.store import InstalledModel
from vmm_server.observed import Watch
from vmm_server.one_shot import Answered, OneShot
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted

FRAME_S = 0.025
"""What a token of sound lasts: Kokoro's decoder makes 40 a second (600 samples each)."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A text to be spoken. Run by `Speech.speak`."""

    model: str
    text: str
    voice: str
    speed: float = 1.0
    """1 is the voice's own, 2 is twice as fast."""
    keep_alive: KeepAlive | None = None
    wanted: Wanted = ANYWHERE


@dataclass(slots=True)
class SpeechUsage:
    """What was read and said so far."""

    num_letters: int
    """Phonemes and punctuation of the whole text."""
    num_samples: int = 0
    sample_rate: int = 24_000

    @property
    def num_frames(self) -> int:
        """Of `FRAME_S` each, the last one begun."""
        return -int(-self.num_samples // (FRAME_S * self.sample_rate))


@dataclass(frozen=True, slots=True)
class Spoken(Answered):
    """A text that is being spoken."""

    sample_rate: int
    """In Hz."""
    usage: SpeechUsage = field(compare=False)
    sentences: AsyncGenerator[Samples]
    """Each as soon as it is there. Raises `GenerationFailed`."""


class Speech:
    """Runs models that speak. Every dialect goes through here."""

    def __init__(self, one_shot: OneShot) -> None:
        self._one_shot = one_shot

    @asynccontextmanager
    async def speak(self, request: SpeechRequest) -> AsyncIterator[Spoken]:
        """The first sentence has been spoken when this opens; what is left is given up when it closes.

        Raises `InvalidRequest` and its kinds, `ModelNotFound`, `ModelLoadFailed`, `Overloaded`, `ShuttingDown`,
        `GenerationFailed`.
        """
        model = self._one_shot.resolve(request.model, "speech")
        with self._one_shot.watch("speech", model) as watch:
            async with AsyncExitStack() as stack:
                yield await self._begin(model, request, stack, watch)

    async def _begin(
        self, model: InstalledModel, request: SpeechRequest, stack: AsyncExitStack, watch: Watch
    ) -> Spoken:
        """Speak the first sentence, on another placement if a device fails; `stack` holds the lease then."""
        num_moves = 0
        while True:
            async with AsyncExitStack() as attempt:
                lease = await attempt.enter_async_context(
                    self._one_shot.lease(
                        model, ReadySpeaker, keep_alive=request.keep_alive, wanted=request.wanted, watch=watch
                    )
                )
                ready = lease.ready
                utterances = await asyncio.to_thread(ready.utterances, request.text, request.voice, request.speed)
                try:
                    first, queued_s = await ready.say(utterances[0])
                except PlacementFailed:
                    if num_moves == MAX_MOVES:
                        raise
                    num_moves += 1
                    continue
                watch.queued_s = queued_s
                spoken = _spoken(lease, utterances, first, queued_s, watch)
                attempt.push_async_callback(spoken.sentences.aclose)
                stack.push_async_exit(attempt.pop_all())
                return spoken


def _spoken(
    lease: Lease[ReadySpeaker],
    utterances: Sequence[Utterance],
    first: Samples,
    queued_s: float,
    watch: Watch,
) -> Spoken:
    lease.begun()
    ready = lease.ready
    usage = SpeechUsage(sum(len(each.token_ids) for each in utterances), sample_rate=ready.sample_rate)
    sentences = _sentences(ready, first, utterances[1:], usage, watch)
    return Spoken(lease.model, ready.placement, lease.load_s, queued_s, ready.sample_rate, usage, sentences)


async def _sentences(
    ready: ReadySpeaker, first: Samples, rest: Sequence[Utterance], usage: SpeechUsage, watch: Watch
) -> AsyncGenerator[Samples]:
    """The first one, and each of the rest; one is computed ahead."""
    samples = first
    for utterance in rest:
        following = asyncio.create_task(ready.say(utterance))
        try:
            usage.num_samples += len(samples)
            yield samples
            samples, _ = await following
        except VMMError as error:
            watch.error = error
            raise
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    usage.num_samples += len(samples)
    yield samples
