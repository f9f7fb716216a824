"""One sound, heard window by window as its segments are asked for."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from vmm_server.audio.clips import ClippedReader
from vmm_server.audio.features import FRAMES_PER_S, LogMel
from vmm_server.audio.phrases import Phrase, split_window
from vmm_server.audio.transcript import SAMPLE_RATE, AudioReader, Segment, TranscriptionOptions, Word
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.audio.windows import Window, Windows
from vmm_server.audio.words import TimedWord, timed_phrases
from vmm_server.callers import Caller
from vmm_server.engine.transcriber_window import Floats, WindowRequest, WindowText, is_silence
from vmm_server.engine.transcriber_worker import Job, TranscriberWorker
from vmm_server.errors import GenerationFailed, PlacementFailed

MAX_CONTEXT_TEMPERATURE = 0.5
"""What was drawn above it is no context for what follows: it may go astray, and would lead the rest there."""

Read = TypeVar("Read")


class SoundTranscript:
    """Implements `audio.transcript.Transcript`. Made by `Transcriber.transcribe`; used on its event loop."""

    def __init__(
        self,
        reader: AudioReader,
        options: TranscriptionOptions,
        *,
        language: str | None,
        context: Sequence[int],
        tokens: WhisperTokens,
        log_mel: LogMel,
        worker: TranscriberWorker,
        caller: Caller,
        forget: Callable[["SoundTranscript"], None],
    ) -> None:
        """`context`: tokens of the prompt. `forget` is called when it is over."""
        self.language = language
        self._file = reader
        self._options = options
        self._tokens = tokens
        self._log_mel = log_mel
        self._worker = worker
        self._caller = caller
        self._forget = forget
        self._sound = ClippedReader(reader, options.clips)
        self._windows = Windows(self._sound)
        self._seek = 0
        self._num_windows = 0
        self._prompt = self._context = tuple(context)
        self._num_segments = 0
        self._spoken_until = 0.0
        """When the last word ended, in seconds of the clipped sound."""
        self._heard: deque[Segment] = deque()
        """Not asked for yet."""
        self._is_whole = False
        self._is_closed = False
        self._closing: asyncio.Task[None] | None = None
        self._job: Job | None = None
        self._first_job: Job | None = None
        self._num_tokens = 0
        """Of jobs that are over."""
        self._reading: asyncio.Task[Any] | None = None

    @property
    def duration_s(self) -> float | None:
        """See `Transcript`."""
        return self._sound.num_samples / SAMPLE_RATE if self._is_whole else self._file.duration_s

    @property
    def num_tokens(self) -> int:
        """See `Transcript`."""
        return self._num_tokens + (self._job.num_drawn if self._job is not None else 0)

    @property
    def queued_s(self) -> float | None:
        """See `Transcript`. Once it is known, the transcript runs."""
        first = self._first_job
        return None if first is None or first.started_at is None else first.started_at - first.submitted_at

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        try:
            while not (self._heard or self._is_whole or self._is_closed):
                await self._hear_window()
        except BaseException:
            await self.aclose()
            raise
        if self._heard and not self._is_closed:
            return self._heard.popleft()
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """See `Transcript`."""
        if self._closing is None:
            self._is_closed = True
            self._forget(self)
            if self._job is not None:
                self._worker.cancel(self._job)
                self._job.done.cancel()
            self._closing = asyncio.create_task(self._release())
        await asyncio.shield(self._closing)

    async def _hear_window(self) -> None:
        prepared = await self._in_thread(self._prepare)
        if prepared is None:
            self._is_whole = True
            return
        window, features = prepared
        if features is None:
            self._seek += window.num_frames
            return
        text = await self._text_of(window, features)
        if text is None:
            return
        self.language = text.language
        if is_silence(text, self._options):
            self._seek += window.num_frames
            return
        split = split_window(text.tokens, window.num_frames, self._tokens)
        segments = await self._in_thread(lambda: self._segments(window, text, split.phrases))
        self._num_segments += len(segments)
        self._heard.extend(segments)
        self._seek += split.num_heard_frames if window.is_loud_behind(split.num_heard_frames) else split.num_frames
        if text.temperature > MAX_CONTEXT_TEMPERATURE or not self._options.condition_on_previous_text:
            self._context = self._prompt
        else:
            said = [token for segment in segments for token in segment.tokens]
            self._context = (*self._context, *said)[-self._tokens.max_context :]

    def _prepare(self) -> tuple[Window, Floats | None] | None:
        """The next window with its features, which silence has none of; in a thread."""
        window = self._windows.at(self._seek)
        if window is None:
            return None
        return window, None if window.is_silent else self._log_mel(window.samples)

    async def _text_of(self, window: Window, features: Floats) -> WindowText | None:
        """What is heard in a window; `None` once closed."""
        if self._is_closed:
            return None
        request = WindowRequest(
            index=self._num_windows,
            features=features,
            num_frames=window.num_frames,
            context=self._context,
            language=self.language,
            options=self._options,
        )
        self._num_windows += 1
        try:
            job = self._job = self._worker.submit(request, self._caller)
            self._first_job = self._first_job or job
            await asyncio.wait({job.done})
            self._num_tokens += job.num_drawn
            self._job = None
            return None if job.done.cancelled() else job.done.result()
        except PlacementFailed as error:
            if not self._num_segments:
                raise
            raise GenerationFailed(error.failure, hint="send it again") from error

    def _segments(self, window: Window, text: WindowText, phrases: Sequence[Phrase]) -> list[Segment]:
        """What was said in a window; in a thread."""
        offset = window.seek / FRAMES_PER_S
        timed: list[tuple[Phrase, tuple[TimedWord, ...] | None]] = [(phrase, None) for phrase in phrases]
        if text.attention is not None:
            begin = self._spoken_until - offset
            timed = [*timed_phrases(phrases, text.attention, self._tokens, text.language, begin=begin)]
            self._spoken_until = offset + timed[-1][0].end
        segments: list[Segment] = []
        for phrase, words in timed:
            said = self._tokens.decode(phrase.tokens)
            if not (phrase.start < phrase.end and any(map(str.isalnum, said))):  # dots are what it hears in noise
                continue
            start, end = self._sound.original(offset + phrase.start, offset + phrase.end)
            given = None if not self._options.word_timestamps else [self._word(word, offset) for word in words or ()]
            segments.append(
                Segment(
                    id=self._num_segments + len(segments),
                    seek=round(self._sound.original(offset, offset)[0] * FRAMES_PER_S),
                    start=_rounded(given[0].start if given else start),
                    end=_rounded(given[-1].end if given else end),
                    text=said,
                    tokens=phrase.tokens,
                    temperature=text.temperature,
                    avg_logprob=text.avg_logprob,
                    compression_ratio=text.compression_ratio,
                    no_speech_prob=text.no_speech_prob,
                    words=None if given is None else tuple(given),
                )
            )
        return segments

    def _word(self, word: TimedWord, offset: float) -> Word:
        start, end = self._sound.original_word(offset + word.start, offset + word.end)
        return Word(word.text, _rounded(start), _rounded(end), word.probability)

    async def _in_thread(self, call: Callable[[], Read]) -> Read:
        """Not ended by whoever stops waiting for it: the reader is not closed while it is read."""
        self._reading = task = asyncio.create_task(asyncio.to_thread(call))
        return await asyncio.shield(task)

    async def _release(self) -> None:
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        await asyncio.to_thread(self._file.close)


def _rounded(time: float) -> float:
    """To 10 ms: nothing is known better."""
    return round(time, 2)
