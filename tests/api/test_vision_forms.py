"""`/v1/vision` as forms, as `curl -F` and browsers send them."""

import base64
import json
from typing import Any

import pytest
from PIL import Image
from tests.api.fake_vision import COLOURS, box, png_of, uri
from tests.api.test_vision import plain, refused, seen

from vmm_server.api.vision.wire import MAX_IMAGES

CAT = png_of(box())


def colour(name: str) -> bytes:
    return png_of(Image.new("RGB", (8, 8), COLOURS[name]))


def post(server: Any, route: str, *parts: tuple[str, Any], **options: Any) -> Any:
    """Files are bytes, fields text; both may come several times."""
    sent = [(name, (f"{name}.bin", value) if isinstance(value, bytes) else (None, value)) for name, value in parts]
    return server.client.post(f"/v1/vision/{route}".rstrip("/"), files=sent, **options)


def answered(server: Any, route: str, *parts: tuple[str, Any]) -> Any:
    response = post(server, route, *parts)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("field", ["file", "image", "images", "images[]", "file[]"])
def test_a_file_is_an_image(vision_server: Any, field: str) -> None:
    answer = answered(vision_server, "detect", ("model", "detector"), (field, CAT))
    assert answer == seen(vision_server, "detect", image=uri(CAT))


def test_several_files_are_answered_in_their_order(vision_server: Any) -> None:
    white = png_of(Image.new("RGB", (9, 7), "white"))
    data = answered(vision_server, "detect", ("model", "detector"), ("file", white), ("file", CAT))["data"]
    assert [(one["width"], len(one["detections"])) for one in data] == [(9, 0), (40, 1)]


def test_images_may_be_fields_too_and_come_behind_the_files(vision_server: Any) -> None:
    fields = [("image", plain("red")), ("images", plain("blue").partition(",")[2]), ("file", colour("green"))]
    data = answered(vision_server, "classify", ("model", "classifier"), *fields, ("top_k", "1"))["data"]
    assert [one["classes"][0]["label"] for one in data] == ["green", "red", "blue"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ([("threshold", "0.95")], 0),
        ([("classes", "dog"), ("classes", "cat")], 1),
        ([("classes[]", "dog")], 0),
        ([("classes", '["dog", 1]')], 1),
        ([("classes", "1")], 1),
        ([("max_detections", "1")], 1),
    ],
)
def test_fields_are_read_as_what_they_are(vision_server: Any, fields: list[tuple[str, str]], count: int) -> None:
    data = answered(vision_server, "detect", ("model", "detector"), ("file", CAT), *fields)["data"]
    assert len(data[0]["detections"]) == count


def test_labels_come_several_times_or_as_json(vision_server: Any) -> None:
    start = [("model", "clip"), ("file", colour("red")), ("templates", "{}")]
    once = answered(vision_server, "zero-shot", *start, ("labels", '["red", "blue"]'))
    assert once == answered(vision_server, "zero-shot", *start, ("labels", "red"), ("labels", "blue"))
    assert [each["label"] for each in once["data"][0]["classes"]] == ["red", "blue"]


def test_a_query_is_a_text_or_a_file(vision_server: Any) -> None:
    files = [("file", colour("green")), ("file", colour("red"))]
    by_text = answered(vision_server, "search", ("model", "clip"), ("query", "red"), *files)
    by_file = answered(vision_server, "search", ("model", "clip"), ("query", colour("red")), *files)
    assert [one["index"] for one in by_text["results"]] == [one["index"] for one in by_file["results"]] == [1, 0]
    assert by_file == answered(vision_server, "", ("model", "clip"), ("query", colour("red")), *files)


def test_a_query_is_not_both(vision_server: Any) -> None:
    parts = [("model", "clip"), ("query", "red"), ("query", colour("red")), ("file", colour("green"))]
    for route in ("search", ""):
        response = post(vision_server, route, *parts)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "query"), response.text


def test_one_picture_comes_back_drawn(vision_server: Any) -> None:
    response = post(vision_server, "detect", ("model", "detector"), ("file", CAT), headers={"accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    drawn = answered(vision_server, "detect", ("model", "detector"), ("file", CAT), ("draw", "true"))["data"][0][
        "image"
    ]
    assert base64.b64decode(drawn.partition(",")[2]) == response.content


def test_embeddings_of_a_form_are_those_of_json(vision_server: Any) -> None:
    answer = answered(vision_server, "embed", ("model", "clip"), ("file", colour("red")), ("text", "a red thing"))
    assert answer == seen(vision_server, "embed", image=plain("red"), text="a red thing")


@pytest.mark.parametrize(
    ("parts", "param", "words"),
    [
        ([], "image", "one image at least"),
        ([("file", "cat.jpg")], "file", "must be a file, not text"),
        ([("file", b"hello")], "file", "no image"),
        ([("file", CAT), ("file", CAT[:60])], "file[1]", "damaged"),
        ([("file", CAT), ("threshold", "much")], "threshold", "number"),
        ([("file", CAT), ("threshold", "nan")], "threshold", "finite"),
        ([("file", CAT), ("threshold", "1.5")], "threshold", "less than or equal to 1"),
        ([("file", CAT), ("classes", "cow")], "classes[0]", "no class"),
        ([("file", CAT)] * (MAX_IMAGES + 1), "images", f"the limit is {MAX_IMAGES}"),
        ([("file", CAT)] * (MAX_IMAGES + 2), "file", f"more than {MAX_IMAGES + 1} files"),
        ([("file", CAT), ("device", "GPU.7")], "device", "GPU.7"),
    ],
)
def test_a_wrong_field_is_a_bad_request_that_names_it(vision_server: Any, parts: Any, param: str, words: str) -> None:
    response = post(vision_server, "detect", ("model", "detector"), *parts)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error


def test_a_form_without_a_model_says_so(vision_server: Any) -> None:
    response = post(vision_server, "detect", ("file", CAT))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


def test_a_form_over_the_limit_is_refused(vision_server: Any) -> None:
    response = post(vision_server, "detect", ("model", "detector"), ("file", bytes(65 * 1024**2)))
    assert response.status_code in (400, 413), response.text
    assert "limit" in response.json()["error"]["message"]


def test_json_without_a_content_type_is_json(vision_server: Any) -> None:
    body = json.dumps({"model": "detector", "image": uri(CAT)})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert vision_server.client.post("/v1/vision/detect", content=body, headers=headers).status_code == 200
    assert refused(vision_server, "detect", image="aGVsbG8=")[0] == "image"
