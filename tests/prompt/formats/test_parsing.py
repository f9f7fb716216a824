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
Cases = list[tuple[str, list[str | Call]]]


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

HERMES: Cases = [
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
    ('<tool_call>{"name": "now"}\n</tool_', [NOW]),
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

LLAMA3_JSON: Cases = [
    ('{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', [PARIS]),
    ('\n <|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', [PARIS]),
    ('{"name": "now", "parameters": {}}; {"name": "now", "arguments": {}}\n{"name": "now"}', [NOW, NOW, NOW]),
    ('{"type": "function", "name": "now", "parameters": {}}', [NOW]),
    ('{"type": "function", "function": {"name": "now", "parameters": {}}}', [NOW]),
    ('{"type": "function", "function": "now", "parameters": {}}', [NOW]),
    ('{"type": "object", "function": {"x": 1}}', ['{"type": "object", "function": {"x": 1}}']),
    ('I call\n{"name": "now", "parameters": {}}\nNow.', ["I call", NOW, "Now."]),
    ('{"answer": {"name": "now"}}', ['{"answer": ', NOW, "}"]),
    ('{"name": "nope", "parameters": {"name": "now"}}', ['{"name": "nope", "parameters":', NOW, "}"]),
    ("{} { {'a'", ["{} { {'a'"]),
    ('<|python_tag|>brave_search.call(query="x")', ['<|python_tag|>brave_search.call(query="x")']),
    ('{"name": "get_weather", "parameters": {"ci', [("get_weather", '{"ci')]),
]

PYTHONIC: Cases = [
    ('[get_weather(city="Paris", days=3)]', [PARIS]),
    ("[now(), get_weather(city='Paris', days=3,), now( )]", [NOW, PARIS, NOW]),
    ('<|python_start|>[get_weather(**{"city": "Paris", "days": 3})]<|python_end|>', [PARIS]),
    (
        "[get_weather(tags=['a\\'b', \"c\\n\\x41\\u00e9\\d\", '', '''''', ''' '' '''])]",
        [("get_weather", '{"tags": ["a\'b", "c\\nA\\u00e9\\\\d", "", "", " \'\' "]}')],
    ),
    (
        "[get_weather(exact=True, zip=None, where={'x': (1, -2.5), \"y\": {}}, days=1_000)]",
        [("get_weather", '{"exact": true, "zip": null, "where": {"x": [1, -2.5], "y": {}}, "days": 1000}')],
    ),
    ("[get_weather(days=.5, where=1e400)]", [("get_weather", '{"days": 0.5, "where": 1e400}')]),
    ("[get_weather(days=1_0e400)]", [("get_weather", '{"days": '), "1_0e400)]"]),
    ("[get_weather(tags=['a' 'b'])]", [("get_weather", '{"tags": ["a"'), " 'b'])]"]),
    ("Well: [now()] done", ["Well:", NOW, "done"]),
    ("[a](b) [1] [now] [nope()] [", ["[a](b) [1] [now] [nope()] ["]),
    ("[a.b-c()]", [("a.b-c", "{}")]),
    ('[get_weather(city="Par', [("get_weather", '{"city": "Par')]),
    ('[get_weather(city="Paris"', [("get_weather", '{"city": "Paris"')]),
    ("[now(", [("now", "{")]),
    ("[no", ["[no"]),
    ("[get_weather(city=where())]", [("get_weather", '{"city": '), "where())]"]),
]

MISTRAL: Cases = [
    ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, "id": "abc123def"}]', [PARIS]),
    ('[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', [NOW, NOW]),
    ('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[ARGS]{}', [PARIS, NOW]),
    ('[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{"city": "Paris", "days": 3}', [PARIS]),
    ('Let me see.[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}', ["Let me see.", PARIS]),
    ("[TOOL_CALLS]nope[ARGS]{}", ["[TOOL_CALLS]nope[ARGS]{}"]),
    ("[TOOL_CALLS]now[ARGS]7", ["[TOOL_CALLS]now[ARGS]7"]),
    ('[TOOL_CALLS]get_weather[ARGS]{"city": "Pa', [("get_weather", '{"city": "Pa')]),
    ("[TOOL_CALLS]get_we", ["[TOOL_CALLS]get_we"]),
    ("[TOOL", ["[TOOL"]),
]

