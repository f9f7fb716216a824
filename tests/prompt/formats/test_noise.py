"""What no model should write: nothing breaks, nothing is lost, the cut does not matter."""

import json
import random
import time
from collections.abc import Sequence

import pytest

from vmm_server.prompt.formats.base import Arguments, CallStart, Part, Text
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.formats.literals import is_beginning_of_json, whole_json
from vmm_server.requests import Tool

SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}, "c": {}}}'
TOOLS = (Tool("now", parameters=SCHEMA), Tool("nowhere"))
MARKERS = [text for format in TOOL_FORMATS.values() for text in format.special_tokens]
WORDS = [
    *('"name"', '"arguments"', '"parameters"', '"type"', "now", "nowhere", "other", "no", "functools[", "call:"),
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ":",
        ",",
        ";",
        "=",
        "**",
        '"',
        "'",
        "\\",
        "\\n",
        "\\u00e9",
        "\\u12",
        "/",
        "<",
        "</",
    ),
    *("1", "-2.5e3", "01", "true", "None", "null", " ", "\n", "\t", "\x00", "é", "😀", "x", '"b": ["', "}}"),
    *("<function=", "<function=now>", "</function>", "<parameter=", "<parameter=b>", "</parameter>", "<tool", "[TOOL"),
]
SAMPLES = {
    "hermes": '<tool_call>\n{"name": "now", "arguments": {"a": "x", "b": [1, "\\u00e9"]}}\n</tool_call>',
    "llama3_json": '{"name": "now", "parameters": {"a": "x", "b": [true, {}]}}; {"name": "nowhere"}',
    "pythonic": "[now(a='x', b=[1, {'c': (\"\\x41\", None)}]), nowhere()]",
    "mistral": '[TOOL_CALLS]now[ARGS]{"a": "x", "b": [null]}[TOOL_CALLS][{"name": "nowhere", "arguments": {}}]',
    "gemma": "<start_function_call>call:now{a:<escape>x<escape>,b:[1,{c:<escape>é<escape>}]}<end_function_call>",
    "gemma4": '<|tool_call>call:now{a:<|"|>x<|"|>,b:[1,{c:<|"|>é<|"|>}]}<tool_call|>',
    "phi": '<|tool_call|>[{"name": "now", "arguments": {"a": "x"}}, {"name": "nowhere"}]<|/tool_call|>',
    "granite": '<|tool_call|>[{"arguments": {"b": [0]}, "name": "now"}] <tool_call>[{"name": "nowhere"}]',
    "qwen3_coder": (
        "<tool_call>\n<function=now>\n<parameter=a>\nx\ny\n</parameter>\n<parameter=b>\n[1, {'a': 2}]\n</parameter>\n"
        "</function>\n</tool_call>"
    ),
}

REPEATED = ["<", " ", "[", "{", '{"', '{"a":', '{"function": ', "(", "<tool_call>", "'", "\\", "\n", "[now(a=["]


def read(format: str, pieces: Sequence[str]) -> list[Part]:
    parser = TOOL_FORMATS[format].parser(TOOLS)
    return [*(part for piece in pieces for part in parser.push(piece)), *parser.finish()]


def joined(parts: Sequence[Part]) -> list[Part]:
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + part.text)
        elif isinstance(part, Arguments) and isinstance(last, Arguments):
            found[-1] = Arguments(last.text + part.text)
        else:
            found.append(part)
    return found


def noise(rng: random.Random, format: str) -> str:
    """A sample with a few things done to it, or nothing that makes sense."""
    if rng.random() < 0.3:
        return "".join(rng.choice(rng.choice([WORDS, WORDS, MARKERS])) for _ in range(rng.randint(1, 30)))
    text = SAMPLES[format]
    for _ in range(rng.randint(0, 4)):
        start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, start + rng.randint(0, 8))
        text = text[:start] + rng.choice(["", text[start:end] * 2, rng.choice(WORDS)]) + text[end:]
    return text


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_noise_is_read_the_same_however_it_is_cut(format: str) -> None:
    rng = random.Random(format)
    num_calls = 0
    for _ in range(600):
        text = noise(rng, format)
        whole = joined(read(format, [text]))
        assert joined(read(format, list(text))) == whole, text
        cut = rng.randint(0, len(text))
        assert joined(read(format, [text[:cut], text[cut:]])) == whole, (text, cut)
        calls = [part for part in whole if isinstance(part, CallStart)]
        num_calls += len(calls)
        if not calls:
            assert "".join(part.text for part in whole if isinstance(part, Text)) == text
        for part in whole:
            if isinstance(part, Arguments):
                assert whole_json(part.text) is not None or is_beginning_of_json(part.text), (text, part)
    assert num_calls > 100


@pytest.mark.parametrize("format", TOOL_FORMATS)
@pytest.mark.parametrize(
    "unit", ["<", " ", "[", "{", '{"', '{"a":', '{"function": ', "(", "<tool_call>", "'", "\\", "\n", "[now(a=["]
)
def test_what_repeats_itself_takes_linear_time(format: str, unit: str) -> None:
    def seconds(count: int) -> float:
        pieces = [*TOOL_FORMATS[format].special_tokens[:1], *[unit] * count]
        start = time.perf_counter()
        parts = joined(read(format, pieces))
        assert any(isinstance(part, Text | Arguments) for part in parts)
        return time.perf_counter() - start

    assert seconds(2000) < 2.0


def test_deep_arguments_end_a_call() -> None:
    opened = '<tool_call>{"name": "now", "arguments": ' + '{"a":' * 300
    *_, call, arguments, text = joined(read("hermes", [opened]))
    assert call == CallStart("now")
    assert isinstance(arguments, Arguments)
    assert arguments.text == '{"a":' * 200
    assert text == Text('{"a":' * 100)
    json.loads(arguments.text + "1" + "}" * 200)
