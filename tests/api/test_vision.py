"""`/v1/vision` over a real server, with models that see what the tests draw."""

import base64
import io
import math
import re
import struct
import zlib
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from PIL import Image
from tests.api.conftest import StartServer
from tests.api.fake_vision import COLOURS, DIM, box, install_fakes, png_of, uri

from vmm_server.api.vision.wire import MAX_IMAGES, MAX_TEXTS

ROUTES = {
    "detect": {"model": "detector"},
    "classify": {"model": "classifier"},
    "embed": {"model": "clip"},
    "zero-shot": {"model": "clip", "labels": ["red", "blue"]},
    "search": {"model": "clip", "query": "red"},
}


def plain(colour: str, size: tuple[int, int] = (8, 8)) -> str:
    return uri(png_of(Image.new("RGB", size, COLOURS[colour])))


def see(server: Any, route: str, **fields: Any) -> Any:
    path = f"/v1/vision/{route}" if route else "/v1/vision"
    return server.client.post(path, json={**ROUTES.get(route, {}), **fields})


def seen(server: Any, route: str, **fields: Any) -> Any:
    response = see(server, route, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def refused(server: Any, route: str, **fields: Any) -> tuple[str, str]:
    """The field that a 400 names, and its words."""
    response = see(server, route, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]


def test_a_detection_has_its_place_in_pixels_and_in_parts_of_the_picture(vision_server: Any) -> None:
    response = see(vision_server, "detect", image=uri(png_of(box())))
    assert response.json() == {
        "object": "list",
        "model": "detector",
        "data": [
            {
                "object": "detections",
                "index": 0,
                "width": 40,
                "height": 20,
                "detections": [
                    {
                        "label": "cat",
                        "class_id": 1,
                        "score": 0.9,
                        "box": {"x1": 10, "y1": 5, "x2": 30, "y2": 15},
                        "box_normalized": {"x1": 0.25, "y1": 0.25, "x2": 0.75, "y2": 0.75},
                    }
                ],
            }
        ],
    }
    assert response.headers["x-vmm-model"] == "detector:latest"
    assert response.headers["x-vmm-device"] == "CPU"
    assert response.headers["x-vmm-queue-ms"] == "0"
    assert response.headers["server-timing"] == "decode;dur=12.50, queue;dur=0.50, model;dur=250.00"


@pytest.mark.parametrize("route", ROUTES)
def test_every_answer_says_what_took_how_long(vision_server: Any, route: str) -> None:
    """The syntax is https://www.w3.org/TR/server-timing/#the-server-timing-header-field's."""
    timing = see(vision_server, route, image=plain("red")).headers["server-timing"]
    assert re.fullmatch(r"decode;dur=\d+\.\d\d, queue;dur=\d+\.\d\d, model;dur=\d+\.\d\d", timing)


def test_texts_are_computed_as_well(vision_server: Any) -> None:
    timing = see(vision_server, "embed", text="red").headers["server-timing"]
    assert re.fullmatch(r"decode;dur=0\.00, queue;dur=\d+\.\d\d, model;dur=\d+\.\d\d", timing)


def test_masks_points_and_corners_come_with_the_models_that_have_them(vision_server: Any) -> None:
    (thing,) = seen(vision_server, "detect", model="shapes", image=uri(png_of(box())))["data"][0]["detections"]
    assert thing["mask"]["size"] == [20, 40]
    assert decoded_mask(thing["mask"]).nonzero()[0].tolist() == sorted([*range(5, 15)] * 20)
    assert thing["keypoints"] == [{"x": 10, "y": 5, "score": 0.5}]
    assert thing["corners"] == [[10, 5], [30, 5], [30, 15], [10, 15]]


def decoded_mask(mask: dict[str, Any]) -> np.ndarray[Any, Any]:
    """COCO's compressed run lengths, read as its `rleFrString` and `rleDecode` do."""
    text, counts, at = mask["counts"].encode(), [], 0
    while at < len(text):
        number = shift = 0
        while True:
            byte = text[at] - 48
            at += 1
            number |= (byte & 0x1F) << shift
            shift += 5
            if not byte & 0x20:
                break
        if byte & 0x10:
            number |= -1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
    height, width = mask["size"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert len(flat) == height * width
    return flat.reshape(width, height).T


@pytest.mark.parametrize(
    "sent",
    [
        lambda data: {"image": data},
        lambda data: {"image": data.partition(",")[2]},
        lambda data: {"image": {"url": data}},
        lambda data: {"image": {"image_url": {"url": data}}},
        lambda data: {"image": {"type": "image_url", "image_url": {"url": data}}},
        lambda data: {"image": {"type": "input_image", "image_url": data}},
        lambda data: {"images": [data]},
        lambda data: {"images": data},
        lambda data: {"image": [{"url": data}]},
    ],
)
def test_an_image_may_be_spelt_in_any_usual_way(vision_server: Any, sent: Any) -> None:
    answer = seen(vision_server, "detect", **sent(uri(png_of(box()))))
    assert [len(one["detections"]) for one in answer["data"]] == [1]


def test_several_images_are_answered_in_their_order(vision_server: Any) -> None:
    images = [uri(png_of(box(40, 20))), uri(png_of(Image.new("RGB", (9, 7), "white"))), uri(png_of(box(50, 60)))]
    data = seen(vision_server, "detect", image=images[0], images=images[1:])["data"]
    assert [(one["index"], one["width"], one["height"]) for one in data] == [(0, 40, 20), (1, 9, 7), (2, 50, 60)]
    assert [len(one["detections"]) for one in data] == [1, 0, 1]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"threshold": 0.95}, 0),
        ({"threshold": 0}, 1),
        ({"classes": ["cat"]}, 1),
        ({"classes": ["CAT", "dog"]}, 1),
        ({"classes": [1]}, 1),
        ({"classes": "1"}, 1),
        ({"classes": ["person", 2]}, 0),
    ],
)
def test_what_is_wanted_of_detections_reaches_the_model(
    vision_server: Any, fields: dict[str, object], count: int
) -> None:
    answer = seen(vision_server, "detect", image=uri(png_of(box())), **fields)
    assert len(answer["data"][0]["detections"]) == count


