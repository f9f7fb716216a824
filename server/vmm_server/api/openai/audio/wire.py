"""What a form of `/v1/audio/transcriptions` or `/v1/audio/translations` may hold beside the file."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vmm_server.api.body import Duration, Integer, Strings, Wire
from vmm_server.api.placement import PlacementFields

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")


def _server_vad(value: object) -> object:
    """A form has an object as JSON text, or as fields of their own; `auto` leaves the figures to the server."""
    if not isinstance(value, str):
        return value
    if value == "auto":
        return {"type": "server_vad"}
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError('must be auto, or an object such as {"type": "server_vad"}') from error


class ServerVad(Wire):
    """How speech is found."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """More leaves out more."""
    prefix_padding_ms: Annotated[Integer, Field(ge=0, le=10_000)] = 300
    """Kept before and after speech."""
    silence_duration_ms: Annotated[Integer, Field(ge=0, le=60_000)] = 200
    """A shorter pause is part of the speech."""


class TranscriptionForm(PlacementFields):
    """Form of `POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

    model: str
    language: str | None = None
    """What is spoken: ISO 639-1 (`de`), or its English name; left out, it is heard."""
    prompt: str | None = None
    """Text as if it had been said before: names, spelling, style."""
    response_format: Annotated[str, Field(json_schema_extra={"enum": FORMATS})] = "json"
    timestamp_granularities: Strings | None = None
    """`word`, `segment` or both, with `verbose_json`."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 (the default) begins at 0, and goes up where the text would be a guess or repeat itself."""
    stream: bool | None = None
    """Events with the text as it is heard."""
    chunking_strategy: Annotated[
        ServerVad | None, BeforeValidator(_server_vad, json_schema_input_type=str | ServerVad | None)
    ] = None
    """Hear only where somebody speaks: `auto`, or how that is found. It needs the model silero-vad."""
    vad_filter: bool | None = None
    """The same, for longer pauses, as faster-whisper has it."""
    seed: Annotated[Integer, Field(ge=0)] | None = None
    """Of what is drawn above temperature 0."""
    include: Strings | None = None
    languages: Strings | None = None
    """One: the same as `language`."""
    keywords: Any = None
    known_speaker_names: Any = None
    known_speaker_references: Any = None
    keep_alive: Duration = None
