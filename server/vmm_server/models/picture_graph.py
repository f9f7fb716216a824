"""A graph that takes pictures: its session, the thread that owns it, and what goes in and comes out.

Pictures become numbers in threads, as soon as they are decoded and before they wait; what takes time to make of the
answers is made in threads too. Only arrays pass through the thread of the runtime, but for the one small picture of a
request that finds it idle: that it decodes itself. How many pictures a batch holds at most is measured when the model
is loaded.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters import catalog
from vmm_adapters.base import Resampler, Session
from vmm_adapters.card import ImageRecipe
from vmm_adapters.errors import AdapterError, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import SessionOptions, TensorSpec
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions, BatcherStats, Computed
from vmm_server.models.compiled import compiled_dir, shared_compiled_dir
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings
from vmm_server.vision.framing import Floats, Framing
from vmm_server.vision.preprocess import prepare

logger = logging.getLogger(__name__)

Outputs = Mapping[str, NDArray[Any]]
"""Of one picture, by name: without the batch's dimension."""
Prepared = tuple[Floats, Framing]
"""A picture as a graph takes it, and how to get back."""
Seen = tuple[Outputs, Framing]
"""What a graph made of it."""
Told = TypeVar("Told")
Made = TypeVar("Made")

_BATCH_SIZES = (1, 2, 4, 8)
_GAIN = 1.02
"""By which a larger batch has to raise the pictures a second: everybody in it waits for all of it. Little is enough, as
a batch also spares the steps around it."""
_MEASURING_S = 1.5
_GATHER_S = 0.004
"""How long an idle graph waits for pictures that are being prepared, where a batch has room for them."""
_MAX_WAITING_BYTES = 512 * 1024**2
"""Of prepared pictures that wait."""
_FEW_NUMBERS = 100_000
"""Of outputs that are looked through on the event loop: in less time than the way to a thread and back takes."""
_MIN_PREPARED = 4
"""Pictures of a request that are prepared while others of it are computed, where a batch has fewer."""
_SIZE_INPUT = "orig_target_sizes"
"""Of RT-DETR's own exports: `[batch, 2]`, the width and height that boxes are to be told in."""


class Picture(Protocol):
    """One that is yet to be decoded."""

    async def made(self, make: Callable[[Image.Image], Made]) -> Made:
        """What `make` makes of it, RGB and upright, in a thread."""
        ...

    async def made_by(
        self,
        run: Callable[[Callable[[], Made]], Awaitable[Told]],
        make: Callable[[Image.Image | NDArray[np.uint8]], Made],
    ) -> Told | None:
        """What `run` gives, which has it made in a thread of its own and goes on with that; `None` where that would
        take long. `make` gets it as an image, or its pixels `[height, width, 4]`."""
        ...


def open_session(path: Path, model: InstalledModel, placement: Placement, settings: Settings) -> Session:
    """Load one graph of a model on a placement, and nowhere else. Raises `AdapterError`."""
    options = SessionOptions(
        device=placement.device,
        num_threads=settings.num_threads,
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
        allow_fallback=False,  # the pool goes on to the next placement, and says which one it is
        precision=settings.vision_precision if placement.device.upper().startswith("CPU") else None,
    )
    return catalog.load_session(placement.adapter, path, options)


def load_resampler(settings: Settings) -> Resampler | None:
    """What resizes pictures faster than Pillow does; `None`, and a warning, where nothing can be compiled."""
    try:
        return catalog.load_resampler("cpu", shared_compiled_dir(settings.cache_dir))
    except AdapterError as error:
        logger.warning("pictures are resized by Pillow, which takes several times as long: %s", error.message)
        return None


