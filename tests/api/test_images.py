"""Chat with images, from each dialect down to a model that sees."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.adapters.tiny_ir import NUM_PATCHES, write_seeing_folder
from tests.api.conftest import EchoLoader, LiveServer

from vmm_server.app import create_app
from vmm_server.settings import Settings

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def picture(seed: int, side: int = 40) -> str:
    """A PNG of noise, as base64."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def seeing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The real thing: a tiny LLaVA under openvino-genai, pulled from its folder as `seer`."""
    folder = tmp_path_factory.mktemp("seer")
    write_seeing_folder(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
    settings = Settings.model_validate(
        {"home": folder / "home", "default_model": "", "calibrate": "off", "image_urls": "any"}
    )
    server = LiveServer(create_app(settings), EchoLoader())
    server.start()
    try:

        async def pull() -> None:
            async for _ in server.parts.puller.pull(f"file:{folder / 'model'}", name="seer"):
                pass

        server.run(pull())
        yield server
    finally:
        server.stop()


def openai(server: LiveServer, *content: dict[str, object], **fields: object) -> Any:
    body = {"model": "seer", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
    return server.client.post("/v1/chat/completions", json=body | fields)


def ollama(server: LiveServer, text: str, *images: str) -> Any:
    message = {"role": "user", "content": text, "images": images}
    options = {"temperature": 0, "num_predict": 6}
    return server.client.post(
        "/api/chat", json={"model": "seer", "messages": [message], "options": options, "stream": False}
    )


def anthropic(server: LiveServer, *content: dict[str, object], path: str = "/v1/messages") -> Any:
    body = {"model": "seer", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
    return server.client.post(path, json=body)


def linked(image: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": linked_url(image)}}


def linked_url(image: str) -> str:
    return f"data:image/png;base64,{image}"


def block(image: str) -> dict[str, object]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


@pytest.mark.runtime
def test_a_model_that_sees_says_so(seeing_server: LiveServer) -> None:
    shown = seeing_server.client.post("/api/show", json={"model": "seer"}).json()
    assert "vision" in shown["capabilities"]


@pytest.mark.runtime
def test_every_dialect_shows_the_model_the_same(seeing_server: LiveServer) -> None:
    image, other = picture(1), picture(2)
    answer = openai(seeing_server, linked(image), text("what?")).json()
    said = answer["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens"] == NUM_PATCHES + len("what?")
    assert answer["usage"]["completion_tokens"] == 6
    replied = ollama(seeing_server, "what?", image).json()
    assert replied["message"]["content"] == said
    assert replied["prompt_eval_count"] == NUM_PATCHES + len("what?")
    content = [{"type": "input_image", "image_url": linked_url(image)}, {"type": "input_text", "text": "what?"}]
    body = {"model": "seer", "input": [{"role": "user", "content": content}], "temperature": 0, "max_output_tokens": 6}
    response = seeing_server.client.post("/v1/responses", json=body).json()
    assert response["output"][0]["content"][0]["text"] == said
    assert response["usage"]["input_tokens"] == NUM_PATCHES + len("what?")
    message = anthropic(seeing_server, block(image), text("what?")).json()
    assert message["content"][0]["text"] == said
    assert openai(seeing_server, linked(other), text("what?")).json()["choices"][0]["message"]["content"] != said


@pytest.mark.runtime
def test_requests_at_a_time_see_their_own_images(seeing_server: LiveServer) -> None:
    async def asked(seed: int) -> str:
        response = await asyncio.to_thread(openai, seeing_server, linked(picture(seed)), text("what?"))
        said: str = response.json()["choices"][0]["message"]["content"]
        return said

    async def together() -> list[str]:
        return await asyncio.gather(*(asked(seed) for seed in range(4)))

    said = asyncio.run(together())
    alone = [asyncio.run(asked(seed)) for seed in range(4)]
    assert said == alone
    assert len(set(said)) > 1


@pytest.mark.runtime
def test_a_model_that_sees_also_reads(seeing_server: LiveServer) -> None:
    answer = openai(seeing_server, text("what?")).json()
    assert answer["usage"]["prompt_tokens"] == len("what?")
    assert len(answer["choices"][0]["message"]["content"]) > 0


@pytest.mark.runtime
def test_answers_about_an_image_are_streamed(seeing_server: LiveServer) -> None:
    whole = openai(seeing_server, linked(picture(1)), text("what?")).json()["choices"][0]["message"]["content"]
    streamed = openai(seeing_server, linked(picture(1)), text("what?"), stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/a.png", "cannot be fetched"),
        ("ftp://x/a.png", "only http and https"),
        ("data:image/png;base64,aGk=", "no image"),
        ("!", "not base64"),
    ],
)
def test_what_is_no_image_is_a_bad_request(seeing_server: LiveServer, url: str, words: str) -> None:
    response = openai(seeing_server, {"type": "image_url", "image_url": {"url": url}}, text("what?"))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url.url"
    assert words in response.json()["error"]["message"]


@pytest.mark.runtime
def test_an_image_may_be_a_url_in_every_dialect_that_has_them(seeing_server: LiveServer, red_box_url: str) -> None:
    image = base64.b64encode(httpx.get(red_box_url, trust_env=False).content).decode()
    said = openai(seeing_server, linked(image), text("what?")).json()["choices"][0]["message"]["content"]
    part = {"type": "image_url", "image_url": {"url": red_box_url}}
    answers = openai(seeing_server, part, text("what?"), n=2).json()["choices"]
    assert [answer["message"]["content"] for answer in answers] == [said] * 2
    block = {"type": "image", "source": {"type": "url", "url": red_box_url}}
    assert anthropic(seeing_server, block, text("what?")).json()["content"][0]["text"] == said


@pytest.mark.runtime
def test_a_text_that_leaves_no_room_is_refused_before_anything_runs(seeing_server: LiveServer) -> None:
    response = openai(seeing_server, linked(picture(1)), text("x" * 300))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.runtime
def test_an_answer_that_a_stop_string_ends_counts_the_text(seeing_server: LiveServer) -> None:
    """The runtime tells how many tokens an image has when it is done, and nobody waits for that."""
    said = openai(seeing_server, linked(picture(1)), text("what?")).json()["choices"][0]["message"]["content"]
    answer = openai(seeing_server, linked(picture(1)), text("what?"), stop=[said[1]]).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] >= len("what?")


@pytest.mark.runtime
@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}}, {"logprobs": True}])
def test_what_its_runtime_lacks_is_refused_by_name(seeing_server: LiveServer, fields: dict[str, object]) -> None:
    response = openai(seeing_server, linked(picture(1)), text("what?"), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(fields)))
    assert "openvino-genai" in response.json()["error"]["message"]


@pytest.mark.runtime
def test_tokens_of_images_cannot_be_counted_beforehand(seeing_server: LiveServer) -> None:
    response = anthropic(seeing_server, block(picture(1)), path="/v1/messages/count_tokens")
    assert response.status_code == 400
    assert "counted when they are seen" in response.json()["error"]["message"]


@pytest.mark.runtime
def test_a_text_that_has_the_mark_of_an_image_is_refused(seeing_server: LiveServer) -> None:
    response = openai(seeing_server, linked(picture(1)), text("\ue000image\ue001"))
    assert response.status_code == 400
    assert "1 images were sent" in response.json()["error"]["message"]


def test_a_model_that_does_not_see_is_shown_nothing(live_server: LiveServer) -> None:
    client = live_server.client
    shown = {"role": "user", "content": [linked("aGk=")]}
    response = client.post("/v1/chat/completions", json={"model": "echo", "messages": [shown]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0].content[0].image_url.url")
    message = {"role": "user", "content": "x", "images": ["aGk="]}
    for path, body in (
        ("/api/chat", {"messages": [message]}),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [block("aGk=")]}]}),
    ):
        response = client.post(path, json={"model": "echo"} | body)
        assert response.status_code == 400, path
        assert "does not support vision" in response.text, path