GEMMA: Cases = [
    ("<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>", [PARIS]),
    (
        "<start_function_call>call:now{}<end_function_call><start_function_call>call:now{}<end_function_call>",
        [NOW, NOW],
    ),
    ('<start_function_call>call:get_weather{"city": "Paris", "days": 3}<end_function_call>', [PARIS]),
    (
        '<start_function_call>call:get_weather{city:<escape>a"b,{\n<escape>,exact:true,tags:[<escape>x<escape>,y z]}',
        [("get_weather", '{"city": "a\\"b,{\\n", "exact": true, "tags": ["x", "y z"]}')],
    ),
    (
        "<start_function_call>call:get_weather{where:{<escape>k<escape>:[],l:{m:-1.5e3}},zip:null}",
        [("get_weather", '{"where": {"k": [], "l": {"m": -1.5e3}}, "zip": null}')],
    ),
    ("<start_function_call>call:nope{}<end_function_call>", ["<start_function_call>call:nope{}<end_function_call>"]),
    ("<start_function_call>call:get_weather{city:<escape>Par<esc", [("get_weather", '{"city": "Par')]),
    ("<start_function_call>call:get_weather{city:Par", [("get_weather", '{"city": ')]),
]

GEMMA4: Cases = [('<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', [PARIS])]

PHI: Cases = [
    ('<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]<|/tool_call|>', [PARIS]),
    ('functools[{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', [NOW, NOW]),
    ("import functools\nfunctools[0] functools", ["import functools\nfunctools[0] functools"]),
]

GRANITE: Cases = [
    ('<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]', [PARIS]),
    ('<tool_call>[{"arguments": {}, "name": "now"}, {"name": "now"}]', [NOW, NOW]),
    ('<|tool_call|> {"name": "now", "arguments": {}}\n', [NOW]),
]

QWEN3_CODER: Cases = [
    (
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n</function>\n</tool_call>"
        ),
        [PARIS],
    ),
    (
        (
            "Well.\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
        ),
        ["Well.", PARIS, NOW],
    ),
    ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>', [PARIS]),
    (
        '<tool_call><function=get_weather><parameter=city>\n\na "b"\n<x></para\n\n</parameter></function>',
        [("get_weather", '{"city": "\\na \\"b\\"\\n<x></para\\n"}')],
    ),
    (
        (
            "<tool_call><function=get_weather><parameter=exact>True</parameter><parameter=where>{'a': 1}</parameter>"
            '<parameter=tags>["a"]</parameter></tool_call>'
        ),
        [("get_weather", '{"exact": true, "where": {"a": 1}, "tags": ["a"]}')],
    ),
    (
        (
            "<tool_call><function=get_weather><parameter=zip>\nnull</parameter><parameter=days>many</parameter>"
            "<parameter=more>5</parameter></function></tool_call>"
        ),
        [("get_weather", '{"zip": null, "days": "many", "more": "5"}')],
    ),
    ("<function=get_weather><parameter=zip>\n01\n</parameter></function>", [("get_weather", '{"zip": "01"}')]),
    ("<tool_call>\n<function=get_weather>\n<parameter=city>\nPar\n</par", [("get_weather", '{"city": "Par')]),
    ("<tool_call>\n<function=get_weather>\n<parameter=days>\n3", [("get_weather", '{"days": ')]),
    ("<tool_call>\n<function=get_weather>\n<parameter=days>3</parameter>\n", [("get_weather", '{"days": 3')]),
    ("<function=nope></function>", ["<function=nope></function>"]),
    ("<tool_call>\n<fun", ["<tool_call>\n<fun"]),
]

ALL = {
    "hermes": HERMES,
    "llama3_json": LLAMA3_JSON,
    "pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "gemma4": GEMMA4,
    "phi": PHI,
    "granite": GRANITE,
    "qwen3_coder": QWEN3_CODER,
}
CASES = [(format, *case) for format, cases in ALL.items() for case in cases]


def test_every_format_is_read() -> None:
    assert ALL.keys() == TOOL_FORMATS.keys()


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
def test_answers_are_read(format: str, text: str, expected: list[str | Call]) -> None:
    assert read(format, text) == expected


def test_an_answer_in_json_is_not_held_back() -> None:
    reader = parser("llama3_json")
    assert joined(reader.push('{"type": "report", "text": "So')) == ['{"type": "report", "text": "So']
    assert joined(reader.push(' it {"name": "x"')) == [' it {"name": "x"']


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
def test_the_cut_does_not_matter(format: str, text: str, expected: list[str | Call]) -> None:
    assert read(format, text, range(1, len(text))) == expected
    for cut in range(len(text)):
        assert read(format, text, [cut]) == expected
    rng = random.Random(text)
    for _ in range(20):
        assert read(format, text, rng.choices(range(len(text) + 1), k=rng.randint(1, 6))) == expected
