"""WebSocket `/v1/vision/stream`: frames in, what a model sees in them out.

One task reads, so that the newest frame is always at hand; another computes, one frame after the other, each as a
request of its own: it leases the model, and waits for its turn among those of other clients.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from litestar import websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from PIL import Image

from vmm_server.api.body import parse_body
from vmm_server.api.errors import openai_body
from vmm_server.api.placement import wanted_of
from vmm_server.api.sockets import SERVICE_RESTART, Socket, send_json, told_of_errors, until_one_ends
from vmm_server.api.vectors import shown_vectors
from vmm_server.api.vision.convert import (
    classify_request,
    detect_request,
    embed_request,
    narrowed,
    search_request,
    zero_shot_request,
)
from vmm_server.api.vision.frames import LatestFrame
from vmm_server.api.vision.render import DEFAULT_TOP_K, classifications, detections, search_results
from vmm_server.api.vision.wire import ClassifyBody, DetectBody, EmbedBody, SearchBody, VisionBody, ZeroShotBody
from vmm_server.errors import InvalidRequest, Overloaded, UnsupportedParameter
from vmm_server.requests import GivenImage, Wanted
from vmm_server.seeing import Classified, Vision
from vmm_server.vision_requests import DetectRequest, EmbedRequest, SearchRequest

FRAME = "frame"
"""What errors of a frame name."""
FIRST_MESSAGE_S = 60.0
"""How long a connection may say nothing before its options."""

Seen = Mapping[str, object]
Look = Callable[[GivenImage], Awaitable[Callable[[], Seen]]]
"""A frame → what was seen in it, yet to be rendered."""


@websocket("/v1/vision/stream")
async def vision_stream(socket: Socket, vision: NamedDependency[Vision]) -> None:
    """See docs/vision.md."""
    await socket.accept()
    async with told_of_errors(socket, {"object": "error"}):
        await _serve(socket, vision)


async def _serve(socket: Socket, vision: Vision) -> None:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = await _receive(socket)
    except TimeoutError as error:
        raise InvalidRequest(f"no options came in {FIRST_MESSAGE_S:g} s") from error
    if isinstance(first, bytes):
        raise InvalidRequest("the first message must be text: JSON with the model and what is wanted")
    wire, look = await _options(socket, vision, first)
    await look(GivenImage(io.BytesIO(await asyncio.to_thread(_blank)), FRAME))
    await send_json(socket, {"object": "stream", "model": wire.model, "task": vision.task_of(wire.model)})
    frames = LatestFrame(look)
    await until_one_ends(_read(socket, vision, frames), _answer(socket, frames))


async def _read(socket: Socket, vision: Vision, frames: LatestFrame[Look]) -> None:
    """Take messages until the client leaves."""
    while True:
        message = await _receive(socket)
        if isinstance(message, bytes):
            frames.put(message)
        else:
            _, frames.options = await _options(socket, vision, message)


async def _answer(socket: Socket, frames: LatestFrame[Look]) -> None:
    """Look at frames, one after the other. What is wrong with one does not end the stream."""
    while True:
        frame = await frames.take()
        about = {"frame": frame.number, "dropped": frame.num_dropped}
        try:
            render = await frame.options(GivenImage(io.BytesIO(frame.content), FRAME))
            text = await asyncio.to_thread(_encoded, render, about)
        except (InvalidRequest, Overloaded) as error:
            if isinstance(error, InvalidRequest) and error.param != FRAME:
                raise
            text = msgspec.json.encode({"object": "error", **about, **openai_body(error)}).decode()
        await socket.send_text(text)


async def _receive(socket: Socket) -> str | bytes:
    message: Any = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(detail="the client left", code=message.get("code", SERVICE_RESTART))
    content: str | bytes | None = message.get("text")
    return content if content is not None else message.get("bytes") or b""


async def _options(socket: Socket, vision: Vision, text: str) -> tuple[VisionBody, Look]:
    if not text.lstrip().startswith("{"):  # a data URI, more often than not
        raise InvalidRequest(
            "a text message must be a JSON object that says what is wanted", hint="send each frame as a binary message"
        )
    wire = await asyncio.to_thread(parse_body, text.encode(), VisionBody)
    return wire, look_with(vision, wire, wanted_of(socket.headers, wire))


def look_with(vision: Vision, wire: VisionBody, wanted: Wanted) -> Look:
    """What options mean for each frame. Raises `InvalidRequest` naming the field."""
    for name in ("image", "images", "response_format"):
        if getattr(wire, name) is not None:
            raise UnsupportedParameter(
                f"{name}: has no meaning here", param=name, hint="send each frame as a binary message"
            )
    task, some = vision.task_of(wire.model), [GivenImage("", FRAME)]
    if task == "detection":
        detect = detect_request(narrowed(wire, DetectBody, task), some, wanted)
        return lambda frame: _detect(vision, replace(detect, images=(frame,)))
    if task == "classification":
        classify = classify_request(narrowed(wire, ClassifyBody, task), some, wanted)
        top_k = wire.top_k or DEFAULT_TOP_K
        return lambda frame: _classes(vision.classify(replace(classify, images=(frame,))), top_k)
    if wire.labels is not None:
        zero_shot = zero_shot_request(narrowed(wire, ZeroShotBody, "zero-shot"), some, wanted)
        return lambda frame: _classes(vision.zero_shot(replace(zero_shot, images=(frame,))), wire.top_k)
    if wire.query is not None:
        search = search_request(narrowed(wire, SearchBody, "search"), some, wanted)
        return lambda frame: _search(vision, replace(search, items=(frame, *search.items[1:])), wire)
    embed = embed_request(narrowed(wire, EmbedBody, "embedding"), some, wanted)
    if len(embed.items) > 1:
        raise UnsupportedParameter(
            f"{embed.items[1].param}: texts are no frames", param=embed.items[1].param, hint="send it to /v1/embeddings"
        )
    return lambda frame: _embed(vision, replace(embed, items=(frame,)), wire.encoding_format == "base64")


async def _detect(vision: Vision, request: DetectRequest) -> Callable[[], Seen]:
    detected = await vision.detect(request)
    return lambda: detections(detected)[0]


async def _classes(work: Awaitable[Classified], top_k: int | None) -> Callable[[], Seen]:
    classified = await work
    return lambda: classifications(classified, top_k)[0]


async def _search(vision: Vision, request: SearchRequest, wire: VisionBody) -> Callable[[], Seen]:
    ranked = await vision.search(request)
    return lambda: {"object": "results", "results": search_results(ranked, wire.model, wire.top_k)["results"]}


async def _embed(vision: Vision, request: EmbedRequest, as_base64: bool) -> Callable[[], Seen]:
    embedded = await vision.embed(request)
    return lambda: {
        "object": "embedding",
        "index": 0,
        "embedding": shown_vectors(embedded.vectors, as_base64=as_base64)[0],
    }


def _encoded(render: Callable[[], Seen], about: Mapping[str, int]) -> str:
    return msgspec.json.encode({**render(), **about}).decode()


def _blank() -> bytes:
    """A frame to try options on: what is wrong with them is told at once, and the model is there for the first one."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return file.getvalue()
