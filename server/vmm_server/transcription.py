"""The one way to have sound written down: open the file → find speech, if asked → lease → hear.

Everything that deserves a 4xx happens before the first segment, most of it before the model is loaded. Segments come as
they are heard; where a device fails before the first of them, the file is heard from its beginning on the next one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Self

from vmm_server.audio.files import AudioLimits, SoundReader, open_audio
from vmm_server.audio.transcript import Clip, Segment, Transcript, TranscriptionOptions
from vmm_server.audio.vad import SpeechOptions, SpeechSpans
from vmm_server.errors import InvalidRequest, ModelNotFound, PlacementFailed, VMMError
from vmm_server.models.leases import MAX_MOVES, Lease
from vmm_server.models.store import InstalledModel
from vmm_server.models.vad import BLOCK_SAMPLES, SILENCE, Block, ReadyVad
from vmm_server.models.whisper import ReadyTranscriber
from vmm_server.observed import Watch
from vmm_server.one_shot import Answered, OneShot
from vmm_server.requests import ANYWHERE, KeepAlive, Wanted

logger = logging.getLogger(__name__)

VAD_MODEL = "silero-vad"
"""What hears where somebody speaks."""
_VAD_PLACE = Wanted(device="CPU")
"""An LSTM goes from frame to frame: nothing else would be faster."""


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A sound to be written down. Run by `Transcriptions.transcribe`."""

    model: str
    file: Path | IO[bytes]
    """A file object can seek, stays the caller's, and is used by nobody else meanwhile."""
    options: TranscriptionOptions = field(default_factory=TranscriptionOptions)
    """`clips` are found out, where `speech` is given."""
    speech: SpeechOptions | None = None
    """Hear only where somebody speaks."""
    param: str = "file"
    """The request field that the file came in; errors name it."""
    speech_param: str = "chunking_strategy"
    keep_alive: KeepAlive | None = None
    wanted: Wanted = ANYWHERE


class Transcriptions:
    """Runs models that hear. Every dialect goes through here."""

    def __init__(self, one_shot: OneShot, limits: AudioLimits) -> None:
        self._one_shot = one_shot
        self.limits = limits
        """Of sounds that come from now on."""

    @asynccontextmanager
    async def transcribe(self, request: TranscriptionRequest) -> AsyncIterator["Transcribed"]:
        """Segments as they are heard, while the context lasts; the model is held as long.

        Raises `InvalidRequest` and its kinds, `ModelNotFound`, `ModelLoadFailed`, `Overloaded`, `ShuttingDown`; the
        iterator those that turn up later, `InvalidRequest` for a file that is too long or damaged among them.
        """
        task = "translation" if request.options.task == "translate" else "transcription"
        model = self._one_shot.resolve(request.model, task)
        vad = None if request.speech is None else self._resolve_vad(request.speech_param)
        with self._one_shot.watch("transcription", model) as watch:
            transcribed = Transcribed(self._one_shot, model, vad, request, self.limits, watch)
            try:
                await transcribed.begin()
                yield transcribed
            finally:
                watch.num_output_tokens = transcribed.num_tokens
                if transcribed.answered is not None:
                    watch.queued_s = transcribed.answered.queued_s
                await transcribed.aclose()

    def _resolve_vad(self, param: str) -> InstalledModel:
        try:
            return self._one_shot.resolve(VAD_MODEL, "vad")
        except ModelNotFound as error:
            raise InvalidRequest(
                f"{param}: speech is found by the model {VAD_MODEL}, which is not here",
                param=param,
                hint=f"vmm pull {VAD_MODEL}",
            ) from error


