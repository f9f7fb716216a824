"""`POST /v1/audio/transcriptions` and `POST /v1/audio/translations`: sound, written down."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import provenance
from vmm_server.api.errors import openai_body
from vmm_server.api.multipart import Form, FormLimits, answer_form
from vmm_server.api.openai.audio.convert import Wish, transcription_request
from vmm_server.api.openai.audio.render import MEDIA_TYPES, Events, Whole, answer
from vmm_server.api.openai.audio.transcription_examples import TRANSCRIPTIONS, TRANSLATIONS
from vmm_server.api.openai.audio.wire import TranscriptionForm
from vmm_server.api.openapi import described
from vmm_server.api.placement import wanted_of
from vmm_server.api.streaming import ChunkStream, WholeAnswer, json_response, sse_response
from vmm_server.audio.transcript import Task
from vmm_server.settings import Settings
from vmm_server.transcription import Transcribed, TranscriptionRequest, Transcriptions

FILE = {"file": "The sound: any file with sound in it, videos too."}


class TranscriptionsController(Controller):
    """Speech to text."""

    path = "/v1/audio"

    @post(
        "/transcriptions",
        status_code=200,
        operation_id="createTranscription",
        summary="Write speech down",
        request_max_body_size=None,
        opt=described(*TRANSCRIPTIONS, body=TranscriptionForm, files=FILE, runs=True),
    )
    async def transcribe(
        self,
        request: Request[Any, Any, Any],
        transcriptions: NamedDependency[Transcriptions],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """In its own language: JSON, text or subtitles; server-sent events with `stream=true`."""
        return await _reply(request, transcriptions, settings, "transcribe")

    @post(
        "/translations",
        status_code=200,
        operation_id="createTranslation",
        summary="Write speech down in English",
        request_max_body_size=None,
        opt=described(*TRANSLATIONS, body=TranscriptionForm, files=FILE, runs=True),
    )
    async def translate(
        self,
        request: Request[Any, Any, Any],
        transcriptions: NamedDependency[Transcriptions],
        settings: NamedDependency[Settings],
    ) -> ASGIApp:
        """The same, by a model that knows more than English."""
        return await _reply(request, transcriptions, settings, "translate")


async def _reply(
    request: Request[Any, Any, Any], transcriptions: Transcriptions, settings: Settings, task: Task
) -> ASGIApp:
    def reply(form: Form) -> ASGIApp:
        wire = form.parse(TranscriptionForm)
        wanted = wanted_of(request.headers, wire)
        asked, wish = transcription_request(wire, form.file_of("file").content, task=task, wanted=wanted)
        if not wish.stream:
            return json_response(lambda: _whole(transcriptions, asked, wish))
        return sse_response(lambda: _stream(transcriptions, asked), openai_body, drain_s=settings.shutdown_timeout_s)

    return await answer_form(request, FormLimits(settings.max_audio_bytes, setting="max_audio_bytes"), reply)


async def _whole(transcriptions: Transcriptions, asked: TranscriptionRequest, wish: Wish) -> WholeAnswer:
    async with transcriptions.transcribe(asked) as transcribed:
        segments = [segment async for segment in transcribed]
        warnings = _warnings(transcribed)
        whole = Whole(
            segments,
            asked.options.task,
            transcribed.language,
            transcribed.duration_s,
            transcribed.num_tokens,
            warnings,
        )
        body = await asyncio.to_thread(answer, whole, wish)  # hours of speech are megabytes
        headers = {"content-type": MEDIA_TYPES[wish.format], **_provenance(transcribed)}
        return WholeAnswer(body, headers | ({"x-vmm-warning": warnings[0]} if warnings else {}))


@asynccontextmanager
async def _stream(transcriptions: Transcriptions, asked: TranscriptionRequest) -> AsyncIterator[ChunkStream]:
    async with transcriptions.transcribe(asked) as transcribed, aclosing(_events(transcribed)) as events:
        yield ChunkStream(events, lambda: _provenance(transcribed))


async def _events(transcribed: Transcribed) -> AsyncGenerator[bytes]:
    events = Events()
    async for segment in transcribed:
        if event := events.segment(segment):
            yield event
    yield events.end(transcribed.duration_s, transcribed.num_tokens, _warnings(transcribed))


def _provenance(transcribed: Transcribed) -> dict[str, str]:
    return {} if transcribed.answered is None else provenance(transcribed.answered)


def _warnings(transcribed: Transcribed) -> list[str]:
    return [] if transcribed.problem is None else [f"the file is damaged or cut off: {transcribed.problem}"]