def test_pictures_come_back_drawn_when_asked_for(vision_server: Any) -> None:
    data = seen(vision_server, "detect", images=[uri(png_of(box(90, 60)))] * 2, draw=True)["data"]
    for one in data:
        head, _, text = one["image"].partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(text))) as drawn:
            assert drawn.size == (90, 60)
            assert np.asarray(drawn).tolist() != np.asarray(box(90, 60)).tolist()


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"response_format": "png"}, {}),
        ({}, {"accept": "image/png"}),
        ({"response_format": "png"}, {"accept": "application/json"}),
    ],
)
def test_one_picture_may_be_answered_as_a_file(
    vision_server: Any, fields: dict[str, str], headers: dict[str, str]
) -> None:
    body = {"model": "detector", "image": uri(png_of(box()))} | fields
    response = vision_server.client.post("/v1/vision/detect", json=body, headers=headers)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-vmm-model"] == "detector:latest"
    with Image.open(io.BytesIO(response.content)) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (40, 20))


def test_who_takes_anything_gets_json(vision_server: Any) -> None:
    headers = {"accept": "application/json, image/png"}
    body = {"model": "detector", "image": uri(png_of(box()))}
    response = vision_server.client.post("/v1/vision/detect", json=body, headers=headers)
    assert response.headers["content-type"] == "application/json"


def test_an_upright_picture_is_what_detections_are_about(vision_server: Any) -> None:
    image = box()
    exif = image.getexif()
    exif[0x0112] = 6  # turned to the right
    (one,) = seen(vision_server, "detect", image=uri(png_of(image, exif=exif)))["data"]
    assert (one["width"], one["height"]) == (20, 40)
    assert one["detections"][0]["box"] == {"x1": 5, "y1": 10, "x2": 15, "y2": 30}


