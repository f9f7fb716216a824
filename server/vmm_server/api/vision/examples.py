"""What is sent to `/v1/vision` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example

DETECTOR = "yolox:nano"
CLASSIFIER = "efficientnet:lite0"
CLIP = "clip:vit-b32"
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAMAQMAAABRKa/CAAAABlBMVEX////cHigw"
    "pYgPAAAAE0lEQVR42mNggAH+D0wMDMgIDgAZzgEKREBzNAAAAABJRU5ErkJggg=="
)
"""A red box on white, 16 by 12."""
_BOX = {
    "label": "cat",
    "class_id": 15,
    "score": 0.9125,
    "box": {"x1": 4.0, "y1": 3.0, "x2": 12.0, "y2": 9.0},
    "box_normalized": {"x1": 0.25, "y1": 0.25, "x2": 0.75, "y2": 0.75},
}


def _detected(*found: object, **more: object) -> dict[str, object]:
    one = {"object": "detections", "index": 0, "width": 16, "height": 12, "detections": [*found], **more}
    return {"object": "list", "model": DETECTOR, "data": [one]}


def _classified(model: str, *classes: tuple[str, int, float]) -> dict[str, object]:
    shown = [{"label": label, "class_id": number, "score": score} for label, number, score in classes]
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "classification", "index": 0, "classes": shown}],
    }


def _embedded(*embeddings: object, num_tokens: int = 0) -> dict[str, object]:
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(embeddings)],
        "model": CLIP,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


DETECT = (
    Example("One image", _detected(_BOX), {"model": DETECTOR, "image": IMAGE}),
    Example(
        "Cats alone, with the picture drawn",
        _detected(_BOX, image=IMAGE),
        {"model": DETECTOR, "images": [IMAGE], "classes": ["cat"], "threshold": 0.4, "draw": True},
    ),
    Example(
        "A model that segments: masks are COCO's run lengths",
        _detected(_BOX | {"mask": {"size": [12, 16], "counts": "c1660000000000000]1"}}),
        {"model": "yolo11:n-seg", "image": IMAGE},
        is_sent=False,
    ),
)
CLASSIFY = (
    Example(
        "The three best classes",
        _classified(CLASSIFIER, ("tabby", 281, 0.5218), ("tiger cat", 282, 0.2071), ("Egyptian cat", 285, 0.113)),
        {"model": CLASSIFIER, "image": {"url": IMAGE}, "top_k": 3},
    ),
)
EMBED = (
    Example("An image", _embedded([0.0138, -0.0427, 0.0663]), {"model": CLIP, "image": IMAGE}),
    Example(
        "An image and a text",
        _embedded([0.0138, -0.0427, 0.0663], [0.0221, -0.0319, 0.0717], num_tokens=7),
        {"model": CLIP, "input": [{"type": "image_url", "image_url": {"url": IMAGE}}, "a red box"]},
    ),
)
ZERO_SHOT = (
    Example(
        "Three labels",
        _classified(CLIP, ("a red box", 0, 0.9712), ("a blue box", 1, 0.0266), ("a cat", 2, 0.0022)),
        {"model": CLIP, "image": IMAGE, "labels": ["a red box", "a blue box", "a cat"], "templates": ["{}"]},
    ),
)
_FOUND: dict[str, object] = {
    "object": "list",
    "model": CLIP,
    "results": [{"index": 1, "score": 0.3127}, {"index": 0, "score": 0.1894}],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
}
SEARCH = (
    Example("Images by a text", _FOUND, {"model": CLIP, "query": "a red box", "images": [IMAGE, IMAGE]}),
    Example(
        "The best text for an image",
        _FOUND | {"results": [{"index": 1, "score": 0.3127}]},
        {"model": CLIP, "query": {"image": IMAGE}, "texts": ["a cat", "a red box"], "top_k": 1},
    ),
)
VISION = (
    Example("A model that detects", _detected(_BOX), {"model": DETECTOR, "image": IMAGE}),
    Example("A model that embeds", _embedded([0.0138, -0.0427, 0.0663]), {"model": CLIP, "image": IMAGE}),
)
