"""`make bench ARGS="pictures --model NAME"`: pictures a second, beside a plain onnxruntime loop, and what HTTP adds.

The loop is what one would write by hand: decode the file, resize, run the same ONNX file on all cores, read the answer,
one picture after the other. The server gets the same files over HTTP from 1 and from 16 clients. NAME is a detector
with a YOLOv8 head (`/v1/vision/detect`) or CLIP (`/v1/vision/embed`).
"""

import argparse
import asyncio
import io
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from bench.connections import connected, form, request
from bench.servers import vmm_server
from bench.tables import show
from vmm_adapters import catalog
from vmm_adapters.card import ImageRecipe
from vmm_adapters.types import Precision, SessionOptions
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.settings import read_settings

_PICTURE = Path(__file__).parents[1] / "tests" / "data" / "media" / "coffee.png"
_SIDE = 640
_NUM_REQUESTS = 160
_GRAPHS = ("vision_model.onnx", "onnx/vision_model.onnx", "model.onnx", "onnx/model.onnx")


def main(arguments: Sequence[str]) -> None:
    """Print pictures a second, and milliseconds of one request."""
    parser = argparse.ArgumentParser(prog="bench pictures", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of the server: vision_precision")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    settings = read_settings()
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(chosen.model)
    jpeg = _jpeg()
    said = {"VMM_BACKEND": chosen.backend, "VMM_VISION_PRECISION": chosen.precision}
    plain = _Plain(model, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(settings.store_dir.resolve())
        with vmm_server(home, model.name, 0, settings=said) as server:
            speeds: dict[str, list[float]] = {"plain loop": [], "http, 1 client": [], "http, 16 clients": []}
            requests: list[_Request] = []
            for turn in range(chosen.rounds + 1):
                seconds = {
                    "plain loop": _timed(lambda: [plain.answer(jpeg) for _ in range(_NUM_REQUESTS)]),
                    "http, 1 client": _timed(lambda: requests.extend(_ask(server.port, model, jpeg, 1))),
                    "http, 16 clients": _timed(lambda: _ask(server.port, model, jpeg, 16)),
                }
                if turn:  # the first round is not measured
                    for name, took in seconds.items():
                        speeds[name].append(_NUM_REQUESTS / took)
            alone = _model_s(model, chosen.backend, chosen.precision, plain.feeds(jpeg))
    base = statistics.median(speeds["plain loop"])
    rows = [
        [name, f"{(middle := statistics.median(found)):.1f}", f"{middle / base:.2f}"] for name, found in speeds.items()
    ]
    show(f"{model.name}, JPEG of {_SIDE} pixels, {len(jpeg) >> 10} KB", ["who", "pictures/s", "ratio"], rows)
    whole = statistics.median(one.whole_s for one in requests)
    within = statistics.median(one.model_s for one in requests)
    rest = statistics.median(one.whole_s - one.model_s for one in requests)
    figures = [f"{1000 * value:.2f}" for value in (whole, within, rest, alone, whole - alone)]
    show(
        f"one request at a time, {chosen.precision}, medians in ms",
        ["", "over HTTP", "of it the model", "rest", f"{chosen.backend} in a loop", "over HTTP less that"],
        [["", *figures]],
    )


@dataclass(frozen=True, slots=True)
class _Request:
    """What one took, as its client sees it, and of that the model, as the answer says (`Server-Timing`)."""

    whole_s: float
    model_s: float


class _Plain:
    """The comparison."""

    def __init__(self, model: InstalledModel, num_threads: int) -> None:
        assert model.vision is not None, f"{model.name} does not look at pictures"
        assert model.vision.image is not None, f"{model.name} does not say how"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(graph_of(model), options, providers=["CPUExecutionProvider"])
        self._name: str = self._session.get_inputs()[0].name
        self._recipe: ImageRecipe = model.vision.image
        self._detects = "detection" in model.capabilities

    def answer(self, jpeg: bytes) -> object:
        """Boxes of a detector, the vector of anything else."""
        (found, *_) = self._session.run(None, self.feeds(jpeg))
        return _boxes(found[0]) if self._detects else found[0] / np.linalg.norm(found[0])

    def feeds(self, jpeg: bytes) -> dict[str, NDArray[np.float32]]:
        """The picture as the graph takes it: stretched to its size, which suffices for speed."""
        recipe = self._recipe
        resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        with Image.open(io.BytesIO(jpeg)) as image:
            small = image.convert("RGB").resize((recipe.width, recipe.height), resampling.get(recipe.interpolation))
        pixels = (np.asarray(small, np.float32) * recipe.scale - recipe.mean) / recipe.std
        return {self._name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)}


def _boxes(raw: NDArray[np.float32]) -> list[Any]:
    """Of a YOLOv8 head `[4 + classes, boxes]`: those above 0.25 that no better one of their class covers by 0.45."""
    boxes, scores = raw[:4].T, raw[4:].T
    classes, best = scores.argmax(1), scores.max(1)
    kept = []
    order = [index for index in np.argsort(-best) if best[index] > 0.25]
    while order:
        first, *order = order
        kept.append((boxes[first], classes[first], best[first]))
        order = [each for each in order if classes[each] != classes[first] or _iou(boxes[first], boxes[each]) < 0.45]
    return kept


def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    low = np.maximum(one[:2] - one[2:] / 2, other[:2] - other[2:] / 2)
    high = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2)
    shared = float(np.prod(np.maximum(0, high - low)))
    return shared / (float(np.prod(one[2:]) + np.prod(other[2:])) - shared)


def graph_of(model: InstalledModel) -> Path:
    """The ONNX file that takes pictures."""
    return next(path for name in _GRAPHS if (path := model.folder / name).is_file())


def _model_s(model: InstalledModel, backend: str, precision: Precision, feeds: dict[str, NDArray[np.float32]]) -> float:
    """Of one picture in the runtime that the server uses, without it."""
    session = catalog.load_session(backend, graph_of(model), SessionOptions(precision=precision))
    times = [_timed(lambda: session.run(feeds)) for _ in range(60)]
    session.close()
    return statistics.median(times[10:])


def _jpeg() -> bytes:
    with Image.open(_PICTURE) as picture:
        sized = picture.convert("RGB").resize((_SIDE, round(picture.height * _SIDE / picture.width)))
    buffer = io.BytesIO()
    sized.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _ask(port: int, model: InstalledModel, jpeg: bytes, num_clients: int) -> list[_Request]:
    route = "detect" if "detection" in model.capabilities else "embed"
    whole = request(port, f"/v1/vision/{route}", *form({"model": model.name}, "coffee.jpg", jpeg))

    async def client() -> list[_Request]:
        found = []
        async with connected(port) as post:
            for _ in range(_NUM_REQUESTS // num_clients):
                started = time.perf_counter()
                answer = await post(whole)
                ended = time.perf_counter()
                found.append(_Request(ended - started, _model_ms(answer) / 1000))
        return found

    async def together() -> list[_Request]:
        return list(chain.from_iterable(await asyncio.gather(*(client() for _ in range(num_clients)))))

    return asyncio.run(together())


def _model_ms(answer: bytes) -> float:
    timing = re.search(rb"\r\nserver-timing:[^\r\n]*\bmodel;dur=([0-9.]+)", answer)
    if timing is None:
        raise RuntimeError("the answer does not say what the model took")
    return float(timing[1])


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
