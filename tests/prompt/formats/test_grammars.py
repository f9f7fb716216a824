"""Whatever a format's grammar lets through, its parser reads as calls whose arguments are valid."""

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from vmm_adapters.echo import END, write_echo_model
from vmm_server.engine.grammar import GrammarCompiler, TokenMatcher
from vmm_server.prompt.answer import ThinkingState
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import Arguments, CallStart, ChatFormat, Text
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.spelling import Spelling
from vmm_server.requests import Tool, ToolUse

MARKERS = [text for format in TOOL_FORMATS.values() for text in format.special_tokens]
ENDS = ["</parameter>", "<escape>", '<|"|>', '"', '"', '"', "}", "]", ")", "\n", " ", ",", "9", "a", "."]
"""Texts that a random writer would take for ever to find."""


def object_of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    closed = {"required": list(required), "additionalProperties": False}
    return {"type": "object", "properties": properties, **closed, **more}


SCHEMAS: list[dict[str, Any]] = [
    object_of({}),
    {"type": "object"},
    {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]},
    object_of(
        {
            "one": {"type": "boolean"},
            "two": {"type": "string", "enum": ['x"y', "it's", "a\nb", "\n", "", "<escape>", "</parameter>"]},
            "three": {"type": ["number", "null"], "minimum": -3, "exclusiveMaximum": 900},
            "four": {"const": "yes"},
            "five": {"type": "string", "enum": ["x y", "null", "7", "[1]"]},
        },
        "one",
        "two",
        "four",
    ),
    object_of({"x y": {"type": "string"}, "<b>": {"type": "null"}}),
    object_of({"when": {"type": "string", "pattern": "^[0-9]{4}$"}, "id": {"type": ["string", "integer"]}}, "id"),
    object_of(
        {"node": {"$ref": "#/$defs/node"}, "size": {"type": "integer", "minimum": 1, "maximum": 12}},
        "size",
        **{
            "$defs": {
                "node": object_of(
                    {"name": {"type": "string", "maxLength": 5}, "next": {"$ref": "#/$defs/node"}}, "name"
                )
            }
        },
    ),
    {"anyOf": [object_of({"a": {"const": 1}}, "a"), object_of({"b": {"type": "boolean"}}, "b")]},
    object_of(
        {
            "list": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
        },
        "list",
    ),
]
TOOLS = tuple(Tool(f"tool_{index}", parameters=json.dumps(schema)) for index, schema in enumerate(SCHEMAS))


@pytest.fixture(scope="module", params=["special", "plain"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes; with the formats' markers as tokens of their own, or without."""
    folder = tmp_path_factory.mktemp("echo")
    write_echo_model(folder)
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if request.param == "special":
        found.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    return found


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Any:
    compiler = GrammarCompiler(tokenizer, (END,), tokenizer.get_vocab_size())
    yield compiler
    compiler.close()


def written(matcher: TokenMatcher, tokenizer: Tokenizer, rng: random.Random, begun: Sequence[int] = ()) -> str:
    """A text that a grammar allows, by a writer that begins as told, knows a few words and is otherwise drunk."""
    size = tokenizer.get_vocab_size()
    added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    said = bytearray()
    plan = list(begun)
    for step in range(4000):
        allowed = matcher.allowed(size)
        assert matcher.failure is None, matcher.failure
        if step < len(begun):
            assert allowed[plan[0]], bytes(said)
        elif allowed[END] or matcher.is_complete:
            return said.decode()
        if not plan or not allowed[plan[0]]:
            plan = list(rng.choice(ENDS).encode()) if rng.random() < 0.7 else []
        choices = np.flatnonzero(allowed).tolist()
        if not plan and choices[-1] in added and rng.random() < 0.2:
            choices = [index for index in choices if index in added]
        token = plan.pop(0) if plan and allowed[plan[0]] else rng.choice(choices)
        matcher.accept(token)
        said += added[token].encode() if token in added else bytes([token])
    raise AssertionError(f"no end in sight: {bytes(said[-100:])!r}")


def read(format: str, text: str, tools: Sequence[Tool]) -> tuple[str, list[tuple[str, str]]]:
    """(text, calls)."""
    parser = TOOL_FORMATS[format].parser(tools)
    plain, calls = "", list[tuple[str, str]]()
    for part in [*parser.push(text), *parser.finish()]:
        match part:
            case CallStart(name):
                calls.append((name, ""))
            case Arguments(piece):
                calls[-1] = (calls[-1][0], calls[-1][1] + piece)
            case Text(piece):
                plain += piece
    return plain, calls


@pytest.mark.parametrize("format", TOOL_FORMATS)
@pytest.mark.parametrize("parallel", [False, True])
def test_what_a_grammar_allows_is_read_back_valid(
    compiler: GrammarCompiler, tokenizer: Tokenizer, format: str, parallel: bool
) -> None:
    rng = random.Random(f"{format} {parallel}")
    for tool in TOOLS:
        others = tuple(rng.sample(TOOLS, 2))
        use = ToolUse((*others, tool), required=True, parallel=parallel, allowed=frozenset({tool.name}))
        composite = TOOL_FORMATS[format].grammar(use, Spelling(tokenizer))
        grammar = asyncio.run(compiler.compile(composite))
        valid = jsonschema_rs.validator_for(json.loads(tool.parameters))
        for _ in range(4):
            text = written(TokenMatcher(grammar), tokenizer, rng)
            plain, calls = read(format, text, use.callable)
            assert not plain, text
            assert 1 <= len(calls) <= (8 if parallel else 1)
            for name, arguments in calls:
                assert name == tool.name
                assert valid.is_valid(json.loads(arguments)), (text, arguments)


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_strict_calls_are_valid_wherever_the_text_before_them_ends(
    compiler: GrammarCompiler, tokenizer: Tokenizer, format: str
) -> None:
    rng = random.Random(format)
    spell = Spelling(tokenizer)
    chat_format = ChatFormat(TOOL_FORMATS[format], None, tools_in_template=True)
    for tool in TOOLS:
        use = ToolUse((replace(tool, strict=True),))
        valid = jsonschema_rs.validator_for(json.loads(tool.parameters))
        composite = answer_constraint(chat_format, thinking=ThinkingState.NONE, tools=use, form=None, spell=spell)
        assert composite is not None
        grammar = asyncio.run(compiler.compile(composite))
        start = TOOL_FORMATS[format].start(spell)
        token = re.fullmatch(r"<\[(\d+)\]>", start)
        begun = [*b"Well: ", *([int(token[1])] if token else json.loads(start).encode())]
        for _ in range(3):
            text = written(TokenMatcher(grammar), tokenizer, rng, begun)
            plain, calls = read(format, text, use.callable)
            assert plain == "Well:", text
            for name, arguments in calls:
                assert name == tool.name
                assert valid.is_valid(json.loads(arguments)), (text, arguments)
