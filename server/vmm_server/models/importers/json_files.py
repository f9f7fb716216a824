"""Configuration files of model folders, checked."""

import json
import math
from pathlib import Path

from vmm_server.errors import CorruptFile

_MAX_BYTES = 64 * 1024**2
_MAX_CONTAINERS = 2_000_000
"""Arrays and objects, of 60 bytes and more each; the largest tokenisers have a million (their merges)."""


def read_json_object(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises `CorruptFile` when it is missing, unreadable or no object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CorruptFile(f"{path}: is no JSON object", hint="fetch it again")
    return content


def read_json(path: Path) -> object:
    """What a JSON file holds. Raises `CorruptFile` when it is missing or unreadable."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptFile(f"{path}: is larger than any configuration", hint="fetch it again")
        text = path.read_text("utf-8")
        if text.count("[") + text.count("{") > _MAX_CONTAINERS:
            raise CorruptFile(f"{path}: has more arrays and objects than any configuration", hint="fetch it again")
        content: object = json.loads(text)
    except FileNotFoundError as error:
        raise CorruptFile(f"{path}: is missing", hint="fetch the whole folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: cannot be read: {error}", hint="fetch it again") from error
    return content


def positive(value: object, path: Path, key: str) -> int:
    """A whole number of at least 1. Raises `CorruptFile` naming the key."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CorruptFile(
            f"{path}: {key} is {value!r}, a positive number is expected", hint=f"add {key} to {path.name}"
        )
    return value


def number(value: object, path: Path, key: str, default: float | None = None, *, signed: bool = False) -> float:
    """A finite number, positive unless it is `signed`; `default` stands in for `None`. Raises `CorruptFile`."""
    value = default if value is None else value
    least = -math.inf if signed else 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < math.inf:
        what = "a number" if signed else "a positive number"
        raise CorruptFile(f"{path}: {key} is {value!r}, {what} is expected", hint=f"mend {path.name}")
    return float(value)