class PictureGraph:
    """A session whose input is pictures. Used from one thread at a time."""

    def __init__(self, session: Session, recipe: ImageRecipe | None, resampler: Resampler | None = None) -> None:
        """Raises `UnsupportedModel` for a graph that takes something else, or a recipe that is not said."""
        self.session = session
        self.resampler = resampler
        self._port = _picture_port(session.inputs)
        self.recipe = _fitted(recipe, self._port)
        batch = self._port.shape[0]
        self.fixed_batch = batch if isinstance(batch, int) else None
        self._others = tuple(spec for spec in session.inputs if spec is not self._port)

    @property
    def blank(self) -> Floats:
        """A grey picture, as the graph takes it."""
        return prepare(Image.new("RGB", (self.recipe.width, self.recipe.height), (114, 114, 114)), self.recipe)[0]

    def run(self, pictures: Sequence[Floats]) -> list[Outputs]:
        """All outputs for each of `pictures`, which `prepare` made. Raises `AdapterError`."""
        batch = self.fixed_batch or len(pictures)
        outputs: list[Outputs] = []
        for start in range(0, len(pictures), batch):
            outputs += self._run(pictures[start : start + batch], batch)
        return outputs

    def _run(self, pictures: Sequence[Floats], batch: int) -> list[Outputs]:
        if len(pictures) == batch == 1:
            stacked = pictures[0][None]
        else:
            stacked = np.stack([*pictures, *[pictures[-1]] * (batch - len(pictures))])
        feeds = {spec.name: self._beside(spec, batch) for spec in self._others}
        found = self.session.run(feeds | {self._port.name: stacked.astype(self._port.dtype, copy=False)})
        for name, array in found.items():
            if array.ndim == 0 or len(array) != batch:
                raise RuntimeFailed(f"{name} has the shape {list(array.shape)} for a batch of {batch} pictures")
        return [{name: array[index] for name, array in found.items()} for index in range(len(pictures))]

    def _beside(self, spec: TensorSpec, batch: int) -> NDArray[Any]:
        """What detectors ask for beside the pictures: a mask of ones, or their size."""
        if spec.name == _SIZE_INPUT:
            return np.tile(np.array([self.recipe.width, self.recipe.height], spec.dtype), (batch, 1))
        sizes = (batch, self.recipe.height, self.recipe.width)
        shape = tuple(side if isinstance(side, int) else size for side, size in zip(spec.shape, sizes, strict=True))
        return np.ones(shape, spec.dtype)


@dataclass(frozen=True, slots=True)
class Watching:
    """A graph with its thread: what is sent to it from the event loop."""

    batcher: Batcher[Prepared, Seen]
    recipe: ImageRecipe
    blank: Prepared
    batch_size: int
    memory_bytes: int
    resampler: Resampler | None = None

    @property
    def stats(self) -> BatcherStats:
        """See `Sampled`; its unit is a picture."""
        return self.batcher.stats

    async def look(
        self,
        pictures: Sequence[Picture],
        finish: Callable[[Outputs, Framing], Told],
        quickly: Callable[[Outputs, Framing], Told | None] = lambda outputs, framing: None,
    ) -> Computed[Told]:
        """What `finish` makes of the outputs for each picture, in their order.

        It is called in a thread, unless the outputs are few and `quickly` makes the same of them with a handful of
        operations on the event loop; for what takes longer that gives `None`. One picture that nobody would wait for
        is made by the graph's own thread, if the picture may be.

        Raises as `Batcher.timed_call` and `Picture.made` do, and what `finish` raises.
        """
        make = partial(prepare, recipe=self.recipe, resampler=self.resampler)
        is_alone = len(pictures) == 1 and self.batcher.is_quiet
        if is_alone and (done := await pictures[0].made_by(self.batcher.made_call, make)) is not None:
            told = await _told(done.results, finish, quickly)
            return Computed(told, done.queued_s, done.computed_s, done.prepared_s)
        step = max(self.batch_size, _MIN_PREPARED)
        told = []
        queued_s, computed_s, started = None, 0.0, time.perf_counter()
        with self.batcher.preparing():
            prepared = await _made(pictures[:step], make)
        prepared_s = time.perf_counter() - started
        for start in range(step, len(pictures) + step, step):
            computing = self.batcher.timed_call(prepared)
            following = pictures[start : start + step]  # unannounced: what they follow is not to wait for them
            if following:
                computed, prepared = await asyncio.gather(computing, _made(following, make))
            else:
                computed = await computing
            queued_s = computed.queued_s if queued_s is None else queued_s
            computed_s += computed.computed_s
            told += await _told(computed.results, finish, quickly)
        return Computed(told, queued_s or 0.0, computed_s, prepared_s)

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.batcher.call([self.blank])


