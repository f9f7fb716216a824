"""What models see in images, as OpenAI's client, curl and a WebSocket ask for it."""

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from PIL import Image, ImageDraw
from websockets.sync.client import connect

CAT = Path(__file__).parents[1] / "tests" / "data" / "media" / "chelsea.png"


def shape(kind: str, colour: str, size: int = 192) -> bytes:
    """A PNG of one shape in the middle of a grey picture."""
    image = Image.new("RGB", (size, size), (128, 128, 128))
    canvas, corners = ImageDraw.Draw(image), [size * 0.3, size * 0.3, size * 0.7, size * 0.7]
    canvas.ellipse(corners, colour) if kind == "circle" else canvas.rectangle(corners, colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def curl(*arguments: str) -> bytes:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def asked(client: openai.OpenAI, route: str, **body: object) -> Any:
    return client.post(f"/vision/{route}", body=body, cast_to=object)


def test_openais_client_reads_vectors_of_images_and_texts(client: openai.OpenAI, small_clip: str) -> None:
    """In one space, whichever route they come from."""
    images = [uri(shape("circle", "red")), uri(shape("square", "blue"))]
    seen = client.post("/vision/embed", body={"model": small_clip, "images": images}, cast_to=CreateEmbeddingResponse)
    texts = client.embeddings.create(
        model=small_clip, input=["a red circle in the center", "a blue square in the center"]
    )
    cosines = np.array([one.embedding for one in seen.data]) @ np.array([one.embedding for one in texts.data]).T
    assert cosines.argmax(axis=1).tolist() == [0, 1]
    assert texts.usage.prompt_tokens > 0


def test_labels_and_queries_find_their_picture(client: openai.OpenAI, small_clip: str) -> None:
    images = [uri(shape("circle", "red")), uri(shape("square", "blue"))]
    data = asked(client, "zero-shot", model=small_clip, images=images, labels=["red", "blue"], templates=["a {} shape"])
    assert [one["classes"][0]["label"] for one in data["data"]] == ["red", "blue"]
    found = asked(client, "search", model=small_clip, images=images, query="a blue square in the center")
    assert found["results"][0]["index"] == 1


def test_a_file_that_curl_sends_is_looked_at(base_url: str, shapes: str, tmp_path: Path) -> None:
    file = tmp_path / "circle.png"
    file.write_bytes(shape("circle", "red"))
    form = ["-F", f"model={shapes}", "-F", f"file=@{file}"]
    (one,) = json.loads(curl(f"{base_url}/v1/vision/detect", *form))["data"]
    best = one["detections"][0]
    assert best["label"] == "circle"
    assert all(abs(best["box"][edge] - at) < 12 for edge, at in {"x1": 58, "y1": 58, "x2": 134, "y2": 134}.items())
    drawn = curl(f"{base_url}/v1/vision", "-H", "Accept: image/png", *form)
    with Image.open(io.BytesIO(drawn)) as image:
        assert (image.format, image.size) == ("PNG", (192, 192))


def test_a_photograph_is_named(base_url: str, classifier: str) -> None:
    form = ["-F", f"model={classifier}", "-F", f"file=@{CAT}", "-F", "top_k=3"]
    classes = json.loads(curl(f"{base_url}/v1/vision/classify", *form))["data"][0]["classes"]
    assert any("cat" in each["label"] or "tabby" in each["label"] for each in classes)


def test_frames_of_a_video_are_looked_at(base_url: str, shapes: str) -> None:
    url = base_url.replace("http", "ws", 1) + "/v1/vision/stream"
    with connect(url, proxy=None) as socket:
        socket.send(json.dumps({"model": shapes}))
        assert json.loads(socket.recv(60))["task"] == "detection"
        for number in range(2):
            socket.send(shape("circle", "red"))
            answer = json.loads(socket.recv(60))
            assert (answer["frame"], answer["detections"][0]["label"]) == (number, "circle")


def test_a_model_that_looks_does_not_chat(client: openai.OpenAI, shapes: str) -> None:
    with pytest.raises(openai.BadRequestError, match="does not support chat"):
        client.chat.completions.create(model=shapes, messages=[{"role": "user", "content": "What do you see?"}])