def test_classes_come_best_first(vision_server: Any) -> None:
    image = Image.new("RGB", (10, 1), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 4, 1))
    (one,) = seen(vision_server, "classify", image=uri(png_of(image)))["data"]
    assert one == {
        "object": "classification",
        "index": 0,
        "classes": [
            {"label": "blue", "class_id": 2, "score": 0.6},
            {"label": "red", "class_id": 0, "score": 0.4},
            {"label": "green", "class_id": 1, "score": 0.0},
        ],
    }
    (one,) = seen(vision_server, "classify", image=uri(png_of(image)), top_k=1)["data"]
    assert [each["label"] for each in one["classes"]] == ["blue"]


def client_of(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_texts_have_the_vectors_of_the_other_route_and_the_sdk_reads_both(vision_server: Any) -> None:
    with client_of(vision_server) as client:
        there = client.embeddings.create(model="clip", input=["red", "a blue one"])
        here = client.post(
            "/vision/embed",
            body={"model": "clip", "image": plain("red"), "texts": ["red", "a blue one"]},
            cast_to=CreateEmbeddingResponse,
        )
    assert [one.index for one in here.data] == [0, 1, 2]
    assert [one.embedding for one in here.data[1:]] == [one.embedding for one in there.data]
    assert here.data[0].embedding == pytest.approx(there.data[0].embedding)
    assert here.usage == there.usage
    assert (here.object, here.model, len(here.data[0].embedding)) == ("list", "clip", DIM)


def test_input_keeps_its_order_and_data_uris_in_it_are_images(vision_server: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": plain("blue")}}
    data = seen(vision_server, "embed", input=["red", image, plain("green"), {"type": "text", "text": "blue"}])["data"]
    vectors = [one["embedding"] for one in data]
    words = seen(vision_server, "embed", texts=["red", "blue", "green", "blue"])["data"]
    assert np.allclose(vectors, [one["embedding"] for one in words], atol=1e-6)


def test_vectors_may_be_base64_and_shorter(vision_server: Any) -> None:
    whole = seen(vision_server, "embed", image=plain("red"), text="blue")["data"]
    short = seen(vision_server, "embed", image=plain("red"), text="blue", dimensions=40, encoding_format="base64")
    for one, other in zip(whole, short["data"], strict=True):
        cut = np.array(one["embedding"][:40], np.float32)
        expected = cut / np.linalg.norm(cut)
        assert np.frombuffer(base64.b64decode(other["embedding"]), "<f4") == pytest.approx(expected, abs=1e-6)


def test_zero_shot_is_a_softmax_over_the_labels(vision_server: Any) -> None:
    labels = ["blue", "red", "green"]
    (one,) = seen(vision_server, "zero-shot", image=plain("red"), labels=labels)["data"]
    assert (one["classes"][0]["label"], one["classes"][0]["class_id"]) == ("red", 1)
    cosines = cosines_of(vision_server, plain("red"), labels)
    powers = [math.exp(10 * cosine) for cosine in cosines]
    scores = {each["label"]: each["score"] for each in one["classes"]}
    assert [scores[label] for label in labels] == pytest.approx([power / sum(powers) for power in powers], abs=1e-5)


def test_a_model_with_a_bias_gives_each_label_its_own_probability(vision_server: Any) -> None:
    labels = ["red", "green"]
    seen(vision_server, "zero-shot", model="clip", image=plain("red"), labels=labels)  # whose vectors are others
    (one,) = seen(vision_server, "zero-shot", model="siglip", image=plain("red"), labels=labels)["data"]
    scores = {each["label"]: each["score"] for each in one["classes"]}
    cosines = cosines_of(vision_server, plain("red"), labels, model="siglip")
    for label, cosine in zip(labels, cosines, strict=True):
        assert scores[label] == pytest.approx(1 / (1 + math.exp(5 - 10 * cosine)), abs=1e-5)


def test_templates_are_averaged_as_vectors_of_length_one(vision_server: Any) -> None:
    templates = ["a {}", "{}, {} of all things"]
    (one,) = seen(vision_server, "zero-shot", image=plain("red"), labels=["red", "blue"], templates=templates)["data"]
    sentences = [text.replace("{}", label) for label in ("red", "blue") for text in templates]
    data = seen(vision_server, "embed", image=plain("red"), texts=sentences)["data"]
    picture, *rows = (np.array(each["embedding"]) for each in data)
    means = np.array(rows).reshape(2, 2, -1).mean(axis=1)
    logits = 10 * (means / np.linalg.norm(means, axis=1, keepdims=True)) @ picture
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [each["score"] for each in sorted(one["classes"], key=lambda each: each["class_id"])] == pytest.approx(
        expected, abs=1e-5
    )
    assert len(seen(vision_server, "zero-shot", image=plain("red"), top_k=1)["data"][0]["classes"]) == 1


def test_labels_that_were_asked_for_before_are_not_computed_again(start_server: StartServer) -> None:
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))

    def num_computed(**fields: Any) -> int:
        seen(server, "zero-shot", **fields)
        (loaded,) = server.parts.pool.loaded()
        size: int = loaded.ready.batcher.stats.computed_size  # type: ignore[attr-defined]
        return size

    first = num_computed(image=plain("red"), labels=["red", "blue"])
    assert num_computed(image=plain("blue"), labels=["blue", "red"]) == first
    second = num_computed(image=plain("red"), labels=["red", "green"])
    assert second > first
    assert num_computed(image=plain("red"), labels=["green"]) == second
    assert num_computed(image=plain("red"), labels=["red"], templates=["a {}"]) > second


