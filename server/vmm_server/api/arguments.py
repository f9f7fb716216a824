"""A tool call's arguments, from JSON text to a JSON object on the wire. Pure."""

import json

import msgspec
from pydantic_core import from_json


def arguments_object(text: str) -> msgspec.Raw:
    """The object that `text` spells, to the letter: order, large numbers and spelling are kept.

    Of arguments that were cut off it is what had come whole; of what is no object, an empty one.
    """
    try:
        if isinstance(from_json(text, allow_inf_nan=False), dict):
            return msgspec.Raw(text.encode())
    except ValueError:
        pass
    try:
        begun = from_json(text, allow_inf_nan=False, allow_partial=True)
    except ValueError:
        begun = None
    return msgspec.Raw(json.dumps(begun if isinstance(begun, dict) else {}).encode())