def watch(
    graph: PictureGraph, name: str, settings: Settings, clock: Callable[[], float] = time.perf_counter
) -> Watching:
    """Measure how many pictures a batch should have, and start the graph's thread, which closes the session at its
    end. The graph must have been run once. Raises `AdapterError`."""
    batch_size = graph.fixed_batch or measured_batch_size(graph, min(_BATCH_SIZES[-1], settings.max_sequences), clock)
    recipe, blank = graph.recipe, graph.blank

    def compute(prepared: Sequence[Prepared]) -> list[Seen]:
        outputs = graph.run([numbers for numbers, _ in prepared])
        return [(one, framing) for one, (_, framing) in zip(outputs, prepared, strict=True)]

    batcher: Batcher[Prepared, Seen] = Batcher(
        compute,
        size=lambda picture: 1,
        close=graph.session.close,
        options=BatcherOptions(
            BatchLimits(batch_size, max_size=batch_size),
            max_calls=settings.max_sequences + settings.max_queue,
            max_waiting_size=max(batch_size, _MAX_WAITING_BYTES // blank.nbytes),
            gather_s=_GATHER_S if batch_size > 1 else 0.0,
        ),
        name=f"vmm-pictures {name}",
    )
    framing = Framing(recipe.width, recipe.height, recipe.width, recipe.height, 1.0, 1.0)
    return Watching(batcher, recipe, (blank, framing), batch_size, graph.session.memory_bytes, graph.resampler)


def measured_batch_size(graph: PictureGraph, limit: int, clock: Callable[[], float]) -> int:
    """The smallest batch that gets nearly as many pictures done a second as any, up to `limit`.

    Each size is run twice, and the second time counts: the first one may prepare kernels. It ends when a larger one
    would take more than what is left of `_MEASURING_S`, and where the graph cannot do with more than one.
    """
    begun, best, best_rate = clock(), 1, 0.0
    for size in _BATCH_SIZES:
        if size > limit:
            break
        pictures = [graph.blank] * size
        try:
            graph.run(pictures)
            started = clock()
            graph.run(pictures)
        except AdapterError:
            if size == 1:
                raise
            break
        spent = max(clock() - started, 1e-9)
        if size / spent > best_rate * _GAIN:
            best, best_rate = size, size / spent
        if clock() - begun + 4 * spent > _MEASURING_S:  # twice as many, twice
            break
    return best


async def _made(pictures: Sequence[Picture], make: Callable[[Image.Image], Prepared]) -> list[Prepared]:
    if len(pictures) == 1:
        return [await pictures[0].made(make)]
    done = await asyncio.gather(*(picture.made(make) for picture in pictures), return_exceptions=True)
    for one in done:  # only now: none is in the making any more
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]


async def _told(
    seen: Sequence[Seen],
    finish: Callable[[Outputs, Framing], Told],
    quickly: Callable[[Outputs, Framing], Told | None],
) -> list[Told]:
    """See `Watching.look`."""
    return _at_once(quickly, seen) or await asyncio.to_thread(_each, finish, seen)


def _each(finish: Callable[[Outputs, Framing], Told], seen: Sequence[Seen]) -> list[Told]:
    return [finish(outputs, framing) for outputs, framing in seen]


def _at_once(quickly: Callable[[Outputs, Framing], Told | None], seen: Sequence[Seen]) -> list[Told]:
    """All of it, or nothing."""
    if sum(array.size for outputs, _ in seen for array in outputs.values()) > _FEW_NUMBERS:
        return []
    told: list[Told] = []
    for outputs, framing in seen:
        if (one := quickly(outputs, framing)) is None:
            return []
        told.append(one)
    return told


def _picture_port(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The input for pictures. Raises `UnsupportedModel` for a graph that is not asked for answers so."""
    port = next((spec for spec in inputs if len(spec.shape) == 4), None)
    shapes = ", ".join(f"{spec.name} {list(spec.shape)} {spec.dtype}" for spec in inputs)
    is_picture = port is not None and port.dtype in (np.float32, np.float16)
    if port is None or not is_picture or (isinstance(port.shape[1], int) and port.shape[1] != 3):
        raise UnsupportedModel(
            f"the graph takes {shapes}; pictures are float32 [batch, 3, height, width]",
            hint="export it with channels first and without preprocessing of its own",
        )
    others = [spec for spec in inputs if spec is not port]
    if any(len(spec.shape) != (2 if spec.name == _SIZE_INPUT else 3) for spec in others):
        raise UnsupportedModel(f"the graph takes {shapes}: what to give it beside a picture is not known")
    return port


def _fitted(recipe: ImageRecipe | None, port: TensorSpec) -> ImageRecipe:
    """The recipe, with the sizes that the graph prescribes."""
    if recipe is None:
        raise UnsupportedModel(
            "how pictures become numbers is not said in its files",
            hint="its card has to say [vision.image]: height, width, and resize, scale, mean, std; see "
            "model_cards/README.md",
        )
    height, width = port.shape[2:]
    sizes = {"height": height, "width": width}
    return recipe.model_copy(update={name: size for name, size in sizes.items() if isinstance(size, int)})
