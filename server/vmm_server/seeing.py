"""The one way to run a model that looks at pictures: resolve → open the files → lease → decode → compute.

What deserves a 4xx and can be known without the model comes before it is loaded: also what the files' headers say.
Pixels are made last, and become the model's numbers at once. A call returns whole or raises.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from vmm_server.embedding import Embedded, Encoded, check_dimensions, text_vectors, unit
from vmm_server.engine.batcher import Computed
from vmm_server.errors import GenerationFailed, InvalidRequest, UnsupportedCapability
from vmm_server.media.reading import ImageReader, OpenedImage
from vmm_server.models.leases import Lease
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.models.vision import Picture, ReadyClassifier, ReadyClip, ReadyDetector
from vmm_server.observed import Operation
from vmm_server.one_shot import Answered, OneShot, Timing
from vmm_server.requests import EmbeddingRequest, GivenImage
from vmm_server.vision.drawing import draw
from vmm_server.vision.remembered import Remembered
from vmm_server.vision.results import Detections
from vmm_server.vision.scores import Rows, class_ids, sigmoid, softmax
from vmm_server.vision_requests import (
    ClassifyRequest,
    DetectRequest,
    EmbedRequest,
    GivenText,
    Item,
    SearchRequest,
    VisionRequest,
    ZeroShotRequest,
)

MAX_DRAWN_PIXELS = 50_000_000
"""Of all pictures that one request has drawn: their files are in memory, and large."""
LOGIT_SCALE = 100.0
"""Of models that do not say theirs: what CLIP's training ends at (Radford et al. 2021, section 2.5)."""
DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Of models that have none of their own (the same, section 3.1.4)."""
MAX_SENTENCES = 2048
"""Labels by templates, of one request."""
MAX_REMEMBERED = 4096
"""Vectors of labels' sentences: 16 MB of 1024 numbers each."""

Task = Literal["detection", "classification", "image-embedding"]
TASKS: tuple[Task, ...] = ("detection", "classification", "image-embedding")
"""The capabilities of models that look at pictures."""
Told = TypeVar("Told")
Held = TypeVar("Held")


@dataclass(frozen=True, slots=True)
class Detected(Answered):
    """What was found, picture by picture."""

    labels: tuple[str, ...]
    found: tuple[Detections, ...]
    drawn: tuple[bytes, ...] | None
    """PNG files."""


@dataclass(frozen=True, slots=True)
class Classified(Answered):
    """Probabilities."""

    labels: tuple[str, ...]
    scores: Rows
    """`[pictures, labels]`."""


@dataclass(frozen=True, slots=True)
class Ranked(Encoded):
    """Scores of what was searched."""

    scores: tuple[float, ...]
    """Cosines, in the order of the items."""


