"""`input` → items in the form in which they are kept and listed. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from vmm_server.api.body import field_path, invalid_request
from vmm_server.api.limits import MAX_MESSAGES
from vmm_server.api.openai.responses.wire import InputItem, Part
from vmm_server.errors import InvalidRequest, UnsupportedParameter

Json = dict[str, object]
Value = TypeVar("Value")
NewId = Callable[[str], str]
"""A new id that begins with this (`msg`)."""

_ITEM = TypeAdapter(InputItem)
_PARTS = TypeAdapter(list[Part])
_FIELDS = {"refusal": "refusal", "input_image": "image_url"}
"""What a part has to have by its type; the others have a text."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a conversation."""

    body: Json
    """As OpenAI's API lists it; it has an `id`."""
    where: str = "input"
    """The request field it came in; errors name it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands for an item that is stored."""

    id: str
    where: str


def read_input(value: object, new_id: NewId) -> list[Item | Reference]:
    """The items of `input`; none when it was left out.

    Raises `InvalidRequest` naming the place, and `UnsupportedParameter` for items and parts that are no text.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [Item(_message("user", [_text_part("user", value)], new_id("msg"), None))]
    if not isinstance(value, list):
        raise InvalidRequest("input: must be a string or an array of items", param="input")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"input: {len(value)} items, the limit is {MAX_MESSAGES}", param="input")
    return [_read_item(one, field_path(("input", index)), new_id) for index, one in enumerate(value)]


def _read_item(value: object, where: str, new_id: NewId) -> Item | Reference:
    try:
        wire = _ITEM.validate_python(value)
    except ValidationError as error:
        raise invalid_request(error, where) from error
    match wire.type or ("message" if wire.role or wire.id is None else "item_reference"):
        case "message":
            return Item(_read_message(wire, where, new_id), where)
        case "function_call":
            return Item(_read_call(wire, where, new_id), where)
        case "function_call_output":
            return Item(_read_call_output(wire, where, new_id), where)
        case "reasoning":
            return Item(_read_reasoning(wire, where, new_id), where)
        case "item_reference":
            return Reference(_required(wire.id, f"{where}.id"), where)
        case other:
            param = f"{where}.type"
            raise UnsupportedParameter(f"{param}: {other[:100]!r} items are not supported", param=param)


def _read_message(wire: InputItem, where: str, new_id: NewId) -> Json:
    role = _required(wire.role, f"{where}.role")
    shown = ("input_image",) if role == "user" else ()
    content = _read_parts(wire.content, f"{where}.content", ("input_text", "output_text", "refusal", *shown))
    parts = [_part(role, part) for part in content]
    return _message(role, parts, wire.id or new_id("msg"), wire.status)


def _read_call(wire: InputItem, where: str, new_id: NewId) -> Json:
    return {
        "id": wire.id or new_id("fc"),
        "type": "function_call",
        "status": wire.status or "completed",
        "call_id": _required(wire.call_id, f"{where}.call_id"),
        "name": _required(wire.name, f"{where}.name"),
        "arguments": _required(wire.arguments, f"{where}.arguments"),
    }


def _read_call_output(wire: InputItem, where: str, new_id: NewId) -> Json:
    path = f"{where}.output"
    output = wire.output
    if not isinstance(output, str):
        parts = _read_parts(_required(output, path), path, ("input_text",))
        output = [{"type": "input_text", "text": part.text} for part in parts]
    return {
        "id": wire.id or new_id("fco"),
        "type": "function_call_output",
        "status": wire.status or "completed",
        "call_id": _required(wire.call_id, f"{where}.call_id"),
        "output": output,
    }


def _read_reasoning(wire: InputItem, where: str, new_id: NewId) -> Json:
    """Encrypted content is of another server's making, and nobody here can read it."""
    content = _read_parts(wire.content or [], f"{where}.content", ("reasoning_text",))
    summary = _read_parts(wire.summary or [], f"{where}.summary", ("summary_text",))
    return {
        "id": wire.id or new_id("rs"),
        "type": "reasoning",
        "status": wire.status or "completed",
        "summary": [{"type": "summary_text", "text": part.text} for part in summary],
        "content": [{"type": "reasoning_text", "text": part.text} for part in content],
    }


def _read_parts(value: object, where: str, types: Sequence[str]) -> list[Part]:
    """A string as one part, or an array of parts, each with what its type says."""
    if isinstance(value, str):
        return [Part(type=types[0], text=value)]
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: must be a string or an array of parts", param=where)
    try:
        parts = _PARTS.validate_python(value)
    except ValidationError as error:
        raise invalid_request(error, where) from error
    for index, part in enumerate(parts):
        path = f"{where}[{index}]"
        if part.type not in types:
            message = f"{path}: {part.type[:100]!r} parts are not supported here, only {', '.join(types)}"
            raise UnsupportedParameter(message, param=path)
        field = _FIELDS.get(part.type, "text")
        _required(getattr(part, field), f"{path}.{field}")
    return parts


def _message(role: str, parts: list[Json], item_id: str, status: str | None) -> Json:
    return {"id": item_id, "type": "message", "status": status or "completed", "role": role, "content": parts}


def _part(role: str, part: Part) -> Json:
    match part.type:
        case "refusal":
            return {"type": "refusal", "refusal": part.refusal}
        case "input_image":
            return {"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"}
        case _:
            return _text_part(role, part.text or "")


def _text_part(role: str, text: str) -> Json:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _required(value: Value | None, where: str) -> Value:
    if value is None:
        raise InvalidRequest(f"{where}: field required", param=where)
    return value
