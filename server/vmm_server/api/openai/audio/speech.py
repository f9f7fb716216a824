"""`POST /v1/audio/speech`: a text, spoken."""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Literal

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from pydantic import Field

from vmm_server.api.answers import provenance
from vmm_server.api.body import Duration, Wire, read_body
from vmm_server.api.errors import openai_body
from vmm_server.api.framing import sse_event
from vmm_server.api.openai.audio.speech_examples import SPEECH
from vmm_server.api.openapi import described
from vmm_server.api.placement import PlacementFields, wanted_of
from vmm_server.api.streaming import ChunkStream, bytes_response, sse_response
from vmm_server.audio.encoding import MEDIA_TYPES, AudioFormat, open_encoder
from vmm_server.errors import UnsupportedParameter
from vmm_server.requests import ANYWHERE, Wanted
from vmm_server.settings import Settings
from vmm_server.speaking import Speech, SpeechRequest, SpeechUsage, Spoken

MAX_CHARACTERS = 4096
"""Of a text, as OpenAI's limit is."""


class VoiceReference(Wire):
    """A voice, as OpenAI's clients name those that their users made."""

    id: str


class SpeechBody(PlacementFields):
    """Body of `POST /v1/audio/speech`."""

    model: str
    input: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    """The text."""
    voice: str | VoiceReference
    """One of the model's, by its whole name (`af_nova`) or what stands after the `_` where that is only one."""
    response_format: AudioFormat | None = None
    """`mp3` if it is left out; `opus` comes in Ogg, `pcm` is signed 16-bit little-endian samples at 24 kHz."""
    speed: Annotated[float, Field(ge=0.25, le=4)] | None = None
    """2 is twice as fast."""
    stream_format: Literal["audio", "sse"] | None = None
    """`sse`: events with base64 in place of the file's bytes."""
    instructions: str | None = None
    """How to speak: no model here can be told."""
    keep_alive: Duration = None


class SpeechController(Controller):
    """Speech."""

    path = "/v1/audio/speech"

    @post(
        status_code=200,
        operation_id="createSpeech",
        summary="Speak a text",
        opt=described(*SPEECH, body=SpeechBody, runs=True),
    )
    async def create(
        self, request: Request[Any, Any, Any], speech: NamedDependency[Speech], settings: NamedDependency[Settings]
    ) -> ASGIApp:
        """The sound, sentence by sentence as it is spoken: a file, or events with its pieces."""
        wire = await read_body(request, SpeechBody)
        asked = speech_request(wire, wanted_of(request.headers, wire))
        format = wire.response_format or "mp3"
        if wire.stream_format == "sse":
            return sse_response(
                lambda: _open(speech, asked, format, as_events=True), openai_body, drain_s=settings.shutdown_timeout_s
            )
        return bytes_response(lambda: _open(speech, asked, format, as_events=False), MEDIA_TYPES[format])


def speech_request(wire: SpeechBody, wanted: Wanted = ANYWHERE) -> SpeechRequest:
    """What a body asks for. Raises `UnsupportedParameter`."""
    if wire.instructions and wire.instructions.strip():
        raise UnsupportedParameter(
            "instructions: this model cannot be told how to speak",
            param="instructions",
            hint="leave it out, and choose another voice or speed",
        )
    return SpeechRequest(
        model=wire.model,
        text=wire.input,
        voice=wire.voice if isinstance(wire.voice, str) else wire.voice.id,
        speed=1.0 if wire.speed is None else wire.speed,
        keep_alive=wire.keep_alive,
        wanted=wanted,
    )


def delta_event(sound: bytes) -> dict[str, object]:
    """`speech.audio.delta`: a piece of the file."""
    return {"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode("ascii")}


def done_event(usage: SpeechUsage) -> dict[str, object]:
    """`speech.audio.done`. Tokens are the letters that the model read and the frames of sound that it made."""
    counts = {"input_tokens": usage.num_letters, "output_tokens": usage.num_frames}
    return {"type": "speech.audio.done", "usage": counts | {"total_tokens": sum(counts.values())}}


@asynccontextmanager
async def _open(
    speech: Speech, asked: SpeechRequest, format: AudioFormat, *, as_events: bool
) -> AsyncIterator[ChunkStream]:
    async with speech.speak(asked) as spoken, aclosing(_encoded(spoken, format)) as pieces:
        chunks = _events(spoken, pieces) if as_events else pieces
        async with aclosing(chunks):
            yield ChunkStream(chunks, lambda: provenance(spoken))


async def _encoded(spoken: Spoken, format: AudioFormat) -> AsyncGenerator[bytes]:
    """The file, in a piece a sentence; none of them empty."""
    encoder = await asyncio.to_thread(open_encoder, format, spoken.sample_rate)
    async for samples in spoken.sentences:
        if piece := await asyncio.to_thread(encoder.feed, samples):
            yield piece
    if piece := await asyncio.to_thread(encoder.finish):
        yield piece


async def _events(spoken: Spoken, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    async for piece in pieces:
        yield sse_event(delta_event(piece))
    yield sse_event(done_event(spoken.usage))