class Vision:
    """Runs models that look at pictures."""

    def __init__(self, one_shot: OneShot, reader: ImageReader) -> None:
        self._one_shot = one_shot
        self._reader = reader
        self._remembered: Remembered[tuple[str, str, bool, str]] = Remembered(MAX_REMEMBERED)

    def task_of(self, model: str) -> Task:
        """What a model does with pictures. Raises as `OneShot.look_up` does."""
        found = self._one_shot.look_up(model, *TASKS)
        return next(task for task in TASKS if task in found.capabilities)

    async def detect(self, request: DetectRequest) -> Detected:
        """Raises `InvalidRequest` and its kinds, `ModelNotFound`, `ModelLoadFailed`, `Overloaded`, `ShuttingDown`,
        `GenerationFailed`."""
        model = self._one_shot.resolve(request.model, "detection")
        if request.draw:
            opened: Sequence[Picture] = _drawable(await self._reader.open(request.images))
        else:
            opened = await self._open(model, request, request.images, is_all=request.classes is None)

        async def detect(lease: Lease[ReadyDetector]) -> Detected:
            ready = lease.ready
            wanted = class_ids(ready.labels, request.classes)
            params = request.params if wanted is None else replace(request.params, class_ids=wanted)
            computed = await ready.detect(opened, params)
            found = tuple(computed.results)
            drawn = await _drawn(opened, found, ready.labels) if request.draw else None
            timing = _timing(computed)
            return Detected(*_told(lease, computed.queued_s), ready.labels, found, drawn, timing=timing)

        return await self._run(model, ReadyDetector, request, detect, "detection")  # type: ignore[type-abstract]

    async def classify(self, request: ClassifyRequest) -> Classified:
        """Raises as `detect` does."""
        model = self._one_shot.resolve(request.model, "classification")
        opened = await self._open(model, request, request.images, is_all=True)

        async def classify(lease: Lease[ReadyClassifier]) -> Classified:
            computed = await lease.ready.classify(opened)
            scores = _finite(np.stack(computed.results))
            timing = _timing(computed)
            return Classified(*_told(lease, computed.queued_s), lease.ready.labels, scores, timing=timing)

        return await self._run(model, ReadyClassifier, request, classify, "classification")  # type: ignore[type-abstract]

    async def embed(self, request: EmbedRequest) -> Embedded:
        """One vector an item, in their order. Raises as `detect` does."""
        model = self._one_shot.resolve(request.model, "image-embedding")
        _check_texts(model, request.items)
        is_all = len(request.items) == 1 and request.dimensions is None
        opened = await self._open(model, request, request.items, is_all=is_all)

        async def embed(lease: Lease[ReadyClip]) -> Embedded:
            check_dimensions(request.dimensions, lease.ready.dim)
            made = await _vectors(request, request.items, opened, lease.ready, request.truncate, request.dimensions)
            counts = made.num_tokens, made.num_dropped_tokens
            return Embedded(*_told(lease, made.timing.queue_s), *counts, made.vectors, timing=made.timing)

        return await self._run(model, ReadyClip, request, embed, "image_embedding")

    async def zero_shot(self, request: ZeroShotRequest) -> Classified:
        """Probabilities of the labels: of a softmax over them, or, of a model with a bias, each one's own (SigLIP).

        A label's vector is the mean of those of its sentences. Raises as `detect` does.
        """
        model = self._one_shot.resolve(request.model, "image-embedding")
        templates = request.templates or (model.vision.templates if model.vision else None) or DEFAULT_TEMPLATES
        if (count := len(request.labels) * len(templates)) > MAX_SENTENCES:
            raise InvalidRequest(
                f"labels: with the templates these are {count} sentences; the limit is {MAX_SENTENCES}", param="labels"
            )
        texts = [
            GivenText(template.replace("{}", label), f"labels[{index}]")
            for index, label in enumerate(request.labels)
            for template in templates
        ]
        _check_texts(model, texts)
        opened = await self._reader.open(request.images)

        async def zero_shot(lease: Lease[ReadyClip]) -> Classified:
            sentences, sentences_s = await self._sentence_vectors(request, texts, lease)
            made = await _vectors(request, request.images, opened, lease.ready)
            timing = replace(made.timing, model_s=made.timing.model_s + sentences_s)
            labels = unit(sentences.reshape(len(request.labels), len(templates), -1).mean(axis=1))
            recipe = lease.model.vision
            scale = recipe.logit_scale if recipe and recipe.logit_scale is not None else LOGIT_SCALE
            logits = scale * (unit(made.vectors) @ labels.T)
            bias = recipe.logit_bias if recipe else None
            scores = softmax(logits) if bias is None else sigmoid(logits + bias)
            return Classified(*_told(lease, timing.queue_s), request.labels, scores, timing=timing)

        return await self._run(model, ReadyClip, request, zero_shot, "classification")

    async def search(self, request: SearchRequest) -> Ranked:
        """Cosines of the items with the query. Raises as `detect` does."""
        model = self._one_shot.resolve(request.model, "image-embedding")
        items = (request.query, *request.items)
        _check_texts(model, items)
        opened = await self._open(model, request, items, is_all=False)

        async def search(lease: Lease[ReadyClip]) -> Ranked:
            made = await _vectors(request, items, opened, lease.ready, request.truncate)
            vectors = unit(made.vectors)
            counts = made.num_tokens, made.num_dropped_tokens
            scores = tuple((vectors[1:] @ vectors[0]).tolist())
            return Ranked(*_told(lease, made.timing.queue_s), *counts, scores, timing=made.timing)

        return await self._run(model, ReadyClip, request, search, "image_embedding")

    async def _sentence_vectors(
        self, request: ZeroShotRequest, texts: Sequence[GivenText], lease: Lease[ReadyClip]
    ) -> tuple[Rows, float]:
        """`[texts, dim]`, of length 1, and the model's seconds. Only those that were not asked for lately are
        computed."""
        where = lease.model.digest, str(lease.loaded.placement), request.truncate
        found = self._remembered.find({(*where, text.text) for text in texts})
        missing = {text.text: text for text in texts if (*where, text.text) not in found}
        model_s = 0.0
        if missing:
            made = await _vectors(request, [*missing.values()], (), lease.ready, request.truncate)
            new = {(*where, text): row for text, row in zip(missing, unit(made.vectors), strict=True)}
            self._remembered.keep(new)
            found |= new
            model_s = made.timing.model_s
        return np.stack([found[*where, text.text] for text in texts]), model_s

    async def _open(
        self, model: InstalledModel, request: VisionRequest, items: Sequence[Item], *, is_all: bool
    ) -> Sequence[Picture]:
        """The images among them. What their headers say comes before a model is loaded and before what else is checked
        once it is there; one image of a model that is, where that `is_all`, need not be opened now."""
        images = [item for item in items if isinstance(item, GivenImage)]
        if is_all and len(images) == 1 and self._one_shot.is_loaded(model, request.wanted):
            return (self._reader.unopened(images[0]),)
        return await self._reader.open(images)

    async def _run(
        self,
        model: InstalledModel,
        kind: type[Held],
        request: VisionRequest,
        work: Callable[[Lease[Held]], Awaitable[Told]],
        operation: Operation,
    ) -> Told:
        return await self._one_shot.run(
            model, kind, work, operation=operation, keep_alive=request.keep_alive, wanted=request.wanted
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """Vectors of texts and pictures."""

    vectors: Rows
    """`[items, dim]`, in the order of the items."""
    num_tokens: int
    num_dropped_tokens: int
    timing: Timing


async def _vectors(
    request: VisionRequest,
    items: Sequence[Item],
    opened: Sequence[Picture],
    ready: ReadyClip,
    truncate: bool = False,
    dimensions: int | None = None,
) -> _Made:
    """Of all items. A text's vector is the one that `/v1/embeddings` answers."""
    dim = min(dimensions or ready.dim, ready.dim)
    vectors = np.empty((len(items), dim), np.float32)
    texts = {index: item for index, item in enumerate(items) if isinstance(item, GivenText)}
    num_tokens, num_dropped, timing = 0, 0, Timing(0.0, 0.0, 0.0)
    if texts:
        rows, inputs, of_texts = await text_vectors(
            EmbeddingRequest(
                model=request.model,
                inputs=tuple(item.text for item in texts.values()),
                params=tuple(item.param for item in texts.values()),
                dimensions=dimensions,
                truncate=truncate,
            ),
            ready,
        )
        vectors[[*texts]] = rows
        num_tokens, num_dropped = inputs.num_tokens, inputs.num_dropped_tokens
        timing = _timing(of_texts)
    if opened:
        computed = await ready.embed_pictures(opened)
        rows = _finite(np.stack(computed.results))
        places = [index for index in range(len(items)) if index not in texts]
        vectors[places] = rows if dim == ready.dim else unit(rows[:, :dim])
        queue_s, model_s = max(timing.queue_s, computed.queued_s), timing.model_s + computed.computed_s
        timing = Timing(computed.prepared_s, queue_s, model_s)
    return _Made(vectors, num_tokens, num_dropped, timing)


def _timing(computed: Computed[Any]) -> Timing:
    return Timing(computed.prepared_s, computed.queued_s, computed.computed_s)


def _drawable(opened: Sequence[OpenedImage]) -> Sequence[OpenedImage]:
    if sum(image.num_pixels for image in opened) > MAX_DRAWN_PIXELS:
        raise InvalidRequest(
            f"draw: the images have more than {MAX_DRAWN_PIXELS} pixels together, which is what can be drawn",
            param="draw",
        )
    return opened


async def _drawn(pictures: Sequence[Picture], found: Sequence[Detections], labels: Sequence[str]) -> tuple[bytes, ...]:
    """PNG files. Each picture is decoded again: nearly all of the time is the encoder's."""
    return tuple(
        [
            await picture.made(partial(draw, found=things, labels=labels))
            for picture, things in zip(pictures, found, strict=True)
        ]
    )


def _check_texts(model: InstalledModel, items: Sequence[Item]) -> None:
    if "embedding" not in model.capabilities:
        text = next((item for item in items if isinstance(item, GivenText)), None)
        if text is not None:
            raise UnsupportedCapability(model.name, "texts", param=text.param)


def _finite(rows: Rows) -> Rows:
    if not np.isfinite(rows).all():
        raise GenerationFailed(
            "the model's answer is no number", hint="its weights may be damaged: pull it again, or try another device"
        )
    return rows


def _told(lease: Lease[Held], queued_s: float) -> tuple[InstalledModel, Placement, float, float]:
    """The fields of `Answered`."""
    return lease.model, lease.loaded.placement, lease.load_s, queued_s
