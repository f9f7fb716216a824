"""What models saw → JSON. Pure; for a thread, since masks take time."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmm_server.api.vision.masks import compressed, run_lengths
from vmm_server.seeing import Classified, Detected, Ranked
from vmm_server.vision.results import Detections, crop_of

_PIXEL_DIGITS = 2
_DIGITS = 6
DEFAULT_TOP_K = 5
"""Classes of a picture."""


def detection_list(detected: Detected, model: str) -> dict[str, object]:
    """`POST /v1/vision/detect`; `model` as the client wrote it."""
    return {"object": "list", "model": model, "data": detections(detected)}


def detections(detected: Detected) -> list[dict[str, object]]:
    """One object a picture."""
    shown: list[dict[str, object]] = []
    for index, found in enumerate(detected.found):
        width, height = found.size
        one: dict[str, object] = {"object": "detections", "index": index, "width": width, "height": height}
        one["detections"] = _things(found, width, height, detected.labels)
        if detected.drawn is not None:
            one["image"] = f"data:image/png;base64,{base64.b64encode(detected.drawn[index]).decode('ascii')}"
        shown.append(one)
    return shown


def classification_list(classified: Classified, model: str, top_k: int | None) -> dict[str, object]:
    """`POST /v1/vision/classify` and `/v1/vision/zero-shot`: the best `top_k` classes, all if `None`."""
    return {"object": "list", "model": model, "data": classifications(classified, top_k)}


def classifications(classified: Classified, top_k: int | None) -> list[dict[str, object]]:
    """One object a picture; equal scores in the classes' order."""
    shown: list[dict[str, object]] = []
    for index, scores in enumerate(classified.scores):
        order = np.argsort(-scores, kind="stable")[:top_k]
        classes = [
            {"label": _label(classified.labels, number), "class_id": number, "score": score}
            for number, score in zip(order.tolist(), _rounded(scores[order], _DIGITS), strict=True)
        ]
        shown.append({"object": "classification", "index": index, "classes": classes})
    return shown


def search_results(ranked: Ranked, model: str, top_k: int | None) -> dict[str, object]:
    """`POST /v1/vision/search`: best first; equal ones stay in order."""
    order = sorted(range(len(ranked.scores)), key=lambda index: -ranked.scores[index])[:top_k]
    return {
        "object": "list",
        "model": model,
        "results": [{"index": index, "score": round(ranked.scores[index], _DIGITS)} for index in order],
        "usage": {"prompt_tokens": ranked.num_tokens, "total_tokens": ranked.num_tokens},
    }


def _things(found: Detections, width: int, height: int, labels: Sequence[str]) -> list[dict[str, object]]:
    size = np.array([width, height, width, height], np.float32)
    pixels, parts = _rounded(found.boxes, _PIXEL_DIGITS), _rounded(found.boxes / size, _DIGITS)
    scores, points = _rounded(found.scores, _DIGITS), _points(found)
    things: list[dict[str, object]] = []
    for index, number in enumerate(found.class_ids.tolist()):
        thing: dict[str, object] = {
            "label": _label(labels, number),
            "class_id": number,
            "score": scores[index],
            "box": _box(pixels[index]),
            "box_normalized": _box(parts[index]),
        }
        if found.masks is not None:
            left, top, _, _ = crop_of(found.boxes[index])
            counts = compressed(run_lengths(found.masks[index], left, top, width, height))
            thing["mask"] = {"size": [height, width], "counts": counts}
        things.append(thing | {name: shown[index] for name, shown in points.items()})
    return things


def _points(found: Detections) -> Mapping[str, list[Any]]:
    """Keypoints and corners of each thing, where there are any."""
    shown: dict[str, list[Any]] = {}
    if found.keypoints is not None:
        pixels = _rounded(found.keypoints[..., :2], _PIXEL_DIGITS)
        visible = _rounded(found.keypoints[..., 2], _DIGITS)
        shown["keypoints"] = [
            [{"x": x, "y": y, "score": score} for (x, y), score in zip(*thing, strict=True)]
            for thing in zip(pixels, visible, strict=True)
        ]
    if found.corners is not None:
        shown["corners"] = _rounded(found.corners, _PIXEL_DIGITS)
    return shown


def _box(edges: Sequence[float]) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), edges, strict=True))


def _label(labels: Sequence[str], number: int) -> str:
    return labels[number] if number < len(labels) else str(number)


def _rounded(values: NDArray[np.float32], digits: int) -> list[Any]:
    """Of float32 the digits that mean something: 0.9, not 0.8999999761581421."""
    rounded: list[Any] = np.round(values.astype(np.float64), digits).tolist()
    return rounded
