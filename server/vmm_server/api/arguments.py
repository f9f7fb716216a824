"""A tool call's arguments, from JSON text to a JSON object on the wire. Pure."""

import json

import msgspec
from pydantic_core import from_json


def whole_object(text: str) -> msgspec.Raw | None:
    """The object that `text` spells, to the letter, line breaks aside: order, large numbers, spelling.

    `None` when it is no object: the answer was cut off in its middle.
    """
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    one_line = text.replace("\n", " ").replace("\r", " ")  # JSON has raw ones between tokens only, and NDJSON none
    return msgspec.Raw(one_line.encode())


def begun_object(text: str) -> msgspec.Raw:
    """The object that `text` spells or begins: of one that was cut off, what had come whole."""
    if (whole := whole_object(text)) is not None:
        return whole
    try:
        begun = from_json(text, allow_inf_nan=False, allow_partial=True)
    except ValueError:
        begun = None
    return msgspec.Raw(json.dumps(begun if isinstance(begun, dict) else {}).encode())
