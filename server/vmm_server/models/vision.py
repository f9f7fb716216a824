"""Models that look at pictures: a folder on disk → something warm that takes pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.base import Session
from vmm_adapters.card import Activation, EmbeddingRecipe, VisionRecipe
from vmm_adapters.types import EncoderInput
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions, BatcherStats, Computed
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.clip_text import TextGraph, choose_output, find_pad_id
from vmm_server.models.encoders import MAX_BATCH_TOKENS, MAX_PADDING, ReadyEncoder
from vmm_server.models.importers.clip_folder import EMBEDS, find_clip_graphs
from vmm_server.models.importers.vision_folder import find_vision_graph
from vmm_server.models.picture_graph import (
    Outputs,
    Picture,
    PictureGraph,
    Watching,
    load_resampler,
    open_session,
    watch,
)
from vmm_server.models.ready import Ready
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel, how_to_mend
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.settings import Settings
from vmm_server.vision.framing import Framing
from vmm_server.vision.heads.candidates import Head, decode
from vmm_server.vision.heads.detr import activated
from vmm_server.vision.heads.finding import find_head
from vmm_server.vision.nms import check_numbers
from vmm_server.vision.results import DetectionParams, Detections

__all__ = ["Picture", "ReadyClassifier", "ReadyClip", "ReadyDetector", "load_classifier", "load_clip", "load_detector"]

Row = NDArray[np.float32]
_SURE = 1e-3
"""How far from 1 the sum of probabilities may be."""
_FEW = 16
"""Candidates that are compared with each other in a few tenths of a millisecond, if none is left out."""


@runtime_checkable
class ReadyDetector(Ready, Protocol):
    """A detector."""

    labels: tuple[str, ...]

    async def detect(self, pictures: Sequence[Picture], params: DetectionParams) -> Computed[Detections]:
        """One result a picture, in their order."""
        ...


@runtime_checkable
class ReadyClassifier(Ready, Protocol):
    """A classifier."""

    labels: tuple[str, ...]

    async def classify(self, pictures: Sequence[Picture]) -> Computed[NDArray[np.float32]]:
        """Probabilities `[classes]` of each picture."""
        ...


@dataclass(frozen=True, slots=True)
class _OneGraph:
    """`Sampled`, of a model of one graph, whatever it does."""

    graph: Watching
    placement: Placement
    labels: tuple[str, ...]

    @property
    def context_length(self) -> int:
        """See `Ready`: it reads no tokens."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """See `Ready`."""
        return self.graph.memory_bytes

    @property
    def load(self) -> Load:
        """See `Ready`. A picture takes milliseconds: it counts for nothing beside a text."""
        return NO_LOAD

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.graph.batcher.failure

    @property
    def stats(self) -> BatcherStats:
        """See `Sampled`."""
        return self.graph.stats

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.graph.try_once()

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.graph.batcher.aclose()


@dataclass(frozen=True, slots=True)
class Detector(_OneGraph):
    """Implements `ReadyDetector`."""

    head: Head

    async def detect(self, pictures: Sequence[Picture], params: DetectionParams) -> Computed[Detections]:
        """See `ReadyDetector`. Raises as `Watching.look` and `Head.tell` do."""

        def thoroughly(outputs: Outputs, framing: Framing) -> Detections:
            return decode(self.head, outputs, params, framing)

        def quickly(outputs: Outputs, framing: Framing) -> Detections | None:
            found = self.head.find(outputs, params)
            makes_masks = any(array.ndim == 3 for array in outputs.values())
            return None if makes_masks or len(found) > _FEW else self.head.tell(found, outputs, params, framing)

        return await self.graph.look(pictures, thoroughly, quickly)


@dataclass(frozen=True, slots=True)
class Classifier(_OneGraph):
    """Implements `ReadyClassifier`."""

    output: str
    activation: Activation

    async def classify(self, pictures: Sequence[Picture]) -> Computed[Row]:
        """See `ReadyClassifier`. Raises as `Watching.look` does, and `GenerationFailed` for what is no number."""

        def decode(outputs: Outputs, framing: Framing) -> Row:
            numbers = outputs[self.output].reshape(-1).astype(np.float32, copy=False)
            check_numbers(numbers)
            probabilities: Row = activated(numbers[None], self.activation)[0]
            return probabilities

        return await self.graph.look(pictures, decode, decode)


@dataclass(frozen=True, slots=True)
class ReadyClip(ReadyEncoder):
    """CLIP or SigLIP: a text encoder, and one of pictures beside it, in one space. `Sampled`, by pictures."""

    graph: Watching
    """Of pictures."""
    output: str
    """Of that."""

    async def embed_pictures(self, pictures: Sequence[Picture]) -> Computed[Row]:
        """The vector of each, of length 1: float32 `[dim]`.

        Raises as `Watching.look` does, and `GenerationFailed` for what is no number.
        """

        def decode(outputs: Outputs, framing: Framing) -> Row:
            vector = outputs[self.output].astype(np.float32, copy=False)
            check_numbers(vector)
            return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)

        return await self.graph.look(pictures, decode, decode)

    @property
    def failure(self) -> str | None:
        """See `Ready`: one half is of no use without the other."""
        return self.batcher.failure or self.graph.batcher.failure

    @property
    def stats(self) -> BatcherStats:
        """See `Sampled`: calls of both halves, and the pictures of one."""
        texts, pictures = self.batcher.stats, self.graph.stats
        return BatcherStats(
            texts.num_waiting + pictures.num_waiting,
            texts.num_running + pictures.num_running,
            pictures.computed_size,
            histograms=(*texts.histograms, *pictures.histograms),
        )

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.graph.try_once()

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.graph.batcher.aclose()
        await self.batcher.aclose()


def load_detector(model: InstalledModel, placement: Placement, settings: Settings) -> Detector:
    """Load a detector on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    recipe = model.vision or VisionRecipe()
    with _opened(_graph_of(model, placement), model, placement, settings) as session:
        graph = PictureGraph(session, recipe.image, load_resampler(settings))
        (outputs,) = graph.run([graph.blank])
        head = find_head(outputs, recipe, width=graph.recipe.width, height=graph.recipe.height)
        return Detector(watch(graph, model.name, settings), placement, _labels(recipe, head.num_classes), head)