class Transcribed:
    """A sound being written down: an async iterator of segments. Owns the lease and whatever reads the file."""

    def __init__(
        self,
        one_shot: OneShot,
        model: InstalledModel,
        vad: InstalledModel | None,
        request: TranscriptionRequest,
        limits: AudioLimits,
        watch: Watch,
    ) -> None:
        self.model = model
        self._one_shot = one_shot
        self._vad = vad
        self._request = request
        self._options = request.options
        self._limits = limits
        self._watch = watch
        self._stack = AsyncExitStack()
        self._reader: SoundReader
        self._lease: Lease[ReadyTranscriber] | None = None
        self._transcript: Transcript | None = None
        self._load_s = 0.0
        self._num_segments = 0
        self._num_moves = 0

    @property
    def answered(self) -> Answered | None:
        """Who hears it; `None` while speech is being found. It may move until the first segment."""
        if self._lease is None:
            return None
        queued_s = self._transcript.queued_s if self._transcript else None
        return Answered(self.model, self._lease.ready.placement, self._load_s, queued_s)

    @property
    def language(self) -> str | None:
        """The code of what is spoken, once it is known."""
        return self._transcript.language if self._transcript else None

    @property
    def duration_s(self) -> float:
        """Of the sound; of what is read of it, until it is all read."""
        return (self._transcript.duration_s if self._transcript else None) or 0.0

    @property
    def num_tokens(self) -> int:
        """Drawn so far."""
        return self._transcript.num_tokens if self._transcript else 0

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, as far as it is read: some of it is missing in the transcript."""
        return self._reader.problem

    async def begin(self) -> None:
        """Open the file, which is when most of what may be wrong with it is known, and take the model.

        Where speech is to be found first, which may take a while, that and the model wait for the first segment: the
        answer to a stream can then begin. The two models are never held together, for one alone may have room.

        Raises as `Transcriptions.transcribe` does.
        """
        if self._vad is None:
            await self._place()
        else:
            reader = await _open(self._request, self._limits)
            await asyncio.to_thread(reader.close)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        try:
            return await self._next()
        except VMMError as error:
            self._watch.error = error
            raise

    async def _next(self) -> Segment:
        if self._options.clips is None and self._vad is not None and self._request.speech is not None:
            clips = await self._find_speech(self._vad, self._request.speech)
            self._options = replace(self._options, clips=clips)
        while True:
            transcript = self._transcript or await self._place()
            try:
                segment = await anext(transcript)
            except PlacementFailed as error:
                if self._num_segments:
                    raise
                await self._leave(error)
                continue
            except StopAsyncIteration:
                if self.problem is not None:
                    logger.warning("a sound file is damaged: %s", self.problem)
                raise
            self._num_segments += 1
            return segment

    async def aclose(self) -> None:
        """End it at once."""
        await self._stack.aclose()

    async def _place(self) -> Transcript:
        """Begin on a placement that has not failed."""
        while True:
            try:
                return await self._start()
            except PlacementFailed as error:
                await self._leave(error)

    async def _start(self) -> Transcript:
        self._reader = await _open(self._request, self._limits)
        self._stack.push_async_callback(asyncio.to_thread, self._reader.close)
        held = self._one_shot.lease(
            self.model,
            ReadyTranscriber,
            keep_alive=self._request.keep_alive,
            wanted=self._request.wanted,
            watch=self._watch,
        )
        self._lease = lease = await self._stack.enter_async_context(held)
        self.model = lease.model
        self._load_s += lease.load_s
        self._transcript = transcript = lease.ready.transcribe(self._reader, self._options)
        self._stack.push_async_callback(transcript.aclose)
        lease.begun()
        return transcript

    async def _find_speech(self, vad: InstalledModel, options: SpeechOptions) -> tuple[Clip, ...]:
        async def find(lease: Lease[ReadyVad]) -> tuple[Clip, ...]:
            reader = await _open(self._request, self._limits)
            try:
                return await _speech_in(reader, lease.ready, options)
            finally:
                await asyncio.to_thread(reader.close)

        return await self._one_shot.run(
            vad, ReadyVad, find, operation="voice_activity", keep_alive=None, wanted=_VAD_PLACE
        )

    async def _leave(self, failure: PlacementFailed) -> None:
        """Give up a placement. Raises its failure again when it was one too many."""
        await self._stack.aclose()
        self._lease = self._transcript = None
        self._num_moves += 1
        if self._num_moves > MAX_MOVES:
            raise failure


async def _open(request: TranscriptionRequest, limits: AudioLimits) -> SoundReader:
    """Open the file. Its owner may close it once this returns or raises: no thread reads it any more."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_audio, request.file, limits, param=request.param))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        (reader,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(reader, SoundReader):
            reader.close()
        raise


async def _speech_in(reader: SoundReader, ready: ReadyVad, options: SpeechOptions) -> tuple[Clip, ...]:
    spans, before = SpeechSpans(options), SILENCE
    while len(samples := await asyncio.to_thread(reader.read, BLOCK_SAMPLES)):
        spoken = await ready.hear(Block(samples, before))
        spans.add(spoken.probabilities.tolist())
        before = spoken.after
    return spans.found(reader.duration_s or 0.0)
