"""`/v1/vision` with real runtimes: the small detector and the small CLIP of tests/fixtures, installed as users do."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from PIL import Image
from tests.api.conftest import EchoLoader, LiveServer
from tests.api.fake_vision import png_of, uri
from tests.api.test_vision import seen
from tests.api.test_vision_stream import received, stream
from tests.fixtures.shapes import COLOURS, KINDS, held_out, portrait, scene

from vmm_server.app import create_app
from vmm_server.settings import Settings

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = {"shapes": "detector.onnx", "small-clip": "clip-small"}
pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def shapes_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that has both."""
    home = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_", "TIKTOKEN_"))]:
            patch.delenv(name)
        settings = Settings.model_validate({"home": home, "default_model": "", "calibrate": "off"})
        server = LiveServer(create_app(settings), EchoLoader())
        server.start()
        try:

            async def pull(source: str, name: str) -> None:
                async for _ in server.parts.puller.pull(source, name=name):
                    pass

            for name, file in MODELS.items():
                server.run(pull(f"file:{FIXTURES / file}", name))
            yield server
        finally:
            server.stop()


def image_of(pixels: Any) -> str:
    return uri(png_of(Image.fromarray(pixels)))


def overlap(box: dict[str, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    left, top = max(box["x1"], other[0]), max(box["y1"], other[1])
    right, bottom = min(box["x2"], other[2]), min(box["y2"], other[3])
    both = max(0.0, right - left) * max(0.0, bottom - top)
    area = (box["x2"] - box["x1"]) * (box["y2"] - box["y1"]) + (other[2] - other[0]) * (other[3] - other[1])
    return both / (area - both)


def test_shapes_are_found_where_they_are_in_pictures_of_any_size(shapes_server: LiveServer) -> None:
    drawn = [scene(seed, width, height) for seed, (width, height) in enumerate([(160, 160), (320, 240), (200, 300)])]
    data = seen(shapes_server, "detect", model="shapes", images=[image_of(pixels) for pixels, _ in drawn])["data"]
    num_found = 0
    for one, (pixels, shapes) in zip(data, drawn, strict=True):
        assert (one["height"], one["width"]) == pixels.shape[:2]
        for shape in shapes:
            same = [each["box"] for each in one["detections"] if each["label"] == shape.kind]
            num_found += any(overlap(box, shape.box) > 0.5 for box in same)
    assert num_found >= sum(len(shapes) for _, shapes in drawn) - 1
    assert num_found > 3


def test_classes_are_filtered_and_pictures_drawn(shapes_server: LiveServer) -> None:
    pixels, shapes = scene(0, 320, 240)
    kind = shapes[0].kind
    (one,) = seen(
        shapes_server, "detect", model="shapes", image=image_of(pixels), classes=[kind, KINDS.index(kind)], draw=True
    )["data"]
    assert {each["label"] for each in one["detections"]} == {kind}
    assert one["image"].startswith("data:image/png;base64,")


def test_labels_that_fit_win(shapes_server: LiveServer) -> None:
    looks = held_out()[::6]
    images = [image_of(portrait(seed, look)) for seed, look in enumerate(looks)]
    fields = {"model": "small-clip", "images": images, "labels": [*COLOURS], "templates": ["a {} shape", "a {}"]}
    data = seen(shapes_server, "zero-shot", **fields)["data"]
    best = [one["classes"][0]["label"] for one in data]
    assert sum(label == look.colour for label, look in zip(best, looks, strict=True)) >= len(looks) - 1
    for one in data:
        assert sum(each["score"] for each in one["classes"]) == pytest.approx(1, abs=1e-4)


def test_pictures_are_found_by_what_they_show(shapes_server: LiveServer) -> None:
    looks = held_out()[::6]
    images = [image_of(portrait(seed, look)) for seed, look in enumerate(looks)]
    found = [
        seen(shapes_server, "search", model="small-clip", query=look.caption, images=images)["results"]
        for look in looks
    ]
    first = [results[0]["index"] for results in found]
    assert sum(index == number for number, index in enumerate(first)) >= len(looks) - 2
    by_picture = seen(shapes_server, "", model="small-clip", query={"image": images[1]}, images=images)["results"]
    assert by_picture[0] == {"index": 1, "score": pytest.approx(1, abs=1e-4)}


def test_texts_are_in_one_space_with_pictures_on_both_routes(shapes_server: LiveServer) -> None:
    look = held_out()[0]
    with openai.OpenAI(base_url=f"{shapes_server.url}/v1", api_key="none", max_retries=0) as client:
        there = client.embeddings.create(model="small-clip", input=[look.caption, "a blue square"])
        here = client.post(
            "/vision/embed",
            body={"model": "small-clip", "image": image_of(portrait(3, look)), "text": look.caption},
            cast_to=CreateEmbeddingResponse,
        )
    picture, text = (np.array(one.embedding) for one in here.data)
    assert text == pytest.approx(there.data[0].embedding, abs=1e-6)
    assert np.linalg.norm(picture) == pytest.approx(1, abs=1e-5)
    assert picture @ text > picture @ np.array(there.data[1].embedding)


def test_frames_are_seen(shapes_server: LiveServer) -> None:
    pixels, _ = scene(1, 320, 240)
    with stream(shapes_server, model="shapes", threshold=0.5) as socket:
        assert received(socket)["task"] == "detection"
        for number in range(3):
            socket.send(png_of(Image.fromarray(pixels), "JPEG", quality=95))
            answer = received(socket)
            assert (answer["frame"], len(answer["detections"]) > 0) == (number, True)


def test_many_clients_get_their_own_answers(shapes_server: LiveServer) -> None:
    drawn = [scene(seed, 96 + 32 * (seed % 4), 128)[0] for seed in range(12)]
    bodies = [{"model": "shapes", "image": image_of(pixels)} for pixels in drawn]

    def ask(body: dict[str, str]) -> Any:
        return shapes_server.client.post("/v1/vision/detect", json=body).json()["data"]

    async def together() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(ask, body) for body in bodies))

    for one, body in zip(asyncio.run(together()), bodies, strict=True):
        alone = ask(body)
        assert labels_of(one) == labels_of(alone)
        assert numbers_of(one) == pytest.approx(numbers_of(alone), abs=0.05)  # a batch adds in another order


def labels_of(data: Any) -> list[str]:
    return [thing["label"] for one in data for thing in one["detections"]]


def numbers_of(data: Any) -> list[float]:
    return [number for one in data for thing in one["detections"] for number in thing["box"].values()]


def test_a_detector_does_not_chat(shapes_server: LiveServer) -> None:
    body = {"model": "shapes", "messages": [{"role": "user", "content": "hello"}]}
    response = shapes_server.client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "does not support chat" in response.json()["error"]["message"]
