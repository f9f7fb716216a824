"""Names of a form's fields → what they stand for: SDKs write lists and objects with brackets. Pure."""

import re
from collections.abc import Sequence
from typing import Any

from vmm_server.errors import InvalidRequest

MAX_DEPTH = 5
"""A name, and what is in brackets after it."""
_NAME = re.compile(r"(?P<root>[^\[\]]+)(?P<keys>(?:\[[^\[\]]*\])*)")
_KEY = re.compile(r"\[([^\[\]]*)\]")


def nested(fields: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Fields by name: `a[]` and what comes several times as a list, `a[b]` as a mapping.

    Raises `InvalidRequest` for a name that is sent in two forms, or holds too much.
    """
    found: dict[str, Any] = {}
    for name, value in fields:
        path = _path(name)
        if len(path) > MAX_DEPTH:
            raise InvalidRequest(f"{name}: nested too deeply", param=path[0])
        try:
            _put(found, path, value)
        except _Clash as error:
            raise InvalidRequest(f"{name}: sent in two forms", param=path[0]) from error
    return found


class _Clash(Exception):
    """A name is a value and holds others."""


def _path(name: str) -> list[str]:
    match = _NAME.fullmatch(name)
    if match is None:
        return [name]
    return [match["root"], *_KEY.findall(match["keys"])]


def _put(into: dict[str, Any], path: Sequence[str], value: str) -> None:
    makes_list = len(path) > 1 and not path[-1]
    *parents, last = path[:-1] if makes_list else path
    for key in parents:
        into = into.setdefault(key, {})
        if not isinstance(into, dict):
            raise _Clash
    if last not in into:
        into[last] = [value] if makes_list else value
    elif isinstance(into[last], dict):
        raise _Clash
    elif isinstance(into[last], list):
        into[last].append(value)
    else:
        into[last] = [into[last], value]