def load_classifier(model: InstalledModel, placement: Placement, settings: Settings) -> Classifier:
    """Load a classifier on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    recipe = model.vision or VisionRecipe()
    with _opened(_graph_of(model, placement), model, placement, settings) as session:
        graph = PictureGraph(session, recipe.image, load_resampler(settings))
        (outputs,) = graph.run([graph.blank])
        output = session.outputs[0].name
        numbers = outputs[output].reshape(-1)
        labels = _labels(recipe, len(numbers))
        if len(labels) != len(numbers):
            raise ModelLoadFailed(
                f"cannot load {model.name!r}: it has {len(numbers)} classes and {len(labels)} names of classes",
                hint="its card has to say vision.labels, one for each class; see model_cards/README.md",
            )
        activation = recipe.activation or ("none" if _are_probabilities(numbers) else "softmax")
        return Classifier(watch(graph, model.name, settings), placement, labels, output, activation)


def load_clip(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyClip:
    """Load both halves of CLIP or SigLIP on a placement, and warm them up. Raises `ModelLoadFailed`, `AdapterError`."""
    recipe = model.vision or VisionRecipe()
    tokenizer = read_tokenizer(model)
    pad_id = find_pad_id(tokenizer, recipe)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    paths = find_clip_graphs(model.folders[placement.variant])
    if paths is None:
        raise ModelLoadFailed(
            f"cannot load {model.name!r}: text_model.onnx or vision_model.onnx is missing", hint=how_to_mend(model)
        )
    max_length = min(model.context_length, settings.context_length or model.context_length)
    with (
        _opened(paths[0], model, placement, settings) as text_session,
        _opened(paths[1], model, placement, settings) as picture_session,
    ):
        texts = TextGraph(
            text_session,
            choose_output(text_session.outputs, EMBEDS),
            max_length=max_length,
            length=recipe.text_length,
            pad_id=pad_id,
        )
        texts.warm_up()
        graph = PictureGraph(picture_session, recipe.image, load_resampler(settings))
        output = choose_output(picture_session.outputs, EMBEDS)
        (outputs,) = graph.run([graph.blank])
        if len(outputs[output]) != texts.dim:
            raise ModelLoadFailed(
                f"cannot load {model.name!r}: its vectors of texts have {texts.dim} numbers, those of pictures "
                f"{len(outputs[output])}",
                hint="its two graphs must be of one model, and project into one space",
            )
        watching = watch(graph, model.name, settings)
        return ReadyClip(
            batcher=_text_batcher(texts, model.name, settings),
            tokenizer=tokenizer,
            recipe=model.embedding or EmbeddingRecipe(normalize=True),
            placement=placement,
            context_length=texts.max_length,
            vocab_size=tokenizer.get_vocab_size(),
            dim=texts.dim,
            memory_bytes=texts.memory_bytes + watching.memory_bytes,
            graph=watching,
            output=output,
        )


@contextmanager
def _opened(path: Path, model: InstalledModel, placement: Placement, settings: Settings) -> Iterator[Session]:
    """A session that is closed when what is built on it fails."""
    session = open_session(path, model, placement, settings)
    try:
        yield session
    except BaseException:
        session.close()
        raise


def _graph_of(model: InstalledModel, placement: Placement) -> Path:
    folder = model.folders[placement.variant]
    path = find_vision_graph(folder)
    if path is None:
        raise ModelLoadFailed(f"cannot load {model.name!r}: {folder} has no model.onnx", hint=how_to_mend(model))
    return path


def _labels(recipe: VisionRecipe, num_classes: int) -> tuple[str, ...]:
    return recipe.labels or tuple(f"class {number}" for number in range(num_classes))


def _are_probabilities(numbers: Row) -> bool:
    return bool(numbers.min() >= 0 and abs(float(numbers.sum()) - 1) < _SURE)


def _text_batcher(texts: TextGraph, name: str, settings: Settings) -> Batcher[EncoderInput, Row]:
    def compute(inputs: Sequence[EncoderInput]) -> list[Row]:
        return list(texts.encode(inputs))

    return Batcher(
        compute,
        size=texts.padded_length,
        close=texts.close,
        options=BatcherOptions(
            BatchLimits(settings.max_sequences, max_size=MAX_BATCH_TOKENS, max_padding=MAX_PADDING),
            max_calls=settings.max_sequences + settings.max_queue,
        ),
        name=f"vmm-texts {name}",
    )
