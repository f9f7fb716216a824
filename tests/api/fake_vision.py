"""Models that see what tests draw: anything not white is a cat; colours are what texts call them."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmm_adapters.card import EmbeddingRecipe, VisionRecipe
from vmm_adapters.echo_encoder import write_echo_encoder
from vmm_server.engine.batcher import BatcherStats, Computed
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.picture_graph import Picture
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.models.vision import ReadyClip
from vmm_server.vision.results import DetectionParams, Detections

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LABELS = ("person", "cat", "dog")
DIM = 64
SEES = ("detection", "classification", "image-embedding")


def png_of(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def box(width: int = 40, height: int = 20) -> Any:
    """A red box from (10, 5) to (30, 15), on white."""
    image = Image.new("RGB", (width, height), "white")
    image.paste((255, 0, 0), (10, 5, 30, 15))
    return image


@contextmanager
def picture_served(file: bytes) -> Iterator[str]:
    """Its URL, on this machine; any other path is not found there."""

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/box.png" else 404)
            self.end_headers()
            self.wfile.write(file)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/box.png"
        finally:
            server.shutdown()
            thread.join(10)


Pixels = NDArray[np.uint8]
OnPictures = Callable[[Sequence[Pixels]], None]
"""Told of every batch, in a thread; it may block or raise."""


async def pixels_of(pictures: Sequence[Picture]) -> list[Pixels]:
    return [await picture.made(lambda image: np.array(image)) for picture in pictures]


class FakeSeer:
    """What the pool knows of it."""

    context_length = 0
    memory_bytes = 1000
    failure = None

    def __init__(self, placement: Placement, on_pictures: OnPictures | None) -> None:
        self.placement = placement
        self._on_pictures = on_pictures

    @property
    def load(self) -> Load:
        return NO_LOAD

    @property
    def stats(self) -> BatcherStats:
        return BatcherStats(0, 0, 0)

    async def try_once(self) -> None:
        """Nothing to try."""

    async def aclose(self) -> None:
        """Nothing to close."""

    async def seen(self, pictures: Sequence[Picture]) -> list[Pixels]:
        pixels = await pixels_of(pictures)
        if self._on_pictures is not None:
            await asyncio.to_thread(self._on_pictures, pixels)
        return pixels


class FakeDetector(FakeSeer):
    """Finds whatever is not white in a picture, whole, and calls it a cat; `shapes` adds masks, points and corners."""

    labels = LABELS

    def __init__(self, placement: Placement, on_pictures: OnPictures | None, shapes: bool = False) -> None:
        super().__init__(placement, on_pictures)
        self._shapes = shapes

    async def detect(self, pictures: Sequence[Picture], params: DetectionParams) -> Computed[Detections]:
        return Computed([self._found(pixels, params) for pixels in await self.seen(pictures)], 0.0005, 0.25, 0.0125)

    def _found(self, picture: Pixels, params: DetectionParams) -> Detections:
        dark, size = (picture != 255).any(axis=2), (picture.shape[1], picture.shape[0])
        if not dark.any() or params.threshold > 0.9 or 1 not in (params.class_ids or {1}):
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), size)
        rows, columns = np.nonzero(dark)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        box = np.array([[left, top, right, bottom]], np.float32)
        found = Detections(box, np.array([0.9], np.float32), np.array([1]), size)
        if not self._shapes:
            return found
        return replace(
            found,
            masks=(dark[top:bottom, left:right],),
            keypoints=np.array([[[left, top, 0.5]]], np.float32),
            corners=np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float32),
        )


class FakeClassifier(FakeSeer):
    """Its classes are the three colours, and each one's probability is its share of a picture."""

    labels = tuple(COLOURS)

    async def classify(self, pictures: Sequence[Picture]) -> Computed[NDArray[np.float32]]:
        sums = [pixels.reshape(-1, 3).astype(np.float32).sum(axis=0) for pixels in await self.seen(pictures)]
        return Computed([each / max(1.0, each.sum()) for each in sums], 0.0)


class FakeClip(ReadyClip):
    """A picture has the vector of the word for its colour. There is no graph of pictures."""

    @property
    def failure(self) -> str | None:
        return self.batcher.failure

    @property
    def stats(self) -> BatcherStats:
        return self.batcher.stats

    async def try_once(self) -> None:
        """Nothing to try."""

    async def aclose(self) -> None:
        await self.batcher.aclose()

    async def embed_pictures(self, pictures: Sequence[Picture]) -> Computed[NDArray[np.float32]]:
        rows = []
        for picture in await pixels_of(pictures):
            name = max(COLOURS, key=lambda each: -np.abs(picture.mean(axis=(0, 1)) - COLOURS[each]).sum())
            tokens = self.tokenizer.encode(name, add_special_tokens=True).ids
            counts = np.bincount(np.array(tokens) % DIM, minlength=DIM).astype(np.float32)
            rows.append(counts / np.linalg.norm(counts))
        return Computed(rows, 0.0)


def fake_seer(
    model: InstalledModel,
    placement: Placement,
    load_text: Callable[[], ReadyEncoder],
    on_pictures: OnPictures | None = None,
) -> Any:
    """What a loader gives for a model that looks at pictures; `None` for another. `load_text` loads CLIP's texts."""
    if "detection" in model.capabilities:
        return FakeDetector(placement, on_pictures, shapes=model.name.startswith("shapes"))
    if "classification" in model.capabilities:
        return FakeClassifier(placement, on_pictures)
    if "image-embedding" in model.capabilities:
        encoder = load_text()
        no_graph: Any = None
        return FakeClip(
            **{each.name: getattr(encoder, each.name) for each in fields(encoder)}, graph=no_graph, output=""
        )
    return None


def install_fakes(store: Store, echo: InstalledModel, **names: str) -> None:
    """Installs a `detector`, `shapes` (which has all that detectors may have), a `classifier`, a `clip`, `siglip` and
    `pictures`, which has no texts; `names` replace these."""
    folder = echo.folder.with_name("clip")
    write_echo_encoder(folder, dim=DIM)
    both = ("image-embedding", "embedding")
    kinds: list[tuple[str, tuple[str, ...], VisionRecipe | None]] = [
        ("detector", ("detection",), None),
        ("shapes", ("detection",), None),
        ("classifier", ("classification",), None),
        ("clip", both, VisionRecipe(templates=("{}",), logit_scale=10.0)),
        ("siglip", both, VisionRecipe(templates=("{}",), logit_scale=10.0, logit_bias=-5.0)),
        ("pictures", ("image-embedding",), None),
    ]
    recipes = {"siglip": EmbeddingRecipe(prompts={"of": "of "}, default_prompt="of")}
    for index, (name, capabilities, recipe) in enumerate(kinds):
        name = names.get(name, name)
        store.install(
            replace(
                echo,
                name=name if ":" in name else f"{name}:latest",
                aliases=(),
                digest=f"{index + 700:064}",
                weights="",
                folder=folder,
                capabilities=capabilities,
                context_length=64 if "image-embedding" in capabilities else 0,
                embedding_length=DIM if "image-embedding" in capabilities else None,
                embedding=recipes.get(name, EmbeddingRecipe()) if "embedding" in capabilities else None,
                vision=recipe,
            )
        )
