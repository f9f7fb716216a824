"""A Whisper folder on disk → something warm that takes sound."""

from dataclasses import dataclass

from vmm_server.audio.transcript import AudioReader, TranscriberStats, Transcript, TranscriptionOptions
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings


@dataclass(frozen=True, slots=True)
class ReadyTranscriber:
    """Everything a request needs of a loaded Whisper. Implements `Ready`."""

    placement: Placement
    context_length: int
    memory_bytes: int
    languages: tuple[str, ...]
    """Codes of those that it hears; `("en",)` of one that knows English alone."""
    is_multilingual: bool

    @property
    def load(self) -> Load:
        """See `Ready`."""
        return NO_LOAD

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        raise NotImplementedError

    @property
    def stats(self) -> TranscriberStats:
        """What it does. Safe from any thread."""
        raise NotImplementedError

    def transcribe(self, reader: AudioReader, options: TranscriptionOptions) -> Transcript:
        """Hear a sound. Call on the event loop.

        Raises at once, and then the reader is still the caller's: `InvalidRequest` and `UnsupportedParameter`
        (`language`, `task`, `prompt`), `Overloaded`, `ShuttingDown`, `PlacementFailed` after a `failure`.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """See `Ready`."""
        raise NotImplementedError


def load_transcriber(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyTranscriber:
    """Load a Whisper on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    raise NotImplementedError
