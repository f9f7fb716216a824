"""A Whisper folder on disk → something warm that takes sound: the blocking half of a load."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from vmm_adapters import catalog
from vmm_adapters.base import Session
from vmm_adapters.types import Precision, SessionOptions
from vmm_server.audio.features import WINDOW_FRAMES
from vmm_server.audio.transcript import AudioReader, Task, Transcript, TranscriptionOptions
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.engine.transcriber import Transcriber, TranscriberOptions, TranscriberStats
from vmm_server.engine.transcriber_rows import CARRIED, Rows, row_bytes
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.router import Load, NoLoad, Placement
from vmm_server.models.store import InstalledModel, how_to_mend
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.settings import Settings

CPU_PRECISION: Precision = "bf16"
"""What a CPU computes in that has instructions for it: as fast again or more, and tiny.en makes no more mistakes."""
MAX_WINDOWS = 16
"""That are computed together; a step of four takes twice as long as one of one, on a CPU."""
MAX_WINDOW_BYTES = 1 << 30
"""For what the decoder looks at, of all windows that are computed together; one always has room."""


@dataclass(frozen=True, slots=True)
class ReadyTranscriber:
    """Everything a request needs of a loaded Whisper. Implements `Sampled`."""

    transcriber: Transcriber
    placement: Placement
    context_length: int
    """Positions of the decoder: half of them for what was said before a window, half for the window."""
    memory_bytes: int
    """Weights, and all windows that may be computed together."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of those that it hears; `("en",)` of one that knows English alone."""
        return self.transcriber.languages

    @property
    def is_multilingual(self) -> bool:
        """Whether it hears which language it is, and translates."""
        return self.transcriber.is_multilingual

    @property
    def load(self) -> Load:
        """See `Ready`. Counts transcripts."""
        stats = self.transcriber.stats
        return NoLoad(stats.num_running, stats.num_waiting)

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.transcriber.failure

    @property
    def stats(self) -> TranscriberStats:
        """See `Sampled`. Its unit is a second of sound; call on the event loop."""
        return self.transcriber.stats

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.transcriber.try_once()

    def transcribe(self, reader: AudioReader, options: TranscriptionOptions) -> Transcript:
        """See `Transcriber.transcribe`."""
        return self.transcriber.transcribe(reader, options)

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.transcriber.aclose()


class _Config(BaseModel):
    """What is read of `config.json`."""

    num_mel_bins: Annotated[int, Field(ge=1)]
    vocab_size: int
    max_target_positions: Annotated[int, Field(ge=16)] = 448


class _GenerationConfig(BaseModel):
    """What is read of `generation_config.json`. `begin_suppress_tokens` is not: a window begins with a timestamp."""

    decoder_start_token_id: int
    eos_token_id: int
    no_timestamps_token_id: int
    prev_sot_token_id: int | None = None
    lang_to_id: dict[str, int] = {}
    task_to_id: dict[Task, int] = {}
    suppress_tokens: tuple[int, ...] = ()


def load_transcriber(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyTranscriber:
    """Load a Whisper on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    folder = model.folders[placement.variant]
    tokenizer = read_tokenizer(model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # in a prompt they are text
    try:
        config = _Config.model_validate_json((folder / "config.json").read_bytes())
        generation = _GenerationConfig.model_validate_json((folder / "generation_config.json").read_bytes())
        tokens = _tokens(config, generation, tokenizer)
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"cannot load {model.name!r}: {folder}: {error}", hint=how_to_mend(model)) from error
    encoder, decoder = _open(model, placement, settings)
    try:
        each = row_bytes(encoder, decoder, tokens.max_length)
        max_rows = max(1, min(settings.max_sequences, MAX_WINDOWS, MAX_WINDOW_BYTES // each))
        rows = Rows(encoder, decoder, max_rows)
        rows.warm_up(np.zeros((config.num_mel_bins, WINDOW_FRAMES), np.float32), (tokens.start_of_transcript,))
    except BaseException:
        encoder.close()
        decoder.close()
        raise
    transcriber = Transcriber(
        rows,
        tokenizer,
        tokens,
        num_mel_bins=config.num_mel_bins,
        options=TranscriberOptions(
            max_rows=max_rows,
            max_encoded=1 if placement.device.upper().startswith("CPU") else max_rows,
            max_transcripts=settings.max_sequences + settings.max_queue,
        ),
        name=f"vmm-transcriber {model.name}",
    )
    return ReadyTranscriber(
        transcriber=transcriber,
        placement=placement,
        context_length=tokens.max_length,
        memory_bytes=encoder.memory_bytes + decoder.memory_bytes + max_rows * each,
    )


def _open(model: InstalledModel, placement: Placement, settings: Settings) -> tuple[Session, Session]:
    folder = model.folders[placement.variant]
    options = SessionOptions(
        device=placement.device,
        num_threads=settings.num_threads,
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
        allow_fallback=False,  # the pool goes on to the next placement, and says which one it is
        precision=CPU_PRECISION if placement.device.upper().startswith("CPU") else None,
        carried=CARRIED,
    )
    encoder = catalog.load_session(placement.adapter, folder / "encoder.onnx", options)
    try:
        return encoder, catalog.load_session(placement.adapter, folder / "decoder.onnx", options)
    except BaseException:
        encoder.close()
        raise


def _tokens(config: _Config, generation: _GenerationConfig, tokenizer: Tokenizer) -> WhisperTokens:
    """Raises `ValueError` for what is no Whisper's vocabulary."""
    token_bytes = TokenBytes(tokenizer)
    no_timestamps = generation.no_timestamps_token_id
    previous = generation.prev_sot_token_id or tokenizer.token_to_id("<|startofprev|>")
    if previous is None:
        raise ValueError("there is no token <|startofprev|>")
    no_speech = (tokenizer.token_to_id(name) for name in ("<|nospeech|>", "<|nocaptions|>"))
    special = (generation.decoder_start_token_id, previous, *generation.lang_to_id.values())
    if not generation.eos_token_id < min(special) <= max(special) < no_timestamps < config.vocab_size - 1:
        raise ValueError("its special tokens do not stand between text and timestamps")
    if bool(generation.lang_to_id) != bool(generation.task_to_id):
        raise ValueError("languages and tasks must both be in generation_config.json, or none")
    return WhisperTokens(
        end_of_text=generation.eos_token_id,
        start_of_transcript=generation.decoder_start_token_id,
        start_of_previous=previous,
        no_speech=next((token for token in no_speech if token is not None), no_timestamps - 1),
        no_timestamps=no_timestamps,
        languages={name.strip("<|>"): token for name, token in generation.lang_to_id.items()},
        tasks=generation.task_to_id,
        suppressed=tuple(token for token in generation.suppress_tokens if 0 <= token < generation.eos_token_id),
        text=tuple(token_bytes(token) for token in range(generation.eos_token_id)),
        max_length=config.max_target_positions,
    )
