"""Grammars made to take for ever: each is compiled or refused, and nobody waits for it but who sent it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from vmm_adapters.echo import END, VOCAB_SIZE
from vmm_server.engine.constraints import grammar_source, is_costly
from vmm_server.engine.grammar import CompiledGrammar, GrammarCompiler
from vmm_server.engine.grammar_trial import is_bearable
from vmm_server.errors import InvalidRequest
from vmm_server.requests import Composite, Constraint, Grammar, JsonObject, JsonSchema, Regex

Run = Callable[..., Any]


def schema(value: object) -> JsonSchema:
    return JsonSchema(json.dumps(value), "schema")


INTERSECTION = schema({"type": "string", "allOf": [{"pattern": f".*x{i}.*"} for i in range(60)]})
"""Takes all memory there is."""
EMPTY = {"type": "string"}


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> Any:
    compiler = GrammarCompiler(tokenizer, (END,), VOCAB_SIZE)
    yield compiler
    compiler.close()


def test_others_are_served_while_one_is_tried(run: Run, compiler: GrammarCompiler) -> None:
    over: list[str] = []

    async def compile_and_tell(name: str, constraint: Constraint) -> None:
        try:
            await compiler.compile(constraint)
        finally:
            over.append(name)

    async def scenario() -> None:
        hostile = asyncio.create_task(compile_and_tell("hostile", INTERSECTION))
        await asyncio.sleep(0)  # it is on its way
        await compile_and_tell("plain", schema({"type": "object", "properties": {"a": EMPTY}}))
        await compile_and_tell("costly", schema({"allOf": [EMPTY]}))
        with pytest.raises(
            InvalidRequest, match=r"^schema: .* more than 3 s or 1024 MiB, which is the limit"
        ) as caught:
            await hostile
        assert caught.value.param == "schema"

    run(scenario())
    assert over == ["plain", "costly", "hostile"]


@pytest.mark.parametrize(
    "constraint",
    [
        schema({"type": "string", "minLength": 10**9}),
        schema({"type": "string", "minLength": 10**9, "maxLength": 10**10}),
        schema({"type": "array", "items": EMPTY, "minItems": 10**9}),
        schema({"type": "integer", "minimum": -(10**300), "maximum": 10**300}),
        schema({"type": "number", "multipleOf": 1e-300}),
        schema({"type": "integer", "multipleOf": 10**9 + 7}),
        schema({"enum": [f"x{i}" for i in range(20_000)]}),
        schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        schema({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "type": "array"}}, "$ref": "#/$defs/a"}),
        schema({f"p{i}": i for i in range(1000)} | {"$ref": "#/p1"}),
        schema({"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": EMPTY}} for j in range(4)]} for i in range(30)]}),
        Regex("(a|b)*a(a|b){200}", "regex"),
        Regex("((a{1000}){1000}){1000}", "regex"),
        Regex("((a{0,50}b?){0,50}c?){0,50}", "regex"),
        Regex("(?i)" + "straße|" * 1000, "regex"),
        Grammar("start: A\nA: " + " & ".join(f"/(.|\\n)*x{i}.*/" for i in range(60)), "grammar"),
        Grammar("start: " + "(" * 900 + '"a"' + "?)" * 900, "grammar"),
        Grammar("root ::= " + '"a"{999999999}', "grammar"),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_what_looks_endless_is_compiled_or_refused(
    run: Run, compiler: GrammarCompiler, constraint: JsonSchema | Regex | Grammar
) -> None:
    async def attempt() -> CompiledGrammar | InvalidRequest:
        try:
            return await compiler.compile(constraint)
        except InvalidRequest as refused:
            return refused

    outcome = run(attempt())
    if isinstance(outcome, InvalidRequest):
        assert outcome.param == constraint.param
        assert len(outcome.message) < 600


@pytest.mark.parametrize("size", [10 * 2**20, 60 * 2**20])
def test_megabytes_are_refused_before_anything_is_read(run: Run, compiler: GrammarCompiler, size: int) -> None:
    for constraint in (JsonSchema("[" * size, "schema"), Regex("a" * size, "regex"), Grammar("(" * size, "grammar")):
        with pytest.raises(InvalidRequest, match=rf"^{constraint.param}: {size} bytes, the limit is"):
            run(compiler.compile(constraint))


def test_a_process_that_takes_too_long_is_ended() -> None:
    assert not is_bearable(grammar_source(INTERSECTION), timeout_s=0.01)
    assert is_bearable(grammar_source(schema({"allOf": [EMPTY]})))
    assert is_bearable("no grammar at all")  # what is wrong with it is said where it is compiled


REFERENCE = {"$ref": "#/$defs/a"}
PATTERN = {"type": "string", "pattern": "^[a-z]{2,8}$"}


@pytest.mark.parametrize(
    ("costly", "constraint"),
    [
        (False, JsonObject("format")),
        (False, schema({"type": "object", "properties": {"a": PATTERN, "b": {"enum": [1, 2]}}, "required": ["a"]})),
        (False, schema({"properties": {"a": {**REFERENCE, "description": "A"}}, "$defs": {"a": PATTERN}})),
        (False, schema({"anyOf": [EMPTY, {"type": "null"}], "default": None})),
        (False, schema({"type": "integer", "multipleOf": 5})),
        (False, Regex("[0-9]{3}-[a-z]+", "regex")),
        (True, schema({"properties": {"a": {**REFERENCE, "pattern": "a"}}})),
        (True, schema({"items": [{"allOf": [EMPTY]}]})),
        (True, schema({"anyOf": [EMPTY], "oneOf": [EMPTY]})),
        (True, schema({"type": "integer", "multipleOf": 1001})),
        (True, schema({"properties": {f"p{i}": EMPTY for i in range(501)}})),
        (True, schema({"patternProperties": {f"p{i}": EMPTY for i in range(9)}})),
        (True, schema({"patternProperties": {"(a{9}){9}": EMPTY}})),
        (True, Regex("(a{9}){9}", "regex")),
        (True, Grammar('start: "a"', "grammar")),
        (True, Composite("start: @a", (("a", Regex("a" * 300, "regex")),), "tools")),
        (False, Composite("start: @a", (("a", Regex("a", "regex")),), "tools")),
    ],
)
def test_what_may_be_costly_is_told_by_its_looks(costly: bool, constraint: Constraint | Composite) -> None:
    assert is_costly(constraint) is costly
