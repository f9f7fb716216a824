"""Request bodies: JSON whatever the Content-Type says, checked into a pydantic shape, errors naming the field.

Bytes are bounded while they are read (the setting `max_body_size`, which the app hands to its routes). What bytes alone
do not bound is counted before anything is made of them: two bytes of JSON (`[]`) are a hundred in memory.
"""

import asyncio
import re
from typing import Annotated, Any, TypeVar

from litestar import Request
from litestar.exceptions import InternalServerException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, from_json

from vmm_server.durations import parse_keep_alive
from vmm_server.errors import InvalidRequest, RequestCancelled
from vmm_server.requests import KeepAlive

MAX_CONTAINERS = 200_000
"""Arrays and objects in a body."""
MAX_MEMBERS = 2_000_000
"""Elements of arrays and members of objects in a body, and strings: token ids of a long context are what needs them."""
_LONG_BYTES = 256 * 1024
"""From here on a body is not read on the event loop."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def _fail_fast(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for key, part in schema.items():
            if key != "metadata":
                _fail_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class Wire(BaseModel):
    """Base of every request shape: unknown fields are ignored, types are not coerced, NaN is refused."""

    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Stops at the first wrong element of an array: a million of them would be gathered for minutes."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _keep_alive(value: object) -> KeepAlive | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be seconds or a duration such as 5m")
    return parse_keep_alive(value)


def one_or_many(value: object) -> object:
    """A string is an array of one. Raises `ValueError` for what is neither."""
    if not isinstance(value, str | list):
        raise ValueError("must be a string or an array of strings")
    return [value] if isinstance(value, str) else value


Integer = Annotated[int, BeforeValidator(_integral)]
"""A whole number; `8192.0` is one, as several clients write it."""
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
"""Logits are multiplied or divided by it; far beyond these bounds none of them is a number any more."""
Duration = Annotated[KeepAlive | None, PlainValidator(_keep_alive, json_schema_input_type=float | str)]
"""`keep_alive`: a number of seconds or a Go duration."""
Strings = Annotated[list[str], BeforeValidator(one_or_many, json_schema_input_type=str | list[str])]
"""One string or an array of them."""

Shape = TypeVar("Shape", bound=Wire)


def field_path(location: tuple[int | str, ...], inside: str = "") -> str:
    """`("messages", 0, "role")` → `messages[0].role`."""
    path = inside
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


_PLAIN = {"model_type": "input should be an object", "dict_type": "input should be an object"}
"""Where pydantic speaks of Python's types."""


def invalid_request(error: ValidationError, inside: str = "", sent: object = None) -> InvalidRequest:
    """The first thing wrong with a body, or with what is `inside` one of its fields, in a sentence that names it.

    `sent` is the JSON itself; with it, the forms that a field may have are told together.
    """
    found = error.errors(include_url=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(first["msg"])
    place = _place(first, sent)
    path = field_path(place, inside)
    message = _said(first)
    for other in found[1:] if sent is not None else ():
        if _place(other, sent) == place and message.startswith(_SHOULD) and _said(other).startswith(_SHOULD):
            message += f" or {_said(other).removeprefix(_SHOULD)}"
    return InvalidRequest(f"{path}: {message}" if path else message, param=path or None)


_SHOULD = "input should be "


def _said(error: ErrorDetails) -> str:
    reason = error.get("ctx", {}).get("error") if error["type"] == "value_error" else None
    return str(reason) if reason else _PLAIN.get(error["type"]) or error["msg"][:1].lower() + error["msg"][1:]


def _place(error: ErrorDetails, sent: object) -> tuple[int | str, ...]:
    """Where it is in what was sent: pydantic also names the branches of a union, which nobody wrote."""
    if sent is None:
        return error["loc"]
    place: list[int | str] = []
    for part in error["loc"]:
        if (isinstance(sent, dict) and part in sent) or (isinstance(sent, list) and isinstance(part, int)):
            sent = sent[part]  # type: ignore[index]
            place.append(part)
    return (*place, error["loc"][-1]) if error["type"] == "missing" else tuple(place)


def parse_body(raw: bytes, shape: type[Shape]) -> Shape:
    """Check a body. Raises `InvalidRequest` for no body, malformed JSON, a missing field or a wrong type, and for more
    in it than anybody can mean."""
    if not raw.strip():
        raise InvalidRequest("missing request body")
    _check_counts(raw)
    try:
        return shape.model_validate_json(raw)
    except ValidationError as error:
        sent = from_json(raw) if error.error_count() > 1 else None
        raise invalid_request(error, sent=sent) from error


def _check_counts(raw: bytes) -> None:
    """Counts signs, and looks at what is text among them only where they are many."""
    if len(raw) <= MAX_CONTAINERS:
        return
    if raw.count(b'"') > 2 * MAX_MEMBERS:
        raise InvalidRequest(f"the body has more than {MAX_MEMBERS} strings")
    for is_plain in (False, True):
        signs = _STRING.sub(b"", raw) if is_plain else raw
        has_many_containers = signs.count(b"[") + signs.count(b"{") > MAX_CONTAINERS
        has_many_members = signs.count(b",") > MAX_MEMBERS
        if not (has_many_containers or has_many_members):
            return
    what = f"{MAX_CONTAINERS} arrays and objects" if has_many_containers else f"{MAX_MEMBERS} elements"
    raise InvalidRequest(f"the body has more than {what}")


def refuse_compressed(request: Request[Any, Any, Any]) -> None:
    """Raises `InvalidRequest` for a body that is not sent as it is."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise InvalidRequest(f"Content-Encoding {encoding} is not supported", hint="send the body uncompressed")


async def read_body(request: Request[Any, Any, Any], shape: type[Shape]) -> Shape:
    """Read and check a request's body; `curl -d` without a Content-Type is welcome.

    Raises `InvalidRequest`; `RequestCancelled` when the client leaves in the middle of it; Litestar's 413 beyond
    `max_body_bytes`, at the `Content-Length` already if there is one.
    """
    refuse_compressed(request)
    try:
        raw = await request.body()
    except InternalServerException as error:  # Litestar's word for that, and for nothing else here
        raise RequestCancelled from error
    if len(raw) > _LONG_BYTES:
        return await asyncio.to_thread(parse_body, raw, shape)
    return parse_body(raw, shape)


def max_body_bytes(request: Request[Any, Any, Any]) -> int:
    """What a body may have on the route of this request: the setting `max_body_size`."""
    return request.route_handler.resolve_request_max_body_size() or 0
