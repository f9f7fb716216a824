"""Answers as models write them → text and calls, however the text is cut."""

import itertools
import json
import random
from collections.abc import Sequence

import pytest

from vmm_server.prompt.formats.base import Arguments, CallStart, Part, Text, ToolParser
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.requests import Tool

WEATHER = json.dumps(
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "where": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "zip": {"type": ["string", "null"]},
        },
    }
)
TOOLS = (Tool("get_weather", parameters=WEATHER), Tool("now"), Tool("a.b-c"))

Call = tuple[str, str]
"""Name, arguments."""


def parser(format: str) -> ToolParser:
    return TOOL_FORMATS[format].parser(TOOLS)


def joined(parts: Sequence[Part]) -> list[str | Call]:
    """Texts and calls, with the pieces of each put together."""
    found: list[str | Call] = []
    for part in parts:
        last = found[-1] if found else None
        match part:
            case Text(text):
                assert text
                if isinstance(last, str):
                    found[-1] = last + text
                else:
                    found.append(text)
            case CallStart(name):
                found.append((name, ""))
            case Arguments(text):
                assert isinstance(last, tuple), "arguments without a call"
                found[-1] = (last[0], last[1] + text)
    return found


def read(format: str, text: str, cuts: Sequence[int] = ()) -> list[str | Call]:
    """The joined parts of a text that comes in pieces."""
    reader = parser(format)
    edges = [0, *sorted(cuts), len(text)]
    parts = [part for start, end in itertools.pairwise(edges) for part in reader.push(text[start:end])]
    return joined([*parts, *reader.finish()])


PARIS = ("get_weather", '{"city": "Paris", "days": 3}')
NOW = ("now", "{}")

HERMES = [
    ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>', [PARIS]),
    ('<tool_call>{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}</tool_call>', [PARIS]),
    (
        'Let me see. \n\n<tool_call>\n{"name": "now"}\n</tool_call>\n<tool_call>{"name": "now"}</tool_call>\n ok ',
        ["Let me see.", NOW, NOW, "ok "],
    ),
    (
        '<tool_call>[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {"a": [{}, 2]}}]</tool_call>',
        [NOW, ("now", '{"a": [{}, 2]}')],
    ),
    (
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>',
        [PARIS],
    ),
    ('<tool_call>{"name": "now"}</tool_call>', [NOW]),
    ('<tool_call>{"name": "now", "arguments": null}</tool_call>', [NOW]),
    ('<tool_call>{"name": "now", "arguments": ""}</tool_call>', [NOW]),
    ('<tool_call>{"name": "now", "parameters": {}, "id": [1, {"x": "}"}]}</tool_call>', [NOW]),
    # without the last brace, or the end tag
    ('<tool_call>{"name": "now", "arguments": {}\n</tool_call>', [NOW]),
    ('<tool_call>{"name": "now", "arguments": {}}', [NOW]),
    ('<tool_call>{"name": "now", "arguments": {}', [NOW]),
    # line breaks and needless backslashes in strings are mended
    (
        '<tool_call>{"name": "now", "arguments": {"a": "x\ny\\d\\\'\\u00e9"}}</tool_call>',
        [("now", '{"a": "x\\ny\\\\d\'\\u00e9"}')],
    ),
    # cut off
    (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa\\u00',
        [("get_weather", '{"city": "Pa')],
    ),
    ('<tool_call>{"name": "get_weather", "arguments": {"days": tr', [("get_weather", '{"days": ')]),
    ('ok <tool_call>{"name": "get_we', ['ok <tool_call>{"name": "get_we']),
    ("ok <tool_ca", ["ok <tool_ca"]),
    # no calls
    ("", []),
    ("  \n", ["  \n"]),
    ("a < b <tool> c", ["a < b <tool> c"]),
    (
        'x\n<tool_call>{"name": "nope", "arguments": {}}</tool_call>\n',
        ['x\n<tool_call>{"name": "nope", "arguments": {}}</tool_call>\n'],
    ),
    ("<tool_call>now()</tool_call>", ["<tool_call>now()</tool_call>"]),
    ("<tool_call>[]</tool_call>", ["<tool_call>[]</tool_call>"]),
    ('<tool_call>{"name": 7}</tool_call>', ['<tool_call>{"name": 7}</tool_call>']),
    ('<tool_call>{"name": "now", "arguments": [1]}', ['<tool_call>{"name": "now", "arguments": [1]}']),
    ('<tool_call>{"arguments": {}}</tool_call>', ['<tool_call>{"arguments": {}}</tool_call>']),
    # a call after what was none
    ('<tool_call> \n <tool_call>{"name": "now"}</tool_call>', ["<tool_call> \n ", NOW]),
    ('<tool_<tool_call>{"name": "now"}</tool_call>', ["<tool_", NOW]),
    # broken in the middle: what was given out stays, the rest is text
    ('<tool_call>{"name": "now", "arguments": {"a": 1, b}}</tool_call>', [("now", '{"a": 1, '), "b}}</tool_call>"]),
]

CASES = [("hermes", *case) for case in HERMES]


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
def test_answers_are_read(format: str, text: str, expected: list[str | Call]) -> None:
    assert read(format, text) == expected


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
def test_the_cut_does_not_matter(format: str, text: str, expected: list[str | Call]) -> None:
    assert read(format, text, range(1, len(text))) == expected
    for cut in range(len(text)):
        assert read(format, text, [cut]) == expected
    rng = random.Random(text)
    for _ in range(20):
        assert read(format, text, rng.choices(range(len(text) + 1), k=rng.randint(1, 6))) == expected