def cosines_of(server: Any, image: str, texts: list[str], model: str = "clip") -> list[float]:
    data = seen(server, "embed", model=model, image=image, texts=texts)["data"]
    picture, *rows = (np.array(each["embedding"]) for each in data)
    return [float(row @ picture) for row in rows]


def test_pictures_are_found_by_a_text(vision_server: Any) -> None:
    images = [plain("green"), plain("blue"), plain("red")]
    answer = seen(vision_server, "search", query="red", images=images)
    assert (answer["object"], answer["model"]) == ("list", "clip")
    assert answer["results"][0] == {"index": 2, "score": pytest.approx(1, abs=1e-6)}
    assert answer["usage"]["prompt_tokens"] > 0
    scores = [one["score"] for one in answer["results"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert len(seen(vision_server, "search", query="red", images=images, top_k=2)["results"]) == 2


@pytest.mark.parametrize("query", [lambda data: data, lambda data: {"image": data}, lambda data: {"url": data}])
def test_texts_and_pictures_are_found_by_a_picture(vision_server: Any, query: Any) -> None:
    answer = seen(vision_server, "search", query=query(plain("blue")), texts=["red", "blue"], images=[plain("green")])
    assert answer["results"][0]["index"] == 2


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "detector"}, "detections"),
        ({"model": "classifier"}, "classification"),
        ({"model": "clip"}, "embedding"),
        ({"model": "clip", "labels": ["red"]}, "classification"),
    ],
)
def test_one_route_does_what_the_model_does(vision_server: Any, fields: dict[str, Any], kind: str) -> None:
    assert seen(vision_server, "", image=plain("red"), **fields)["data"][0]["object"] == kind


def test_one_route_searches_when_there_is_a_query(vision_server: Any) -> None:
    answer = seen(vision_server, "", model="clip", query="red", images=[plain("blue"), plain("red")])
    assert [one["index"] for one in answer["results"]] == [1, 0]


def test_one_route_refuses_what_the_model_has_no_use_for(vision_server: Any) -> None:
    fields = {"model": "detector", "image": plain("red"), "labels": ["red"]}
    assert refused(vision_server, "", **fields)[0] == "labels"
    assert refused(vision_server, "", model="clip", image=plain("red"), threshold=0.5)[0] == "threshold"
    assert see(vision_server, "", model="detector", image=plain("red"), threshold=0.5).status_code == 200


