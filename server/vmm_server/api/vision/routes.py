"""`POST /v1/vision/…`: detect, classify, embed, zero-shot, search; and `/v1/vision`, which does what its model does."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from vmm_server.api.answers import provenance
from vmm_server.api.body import max_body_bytes, read_body
from vmm_server.api.multipart import Form, FormLimits, answer_form, is_form
from vmm_server.api.openapi import Description, Example, described
from vmm_server.api.placement import wanted_of
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.api.vectors import embedding_answer
from vmm_server.api.vision import examples
from vmm_server.api.vision.convert import (
    classify_request,
    detect_request,
    embed_request,
    narrowed,
    search_request,
    zero_shot_request,
)
from vmm_server.api.vision.render import DEFAULT_TOP_K, classification_list, detection_list, search_results
from vmm_server.api.vision.wire import (
    MAX_IMAGES,
    ClassifyBody,
    DetectBody,
    EmbedBody,
    ImagesBody,
    SearchBody,
    VisionBody,
    ZeroShotBody,
)
from vmm_server.errors import InvalidRequest
from vmm_server.one_shot import Answered
from vmm_server.requests import GivenImage
from vmm_server.seeing import Vision

PNG = "image/png"
FILES = ("file", "files", "image", "images")
"""Fields of a form that images come in."""
_FEW = 50
"""Things that are written down in less time than a thread takes to wake up; ten times as many are a millisecond."""
_FEW_SCORES = 2000
"""The same of scores, of which only the best are."""

Shape = TypeVar("Shape", bound=ImagesBody)
Asked = Request[Any, Any, Any]


_FILES = {
    "file": "Images: PNG, JPEG, WebP, GIF (its first picture) or BMP; as often as there are images.",
    "query": "The query, where it is an image.",
}


def _described(shown: Sequence[Example], body: type[ImagesBody], *more_files: str) -> dict[str, Description]:
    files = {name: _FILES[name] for name in ("file", *more_files)}
    return described(*shown, body=body, files=files, takes_json=True, runs=True, headers=("server-timing",))


class VisionController(Controller):
    """What models see in pictures."""

    path = "/v1/vision"

    @post(
        "/detect",
        status_code=200,
        operation_id="detect",
        summary="Find things in images",
        opt=_described(examples.DETECT, DetectBody),
    )
    async def detect(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """Boxes, with masks, keypoints or corners where the model has them. JSON, or one picture, drawn."""
        return await _reply(request, DetectBody, lambda wire, form: _detect(request, vision, wire, form))

    @post(
        "/classify",
        status_code=200,
        operation_id="classify",
        summary="Say what images show",
        opt=_described(examples.CLASSIFY, ClassifyBody),
    )
    async def classify(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """The model's own classes, the most probable first."""
        return await _reply(request, ClassifyBody, lambda wire, form: _classify(request, vision, wire, form))

    @post(
        "/embed",
        status_code=200,
        operation_id="embedImages",
        summary="Make vectors of images and texts",
        opt=_described(examples.EMBED, EmbedBody),
    )
    async def embed(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """Images first, then texts, then `input`. Texts have the vectors that `/v1/embeddings` gives them."""
        return await _reply(request, EmbedBody, lambda wire, form: _embed(request, vision, wire, form))

    @post(
        "/zero-shot",
        status_code=200,
        operation_id="classifyZeroShot",
        summary="Say which of the request's labels images show",
        opt=_described(examples.ZERO_SHOT, ZeroShotBody),
    )
    async def zero_shot(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """Scores are one together, or, of SigLIP's kind of model, each label's own probability."""
        return await _reply(request, ZeroShotBody, lambda wire, form: _zero_shot(request, vision, wire, form))

    @post(
        "/search",
        status_code=200,
        operation_id="searchImages",
        summary="Sort images or texts by how near they are to one",
        opt=_described(examples.SEARCH, SearchBody, "query"),
    )
    async def search(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """Nearest first; `index` is the place in the request, images before texts."""
        return await _reply(request, SearchBody, lambda wire, form: _search(request, vision, wire, form))

    @post(
        status_code=200,
        operation_id="vision",
        summary="Do what the model does",
        opt=_described(examples.VISION, VisionBody, "query"),
    )
    async def by_task(self, request: Asked, vision: NamedDependency[Vision]) -> ASGIApp:
        """Detects or classifies; of a model that embeds, `labels` mean zero-shot and `query` search."""
        return await _reply(request, VisionBody, lambda wire, form: _by_task(request, vision, wire, form))


async def _reply(request: Asked, shape: type[Shape], answer: Callable[[Shape, Form], ASGIApp]) -> ASGIApp:
    """What `answer` makes of a body, be it JSON or a form."""
    if not is_form(request):
        return answer(await read_body(request, shape), Form())
    limits = FormLimits(
        max_bytes=max_body_bytes(request), max_files=MAX_IMAGES + 1, param="images", setting="max_body_size"
    )
    return await answer_form(request, limits, lambda form: answer(form.parse(shape), form))


def _detect(request: Asked, vision: Vision, wire: DetectBody, form: Form) -> ASGIApp:
    asked = detect_request(wire, _files(form), wanted_of(request.headers, wire))
    as_png = wire.response_format == "png" or (wire.response_format is None and _accepts_png(request))
    if as_png and len(asked.images) != 1:
        raise InvalidRequest(
            f"response_format: {len(asked.images)} images cannot be answered as one PNG",
            param="response_format",
            hint='send one image, or "draw": true for JSON with each picture',
        )
    if as_png:
        asked = replace(asked, draw=True)

    async def answer() -> WholeAnswer:
        detected = await vision.detect(asked)
        if as_png and detected.drawn:
            return WholeAnswer(detected.drawn[0], provenance(detected) | {"content-type": PNG})
        is_quick = (
            sum(map(len, detected.found)) <= _FEW
            and detected.drawn is None
            and not any(found.masks for found in detected.found)
        )
        return await _json(detected, lambda: detection_list(detected, wire.model), is_quick)

    return json_response(answer)


def _classify(request: Asked, vision: Vision, wire: ClassifyBody, form: Form) -> ASGIApp:
    asked = classify_request(wire, _files(form), wanted_of(request.headers, wire))

    async def answer() -> WholeAnswer:
        classified = await vision.classify(asked)
        top_k = wire.top_k or DEFAULT_TOP_K
        is_quick = classified.scores.size <= _FEW_SCORES
        return await _json(classified, lambda: classification_list(classified, wire.model, top_k), is_quick)

    return json_response(answer)


def _embed(request: Asked, vision: Vision, wire: EmbedBody, form: Form) -> ASGIApp:
    asked = embed_request(wire, _files(form), wanted_of(request.headers, wire))

    async def answer() -> WholeAnswer:
        return await embedding_answer(await vision.embed(asked), wire.model, wire.encoding_format)

    return json_response(answer)


def _zero_shot(request: Asked, vision: Vision, wire: ZeroShotBody, form: Form) -> ASGIApp:
    asked = zero_shot_request(wire, _files(form), wanted_of(request.headers, wire))

    async def answer() -> WholeAnswer:
        classified = await vision.zero_shot(asked)
        is_quick = classified.scores.size <= _FEW
        return await _json(classified, lambda: classification_list(classified, wire.model, wire.top_k), is_quick)

    return json_response(answer)


def _search(request: Asked, vision: Vision, wire: SearchBody, form: Form) -> ASGIApp:
    queries = _files(form, "query")
    if len(queries) > 1:
        raise InvalidRequest(f"query: {len(queries)} files; send one", param="query")
    asked = search_request(wire, _files(form), wanted_of(request.headers, wire), queries[0] if queries else None)

    async def answer() -> WholeAnswer:
        ranked = await vision.search(asked)
        is_quick = len(ranked.scores) <= _FEW
        return await _json(ranked, lambda: search_results(ranked, wire.model, wire.top_k), is_quick)

    return json_response(answer)


def _by_task(request: Asked, vision: Vision, wire: VisionBody, form: Form) -> ASGIApp:
    task = vision.task_of(wire.model)
    if task == "detection":
        return _detect(request, vision, narrowed(wire, DetectBody, task), form)
    if task == "classification":
        return _classify(request, vision, narrowed(wire, ClassifyBody, task), form)
    if wire.labels is not None:
        return _zero_shot(request, vision, narrowed(wire, ZeroShotBody, "zero-shot"), form)
    if wire.query is not None or form.files_of("query"):
        return _search(request, vision, narrowed(wire, SearchBody, "search"), form)
    return _embed(request, vision, narrowed(wire, EmbedBody, "embedding"), form)


def _files(form: Form, *names: str) -> Sequence[GivenImage]:
    found = form.files_of(*(names or FILES))
    if "file" in form.fields:
        raise InvalidRequest("file: must be a file, not text", param="file", hint="curl sends one with -F file=@path")
    return [
        GivenImage(file.content, file.field if len(found) == 1 else f"{file.field}[{index}]")
        for index, file in enumerate(found)
    ]


def _accepts_png(request: Asked) -> bool:
    accepted = request.headers.get("accept", "").lower()
    return PNG in accepted and "json" not in accepted


async def _json(answered: Answered, render: Callable[[], Mapping[str, object]], is_quick: bool) -> WholeAnswer:
    """Rendered off the event loop where it takes milliseconds: masks, pictures, hundreds of things."""

    def work() -> bytes:
        return msgspec.json.encode(render())

    return WholeAnswer(work() if is_quick else await asyncio.to_thread(work), provenance(answered))
