"""Mutated requests to every route that reads a body: never a failure of ours, always the family's words and an id."""

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_server.api.openapi import Operation, operations

NUM_CASES = int(os.environ.get("VMM_FUZZ_CASES", "400"))
DEEP = 150
"""Below the depth that the parser refuses, so that what comes after it sees it."""


def nested(inner: Any, levels: int) -> Any:
    for _ in range(levels):
        inner = {"a": [inner]}
    return inner


ODD: list[Any] = [
    None,
    *(True, 0, -1, 1.5, 1e308, 10**30, -(10**30), float("nan"), float("inf"), 2**31, 2**63, 2**64),
    *(
        "",
        " ",
        "\0",
        "\n",
        "a\ud800b",
        "é\u2028\U0001f600\u200d",
        "x" * 3000,
        "<|end|>",
        "{{ 1 / 0 }}",
        "../../etc/passwd",
    ),
    *(
        '{"a": 1}',
        '"\\ud800"',
        "[" * 5_000,
        "9" * 5000,
        "NaN",
        "{",
        "data:image/png;base64,AAAA",
        "http://127.0.0.1:9/x",
    ),
    *([], {}, [[]], [None], {"": None}, {"type": "x"}, ["a", 1], [0] * 50, {"a": "\ud800"}),
    nested(1, DEEP // 2),
    [[[]] * 3] * 3,
    {"type": "function", "function": {"name": "f", "parameters": nested({}, 20)}},
]
"""What takes the place of a value; wide of every field's type and range."""


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every element of every object and array within: where it is, and its key or index. The model stays."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        if key != "model":
            yield value, key
        yield from places(value[key])


@st.composite
def mutated(draw: st.DrawFn, body: Any, fields: list[str]) -> Any:
    """A body with one to three things changed in it."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(body))
        how = draw(st.sampled_from(["replace", "replace", "add", "remove", "repeat"]))
        if how == "add" or not found:
            holders = [body, *(holder[key] for holder, key in found if isinstance(holder[key], dict))]
            draw(st.sampled_from(holders))[draw(st.sampled_from(fields))] = copy.deepcopy(draw(st.sampled_from(ODD)))
            continue
        holder, key = draw(st.sampled_from(found))
        if how == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
    return body


@st.composite
def broken(draw: st.DrawFn, text: bytes) -> bytes:
    """A body that is cut, or has bytes in it that do not belong there."""
    at = draw(st.integers(0, len(text)))
    junk = draw(
        st.sampled_from([b"", b"\xff", b"\x00", b"\xed\xa0\x80", b'"', b"}", b"]", b",", b"NaN", b"\\ud800", b"1e999"])
    )
    return text[:at] + junk + draw(st.sampled_from([text[at:], b""]))


def check(path: str, response: httpx.Response, sent: object) -> None:
    where = f"{path} {str(sent)[:500]!r}: {response.status_code} {response.text[:500]}"
    assert response.status_code < 500, where
    assert response.headers["x-request-id"], where
    assert "internal server error" not in response.text, where
    if response.status_code < 400:
        return
    assert response.headers["x-should-retry"] == "false", where
    body = response.json()
    if path.startswith("/v1/messages"):
        assert (body["type"], body["request_id"]) == ("error", response.headers["request-id"]), where
        assert body["error"].keys() - {"hint", "details"} == {"type", "message"}, where
    elif path.startswith("/v1/"):
        assert body["error"].keys() - {"hint"} == {"message", "type", "param", "code"}, where
    else:
        assert body.keys() - {"hint"} == {"error"}, where
    message = body["error"] if isinstance(body["error"], str) else body["error"]["message"]
    assert message, where
    assert len(response.content) < 10_000, where


def with_bodies(server: Any) -> list[Operation]:
    """All routes that read a body have one described; `test_openapi.py` sees to that."""
    found = operations(server.uvicorn.config.app.routes)
    return [one for one in found if one.description and one.description.body]


BOUNDED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def test_no_body_of_the_wrong_shape_is_a_failure(example_server: Any, install_examples: Any) -> None:
    found = with_bodies(example_server)

    schemas = example_server.client.get("/openapi.json").json()["components"]["schemas"]
    fields = sorted({name for schema in schemas.values() for name in schema.get("properties", {})})

    @settings(BOUNDED, max_examples=NUM_CASES)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(found))
        assert operation.description is not None
        example = data.draw(st.sampled_from(operation.description.examples))
        body = data.draw(mutated(example.body, fields))
        path = operation.path.format(**example.path)
        content = json.dumps(body).encode()
        check(path, example_server.client.request(operation.method, path, content=content), content)
        if operation.method == "DELETE":
            install_examples(example_server)

    fuzz()


def test_no_bytes_are_a_failure(example_server: Any) -> None:
    found = [one for one in with_bodies(example_server) if one.method != "DELETE"]

    @settings(BOUNDED, max_examples=NUM_CASES // 2)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(found))
        assert operation.description is not None
        example = data.draw(st.sampled_from(operation.description.examples))
        content = data.draw(broken(json.dumps(example.body).encode()))
        path = operation.path.format(**example.path)
        check(path, example_server.client.request(operation.method, path, content=content), content)

    fuzz()
