"""Forms: fields by their SDKs' spellings, files on the disk, bounds, and whose files they are."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Litestar, Request, post
from litestar.testing import TestClient
from litestar.types import ASGIApp
from pydantic import Field

from vmm_server.api.body import Integer, Strings, Wire
from vmm_server.api.errors import respond
from vmm_server.api.form_fields import nested
from vmm_server.api.multipart import SPOOL_BYTES, Form, FormLimits, answer_form, is_form
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.errors import InvalidRequest

LIMITS = FormLimits(3 * SPOOL_BYTES, max_files=2, max_fields=10, max_field_bytes=1000, setting="max_audio_bytes")


class Fields(Wire):
    """Of the form under test."""

    name: str
    number: float | None = None
    count: Integer | None = None
    yes: bool = False
    many: Strings = Field(default_factory=list)
    inner: dict[str, str] | None = None


class Server:
    """Answers with what it read; remembers forms."""

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.fails_late = False

        @post("/", request_max_body_size=None)
        async def read(request: Request[Any, Any, Any]) -> ASGIApp:
            return await answer_form(request, LIMITS, self.answer)

        @post("/is")
        async def is_one(request: Request[Any, Any, Any]) -> dict[str, bool]:
            return {"form": is_form(request)}

        self.app = Litestar(
            [read, is_one], exception_handlers={Exception: respond}, openapi_config=None, logging_config=None
        )

    def answer(self, form: Form) -> ASGIApp:
        self.forms.append(form)
        fields = form.parse(Fields)
        files = form.files_of("file", "image")

        async def work() -> WholeAnswer:
            if self.fails_late:
                raise InvalidRequest("too late")
            contents = await asyncio.to_thread(lambda: [file.content.read() for file in files])
            shown = [
                [file.field, file.filename, file.content_type, file.size_bytes, len(content)]
                for file, content in zip(files, contents, strict=True)
            ]
            return WholeAnswer({"fields": fields.model_dump(exclude_defaults=True), "files": shown})

        return json_response(work)

    def all_closed(self) -> bool:
        return all(file.content.closed for form in self.forms for file in form.files)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Iterator[TestClient[Litestar]]:
    with TestClient(server.app) as client:
        yield client


def send(client: TestClient[Litestar], *files: tuple[str, Any], **fields: Any) -> httpx.Response:
    response: httpx.Response = client.post("/", data={"name": "a", **fields}, files=[("file", ("x", b"")), *files])
    return response


def test_fields_become_what_their_shape_wants(client: TestClient[Litestar]) -> None:
    fields = {"number": "0.5", "count": "3", "yes": "true", "many[]": ["x", "y"], "inner[b]": "c"}
    assert send(client, **fields).json()["fields"] == {
        "name": "a",
        "number": 0.5,
        "count": 3,
        "yes": True,
        "many": ["x", "y"],
        "inner": {"b": "c"},
    }
    assert send(client, number="", count="", yes="").json()["fields"] == {"name": "a"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"number": "warm"}, "number"),
        ({"number": "nan"}, "number"),
        ({"yes": "maybe"}, "yes"),
        ({"name": ["a", "b"]}, "name"),
        ({"inner": "x"}, "inner"),
        ({"inner[a][b][c][d][e]": "x"}, "inner"),
        ({"inner": "x", "inner[b]": "c"}, "inner"),
        ({"name": "x" * 2000}, "name"),
        ({"name": b"\xff"}, "name"),
    ],
)
def test_a_wrong_field_is_named(
    server: Server, client: TestClient[Litestar], fields: dict[str, Any], param: str
) -> None:
    response = send(client, **fields)
    assert response.status_code == 400
    assert response.text.startswith(f"{param}")
    assert server.all_closed()


@pytest.mark.parametrize("size", [0, 1, SPOOL_BYTES - 1, SPOOL_BYTES, SPOOL_BYTES + 1, 3 * SPOOL_BYTES])
def test_files_of_any_size_come_whole(server: Server, client: TestClient[Litestar], size: int) -> None:
    response = send(client, ("image", ("a.png", b"\r\n--" * (size // 4) + b"x" * (size % 4), "image/png")))
    assert response.json()["files"] == [
        ["file", "x", "application/octet-stream", 0, 0],
        ["image", "a.png", "image/png", size, size],
    ]
    assert server.all_closed()


def test_limits_are_named(server: Server, client: TestClient[Litestar]) -> None:
    big = send(client, ("image", ("a", b"x" * (3 * SPOOL_BYTES + 1))))
    assert (big.status_code, big.text) == (400, "file: more than 3.0MiB, which is the limit")
    assert send(client, ("file", ("a", b"")), ("image", ("b", b""))).text == "image: more than 2 files in a request"
    assert "more than 2 files and 10 fields" in send(client, many=["x"] * 12).text
    assert server.all_closed()


def test_what_is_no_part_of_the_form_is_bounded_too(client: TestClient[Litestar]) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\na\r\n--b--\r\n'
    for content in ([part, bytes(100)], [part, *[bytes(SPOOL_BYTES)] * 4]):
        response = client.post("/", content=iter(content), headers=kind)
        assert response.status_code == (200 if len(content) == 2 else 400)
    assert response.text == "file: more than 3.0MiB, which is the limit"


def test_a_body_that_says_it_is_too_long_is_refused_at_once(client: TestClient[Litestar]) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(2**40)}
    assert client.post("/", content=b"--b--", headers=headers).text == "file: more than 3.0MiB, which is the limit"


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (None, b"", "missing request body: it must be multipart/form-data"),
        ("application/json", b"{}", "must be multipart/form-data, not application/json"),
        ("application/x-www-form-urlencoded", b"a=b", "not application/x-www-form-urlencoded"),
        ("multipart/form-data", b"--b--", "with a boundary"),
        ("multipart/form-data; boundary=b", b"", "damaged or cut off"),
        ("multipart/form-data; boundary=b", b"no part", "damaged or cut off"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1', "cut off"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Type: text/plain\r\n\r\n1\r\n--b--", "damaged"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 9000, "damaged or cut off"),
    ],
)
def test_what_is_no_form_is_refused(client: TestClient[Litestar], kind: str | None, body: bytes, said: str) -> None:
    response = client.post("/", content=body, headers={"content-type": kind} if kind else {})
    assert response.status_code == 400
    assert said in response.text or "long headers" in response.text


def test_files_are_closed_whatever_happens_to_the_answer(server: Server, client: TestClient[Litestar]) -> None:
    server.fails_late = True
    big = ("image", ("a", b"x" * (2 * SPOOL_BYTES)))
    assert send(client, big).text == "too late"
    assert send(client, big, number="warm").status_code == 400
    assert len(server.forms) == 2
    assert server.all_closed()


def test_a_form_is_not_compressed(client: TestClient[Litestar]) -> None:
    response = client.post("/", files={"file": b""}, headers={"content-encoding": "gzip"})
    assert (response.status_code, response.text) == (400, "Content-Encoding gzip is not supported")


def test_a_form_is_told_from_json(client: TestClient[Litestar]) -> None:
    assert client.post("/is", files={"a": b""}).json() == {"form": True}
    assert client.post("/is", json={}).json() == {"form": False}


NAMES = st.text("ab[]", max_size=6)


@given(st.lists(st.tuples(NAMES, st.text(max_size=3)), max_size=6))
def test_any_names_nest_or_are_refused(fields: Sequence[tuple[str, str]]) -> None:
    try:
        found = nested(fields)
    except InvalidRequest:
        return
    assert sorted(leaves(found)) == sorted(value for _, value in fields)


def leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        assert isinstance(value, str)
        yield value


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([("a", "1")], {"a": "1"}),
        ([("a", "1"), ("a", "2")], {"a": ["1", "2"]}),
        ([("a[]", "1")], {"a": ["1"]}),
        ([("a[]", "1"), ("a[]", "2"), ("a", "3")], {"a": ["1", "2", "3"]}),
        ([("a[b]", "1"), ("a[c][]", "2"), ("a[d][e]", "3")], {"a": {"b": "1", "c": ["2"], "d": {"e": "3"}}}),
        ([("a[", "1"), ("]", "2"), ("", "3")], {"a[": "1", "]": "2", "": "3"}),
    ],
)
def test_names_with_brackets_nest(fields: list[tuple[str, str]], found: dict[str, object]) -> None:
    assert nested(fields) == found