DAMAGED = uri(png_of(box(400, 300), "JPEG")[:-300])


@pytest.mark.parametrize(
    ("route", "fields", "param", "words"),
    [
        ("detect", {}, "image", "one image at least"),
        ("detect", {"image": []}, "image", "one image at least"),
        ("detect", {"image": 5}, "image", "should be"),
        ("detect", {"image": {}}, "image", "one of image_url, url, image and text"),
        ("detect", {"image": {"text": "cat"}}, "image", "not a text"),
        ("detect", {"image": "!!"}, "image", "not base64"),
        ("detect", {"image": uri(b"hello")}, "image", "no image"),
        ("detect", {"images": [plain("red"), {"image_url": {"url": DAMAGED}}]}, "images[1].image_url.url", "damaged"),
        ("detect", {"images": [plain("red")] * (MAX_IMAGES + 1)}, "images", f"the limit is {MAX_IMAGES}"),
        ("detect", {"threshold": 1.1}, "threshold", "less than or equal to 1"),
        ("detect", {"threshold": -0.1}, "threshold", "greater than or equal to 0"),
        ("detect", {"iou_threshold": 2}, "iou_threshold", "less than or equal to 1"),
        ("detect", {"max_detections": 0}, "max_detections", "greater than or equal to 1"),
        ("detect", {"image": plain("red"), "classes": ["cat", "cow"]}, "classes[1]", "no class of the model"),
        ("detect", {"image": plain("red"), "classes": [3]}, "classes[0]", "no class of the model"),
        ("detect", {"image": plain("red"), "classes": []}, "classes", "leave it out for all"),
        ("detect", {"image": plain("red"), "classes": [-1]}, "classes[0]", "no class of the model"),
        ("detect", {"image": plain("red"), "response_format": "gif"}, "response_format", "'json' or 'png'"),
        ("detect", {"images": [plain("red")] * 2, "response_format": "png"}, "response_format", "2 images"),
        ("classify", {"image": plain("red"), "top_k": 0}, "top_k", "greater than or equal to 1"),
        ("embed", {}, "image", "one image or text at least"),
        ("embed", {"input": ""}, "input", "must not be empty"),
        ("embed", {"texts": ["a", ""]}, "texts[1]", "must not be empty"),
        ("embed", {"texts": ["a"] * (MAX_TEXTS + 1)}, "texts", f"the limit is {MAX_TEXTS}"),
        ("embed", {"text": "x" * 100}, "text", "context length"),
        ("embed", {"text": "x", "dimensions": DIM + 1}, "dimensions", f"the {DIM} that the model has"),
        ("embed", {"text": "x", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ("embed", {"model": "pictures", "text": "x"}, "text", "does not support texts"),
        ("zero-shot", {"image": plain("red"), "labels": []}, "labels", "one label at least"),
        ("zero-shot", {"image": plain("red"), "labels": ["red", " "]}, "labels[1]", "must not be empty"),
        ("zero-shot", {"image": plain("red"), "templates": ["{}", "a label"]}, "templates[1]", "has no {}"),
        ("zero-shot", {"image": plain("red"), "templates": []}, "templates", "is empty"),
        ("zero-shot", {"image": plain("red"), "labels": ["a"] * 1000, "templates": ["{}"] * 3}, "labels", "3000"),
        ("zero-shot", {"labels": ["red"]}, "image", "one image at least"),
        ("search", {"images": [plain("red")], "query": None}, "query", "field required"),
        ("search", {"images": [plain("red")], "query": ""}, "query", "must not be empty"),
        ("search", {}, "images", "to be searched"),
        ("search", {"texts": ["a"], "top_k": 0}, "top_k", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_a_bad_request_that_names_it(
    vision_server: Any, route: str, fields: dict[str, Any], param: str, words: str
) -> None:
    found, message = refused(vision_server, route, **fields)
    assert (found, words in message) == (param, True), message


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("detect", {}, "image"),
        ("detect", {"classes": ["cow"]}, "image"),
        ("detect", {"draw": True}, "image"),
        ("classify", {}, "image"),
        ("embed", {}, "image"),
        ("embed", {"dimensions": DIM + 1}, "image"),
        ("zero-shot", {"labels": ["x" * 100]}, "image"),
    ],
)
def test_what_is_no_picture_is_told_before_all_else_and_no_model_is_loaded_for_it(
    start_server: StartServer, route: str, fields: dict[str, Any], param: str
) -> None:
    server = start_server()
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    for _ in range(2):
        found, message = refused(server, route, image=uri(b"hello"), **fields)
        assert (found, "no image" in message) == (param, True), message
        assert server.parts.pool.loaded() == []
    see(server, route, image=plain("red"))
    assert len(server.parts.pool.loaded()) == 1
    assert refused(server, route, image=uri(b"hello"), **fields) == (found, message)


def huge_png() -> bytes:
    """A header of 30,000 by 30,000 pixels, and none behind it."""
    chunks = [struct.pack(">4sIIBBBBB", b"IHDR", 30_000, 30_000, 8, 2, 0, 0, 0), b"IDAT", b"IEND"]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("route", ["detect", "classify", "embed", "zero-shot", "search", ""])
def test_more_pixels_than_the_limit_are_refused_on_every_route(vision_server: Any, route: str) -> None:
    fields = {} if route else {"model": "detector"}
    param, message = refused(vision_server, route, image=uri(huge_png()), **fields)
    assert param == "image"
    assert "50000000 pixels" in message


def test_of_an_animation_the_first_picture_is_seen(vision_server: Any) -> None:
    frames = [Image.new("RGB", (8, 8), COLOURS[name]) for name in ("green", "red")]
    file = png_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    (one,) = seen(vision_server, "classify", image=uri(file))["data"]
    assert one["classes"][0]["label"] == "green"


def test_a_local_url_is_not_fetched(vision_server: Any) -> None:
    param, message = refused(vision_server, "detect", images=[{"image_url": {"url": f"{vision_server.url}/metrics"}}])
    assert param == "images.image_url.url"
    assert "no address of the public internet" in message


def test_a_url_is_fetched_where_it_may_be(start_server: StartServer, red_box_url: str) -> None:
    server = start_server({"image_urls": "any"})
    install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
    assert seen(server, "detect", image=red_box_url)["data"][0]["width"] == 40
    assert refused(server, "detect", image=f"{red_box_url}.nope")[1].endswith("its server answers 404")


@pytest.mark.parametrize(
    ("route", "model", "words"),
    [
        ("detect", "classifier", "does not support detection"),
        ("classify", "clip", "does not support classification"),
        ("embed", "detector", "does not support image-embedding"),
        ("zero-shot", "detector", "does not support image-embedding"),
        ("search", "echo", "does not support image-embedding"),
        ("", "echo", "does not support detection"),
    ],
)
def test_a_model_that_cannot_is_told_from_one_that_can(vision_server: Any, route: str, model: str, words: str) -> None:
    fields = {"query": "a", "labels": ["a"]} if route else {}
    assert refused(vision_server, route, model=model, image=plain("red"), **fields) == ("model", f'"{model}" {words}')


def test_a_model_that_is_not_there_is_not_found(vision_server: Any) -> None:
    response = see(vision_server, "detect", model="nobody", image=plain("red"))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_detects_does_not_chat(vision_server: Any) -> None:
    with client_of(vision_server) as client, pytest.raises(openai.BadRequestError, match="does not support chat"):
        client.chat.completions.create(model="detector", messages=[{"role": "user", "content": "hello"}])


def test_a_request_says_where_it_runs(vision_server: Any) -> None:
    found, message = refused(vision_server, "detect", image=plain("red"), device="GPU.7")
    assert found == "device", message
