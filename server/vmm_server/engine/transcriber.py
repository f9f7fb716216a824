"""The async face of one loaded Whisper."""

import asyncio
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
from tokenizers import Tokenizer

from vmm_server.audio.features import WINDOW_FRAMES, LogMel
from vmm_server.audio.languages import LANGUAGES, language_code
from vmm_server.audio.transcript import AudioReader, Transcript, TranscriptionOptions
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.callers import caller
from vmm_server.engine.batcher import BatcherStats
from vmm_server.engine.forecast import check_deadline, retry_after_s
from vmm_server.engine.transcriber_rows import Rows
from vmm_server.engine.transcriber_transcript import SoundTranscript
from vmm_server.engine.transcriber_window import WindowRequest
from vmm_server.engine.transcriber_worker import TranscriberWorker
from vmm_server.errors import InvalidRequest, Overloaded, UnsupportedParameter

_ENGLISH = "en"


@dataclass(frozen=True, slots=True)
class TranscriberOptions:
    """Limits of one transcriber."""

    max_rows: int = 8
    """Windows that are computed together; each has memory for what the decoder looks at."""
    max_encoded: int = 1
    """Windows in one run of the encoder."""
    max_transcripts: int = 576
    """Unfinished ones; more are refused."""


@dataclass(frozen=True, slots=True)
class TranscriberStats(BatcherStats):
    """A look at a transcriber: its calls are transcripts, and what it computed is seconds of sound; what windows share
    counts in each."""

    num_generated_tokens: int
    """Drawn since the start."""


class Transcriber:
    """Takes sounds, gives transcripts. Used from one event loop; the work is done by a `TranscriberWorker`."""

    def __init__(
        self,
        rows: Rows,
        tokenizer: Tokenizer,
        tokens: WhisperTokens,
        *,
        num_mel_bins: int,
        options: TranscriberOptions | None = None,
        name: str = "vmm-transcriber",
    ) -> None:
        """It closes `rows`, of which there may be `options.max_rows`."""
        self._options = options = options or TranscriberOptions()
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._log_mel = LogMel(num_mel_bins)
        self._times_words = rows.attends
        self._transcripts: set[SoundTranscript] = set()
        """Unfinished ones."""
        self.languages = tuple(tokens.languages) or (_ENGLISH,)
        """Codes of those that it knows."""
        self._worker = TranscriberWorker(
            rows, tokens, max_rows=options.max_rows, max_encoded=options.max_encoded, name=name
        )

    @property
    def is_multilingual(self) -> bool:
        """Whether it hears which language it is, and translates."""
        return bool(self._tokens.languages)

    @property
    def stats(self) -> TranscriberStats:
        """Counts of transcripts. Call on the event loop."""
        num_running = sum(each.queued_s is not None for each in self._transcripts)
        num_waiting = len(self._transcripts) - num_running
        worker = self._worker
        computed_s, histograms = round(worker.computed_s), (worker.histograms,)
        return TranscriberStats(num_waiting, num_running, computed_s, worker.num_drawn, histograms=histograms)

    @property
    def failure(self) -> str | None:
        """Which device failed, and its words, if that ended it: nothing will be heard here any more."""
        return self._worker.failure

    def transcribe(self, reader: AudioReader, options: TranscriptionOptions) -> Transcript:
        """Hear a sound, for the caller whose task this is. Call on the event loop.

        Raises at once, and then the reader is still the caller's: `InvalidRequest` and `UnsupportedParameter`
        (`language`, `task`, `temperature`, `timestamp_granularities`), `Overloaded`, `DeadlineUnreachable`,
        `ShuttingDown`, `PlacementFailed` after a `failure`.
        """
        self._worker.check()
        self._check(options)
        language = self._language(options.language)
        if len(self._transcripts) >= self._options.max_transcripts:
            raise Overloaded(retry_after_s=retry_after_s(self._worker.expected_s(caller.get())))
        asking = caller.get()
        if asking.deadline_at is not None:
            check_deadline(asking.deadline_at - time.monotonic(), self._worker.expected_s(asking))
        transcript = SoundTranscript(
            reader,
            options,
            language=language,
            context=self._encoded(options.prompt),
            tokens=self._tokens,
            log_mel=self._log_mel,
            worker=self._worker,
            caller=asking,
            forget=self._transcripts.discard,
        )
        self._transcripts.add(transcript)
        return cast(Transcript, transcript)

    async def try_once(self) -> None:
        """Hear a window of quiet, which goes through the queue as those of transcripts do. Raises as they do."""
        request = WindowRequest(
            index=0,
            features=self._log_mel(np.zeros(0, np.float32)),
            num_frames=WINDOW_FRAMES,
            context=(),
            language=self._language(None),
            options=TranscriptionOptions(temperatures=(0.0,)),
        )
        job = self._worker.submit(request, caller.get())
        try:
            await job.done
        finally:
            self._worker.cancel(job)

    async def aclose(self) -> None:
        """End the thread after the step under way and close the sessions. Open transcripts get `ShuttingDown`.
        Idempotent."""
        await asyncio.to_thread(self._worker.close)

    def _check(self, options: TranscriptionOptions) -> None:
        if options.task == "translate" and not self.is_multilingual:
            raise UnsupportedParameter("task: a model that knows English alone cannot translate", param="task")
        if not options.temperatures or min(options.temperatures) < 0:
            raise InvalidRequest("temperature must be 0 or more", param="temperature")
        if options.word_timestamps and not self._times_words:
            raise UnsupportedParameter(
                "timestamp_granularities: this model's decoder does not say when words were said",
                param="timestamp_granularities",
            )

    def _language(self, asked: str | None) -> str | None:
        """Its code; `None`: to be heard."""
        if asked is None:
            return None if self.is_multilingual else _ENGLISH
        code = language_code(asked)
        if code is None:
            raise InvalidRequest(
                f"language: {asked[:40]!r} is none that Whisper knows", param="language", hint="a code such as en or de"
            )
        if code not in self.languages:
            known = "English alone" if not self.is_multilingual else f"{len(self.languages)} others"
            raise UnsupportedParameter(f"language: this model knows {known}, not {LANGUAGES[code]}", param="language")
        return code

    def _encoded(self, prompt: str | None) -> list[int]:
        """The tokens of a prompt; those that are no text are left out."""
        if prompt is None or not prompt.strip():
            return []
        encoded = self._tokenizer.encode(f" {prompt.strip()}", add_special_tokens=False)
        return [token for token in encoded.ids if token < self._tokens.end_of_text][-self._tokens.max_context :]
