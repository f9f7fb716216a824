"""Constraints on the echo engine, whose favourite token is mostly forbidden: what comes is noise, but valid."""

import asyncio
import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import Tokenizer

from vmm_adapters.echo import ASSISTANT, END, USER, VOCAB_SIZE, EchoRunner
from vmm_adapters.types import FinishReason, SamplingParams
from vmm_server.engine import Delta, Engine
from vmm_server.engine.constraints import MAX_CHOICES, MAX_GRAMMAR_NODES, MAX_REGEX_BYTES, MAX_SCHEMA_BYTES
from vmm_server.engine.grammar import MAX_CACHED, CompiledGrammar, GrammarCompiler, TokenMatcher
from vmm_server.engine.sampler import SamplingState, draw
from vmm_server.engine.stream import merge
from vmm_server.errors import GenerationFailed, InvalidRequest, ShuttingDown
from vmm_server.models.loading import load_model
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.prompt.answer import ThinkingState
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.spelling import Spelling
from vmm_server.requests import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex

Run = Callable[..., Any]
NUM_SCHEMAS = 200
PROMPT = list(b"answer")
OBJECT = JsonObject("response_format")


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> Any:
    compiler = GrammarCompiler(tokenizer, (END,), VOCAB_SIZE)
    yield compiler
    compiler.close()


def schema(value: object) -> JsonSchema:
    return JsonSchema(json.dumps(value), "schema")


def lively(seed: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.5, "seed": seed, "max_tokens": 160, **changes})


async def answer(engine: Engine, constraint: Constraint, sampling: SamplingParams, prompt: list[int] = PROMPT) -> Delta:
    grammar = await engine.grammars.compile(constraint)
    return merge([delta async for delta in engine.submit(prompt, sampling, grammar=grammar)])


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, object]:
    """Any of the kinds that schemas in use are made of."""
    low = rng.randint(-500, 500)
    words = ["".join(rng.choices('abcé "\\\n{', k=rng.randint(1, 6))) for _ in range(3)]
    leaves: list[dict[str, object]] = [
        {"type": "string", "maxLength": rng.randint(0, 12)},
        {"type": "string", "pattern": rng.choice(["^[a-z]{2,5}$", r"^\d{4}-\d\d$", "^(GET|PUT) /[a-z]*$"])},
        {"type": "string", "format": rng.choice(["uuid", "ipv4"])},
        {"enum": [*words, rng.randint(0, 99), None, True]},
        {"const": rng.choice(words)},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 900)},
        {"type": "number", "minimum": low, "exclusiveMaximum": low + rng.randint(1, 9)},
        {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": rng.randint(2, 7)},
        {"type": "boolean"},
        {"type": ["null", "integer"], "maximum": 9999, "minimum": -9999},
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 1},
        {"$ref": "#/$defs/pair"},
        {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 50}]},
        {"type": "object", "patternProperties": {"^[ab]$": {"type": "boolean"}}, "maxProperties": 2},
    ]
    kind = rng.randrange(len(leaves) + (6 if depth < 3 else 0))
    if kind < len(leaves) and depth > 0:
        return leaves[kind]
    if kind % 3 == 1 and depth > 0:
        few = rng.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(rng, depth + 1),
            "minItems": few,
            "maxItems": few + rng.randint(0, 2),
        }
    if kind % 3 == 2 and depth > 0:
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    names = rng.sample(string.ascii_letters, rng.randint(1, 4)) + rng.sample(["naïve", 'say "hi"', "x y"], 1)
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
        "additionalProperties": rng.choice([False, {"type": "boolean"}]),
        "$defs": {"pair": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"$ref": "#/$defs/pair"}}}},
    }


THOUGHT = 'so {"a": </th> </think>'
THINKING_PROMPT = [USER, *THOUGHT.encode(), END, ASSISTANT]


def after_thinking(constraint: Constraint, tokenizer: Tokenizer) -> Any:
    """The form of an answer whose prompt leaves the model in the middle of its thinking."""
    format = ChatFormat(TOOL_FORMATS["hermes"], ReasoningFormat("<think>", "</think>"), tools_in_template=True)
    spell = Spelling(tokenizer)
    return answer_constraint(format, thinking=ThinkingState.OPEN, tools=None, form=constraint, spell=spell)


@pytest.mark.parametrize("thinks", [False, True])
def test_no_answer_that_ends_violates_its_schema(
    run: Run, engine_over: Run, tokenizer: Tokenizer, thinks: bool
) -> None:
    async def one_answer(engine: Engine, seed: int, one: object) -> Delta:
        if not thinks:
            return await answer(engine, schema(one), lively(seed))
        constraint = after_thinking(schema(one), tokenizer)
        said = await answer(engine, constraint, lively(seed, max_tokens=160 + len(THOUGHT)), THINKING_PROMPT)
        thought, _, text = said.text.partition("</think>")
        assert thought == THOUGHT.removesuffix("</think>")
        return replace(said, text=text, token_ids=said.token_ids[len(THOUGHT) :])

    async def scenario(first: int) -> list[Delta]:
        schemas = [random_schema(random.Random(seed)) for seed in range(first, min(first + 40, NUM_SCHEMAS))]
        runner = EchoRunner(num_blocks=512)
        async with engine_over(runner, max_sequences=16) as engine:
            tasks = [one_answer(engine, seed, one) for seed, one in enumerate(schemas, first)]
            answers = await asyncio.gather(*tasks)
        for one, said in zip(schemas, answers, strict=True):
            if said.finish_reason is FinishReason.STOP:
                jsonschema_rs.validator_for(one, validate_formats=True).validate(json.loads(said.text))
            else:
                assert said.finish_reason is FinishReason.LENGTH
                assert len(said.token_ids) == 160
        return list(answers)

    answers = [said for first in range(0, NUM_SCHEMAS, 40) for said in run(scenario(first))]
    assert len(answers) == NUM_SCHEMAS
    assert sum(said.finish_reason is FinishReason.STOP for said in answers) > NUM_SCHEMAS / 3


@pytest.mark.parametrize(
    ("constraint", "valid"),
    [
        (Regex("[0-9]{3}-é(x|yz)", "regex"), lambda text: re.fullmatch("[0-9]{3}-é(x|yz)", text)),
        (Choice(("yes", "no", 'a "quoted"\n\\line', "né"), "choice"), lambda text: text in ("yes", "no", "né")),
        (Grammar('start: "<" NAME ">"\nNAME: /[a-z]{2,4}/', "grammar"), lambda text: re.fullmatch("<[a-z]+>", text)),
        (Grammar('root ::= "<" [a-z] [a-z] ">"', "grammar"), lambda text: re.fullmatch("<[a-z]{2}>", text)),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_text_constraints_hold(
    run: Run, engine_over: Run, constraint: Constraint, valid: Callable[[str], object], temperature: float
) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            for seed in range(4):
                said = await answer(engine, constraint, lively(seed, temperature=temperature))
                assert said.finish_reason is FinishReason.STOP
                assert valid(said.text) or said.text == 'a "quoted"\n\\line'
                assert bytes(said.token_ids).decode() == said.text, "it ends with its last token, without an EOS"

    run(scenario())


def test_an_answer_ends_where_the_grammar_does(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            whole = await answer(engine, Choice(("abcd",), "choice"), lively(0, max_tokens=4, min_tokens=4))
            assert (whole.text, whole.finish_reason) == ("abcd", FinishReason.STOP), "complete, though at the limit"
            cut = await answer(engine, Choice(("abcd",), "choice"), lively(0, max_tokens=3))
            assert (cut.text, cut.finish_reason) == ("abc", FinishReason.LENGTH)
            patient = await answer(engine, Choice(("ab",), "choice"), lively(0, min_tokens=9))
            assert (patient.text, patient.finish_reason) == ("ab", FinishReason.STOP)
            longer = await answer(engine, Choice(("a", "ab"), "choice"), lively(0, min_tokens=2))
            assert longer.text == "ab", "min_tokens forbids an end that the grammar would allow"
            stopped = await answer(engine, Choice(("abcd",), "choice"), lively(0, stop=("bc",)))
            assert (stopped.text, stopped.finish_reason) == ("a", FinishReason.STOP)

    run(scenario())


def test_stop_tokens_end_an_answer_only_where_it_is_whole(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            bias = {256: 100.0}
            said = await answer(
                engine, Regex("[a-z]{3}[0-9]*", "regex"), lively(1, stop_token_ids=(256,), logit_bias=bias)
            )
            assert said.finish_reason is FinishReason.STOP
            assert re.fullmatch("[a-z]{3}", said.text)

    run(scenario())


def test_a_neighbour_without_a_grammar_says_what_it_always_says(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            free = engine.submit([257, *b"hello", END, 258], SamplingParams(temperature=0))
            bound, text = await asyncio.gather(answer(engine, OBJECT, lively(3)), _read(free))
            assert text == "hello"
            assert bound.text.lstrip().startswith("{")

    run(scenario())


def nested(inner: dict[str, object], depth: int) -> dict[str, object]:
    """Arrays of one array of … of `inner`."""
    for _ in range(depth):
        inner = {"type": "array", "items": inner, "minItems": 1}
    return inner


async def _read(generation: Any) -> str:
    return "".join([delta.text async for delta in generation])


def test_blanks_are_bounded(run: Run, compiler: GrammarCompiler) -> None:
    matcher = TokenMatcher(run(compiler.compile(OBJECT)))
    for token in b"{" + b" " * 16:
        assert matcher.allowed(VOCAB_SIZE)[token]
        matcher.accept(token)
    assert not matcher.allowed(VOCAB_SIZE)[list(b" \n\r\t")].any()


@pytest.mark.parametrize("text", ['{"a": 1, "\\u0061": "x"}', '{"a": 1, "a": "x"}', '{"a": 1, "a": 2}'])
def test_no_key_can_be_spelt_twice(run: Run, compiler: GrammarCompiler, text: str) -> None:
    matcher = TokenMatcher(run(compiler.compile(schema({"type": "object", "properties": {"a": {"type": "integer"}}}))))
    for token in text.encode():
        if not matcher.allowed(VOCAB_SIZE)[token]:
            return
        matcher.accept(token)
    pytest.fail(f"{text} was allowed")


def test_padding_rows_of_the_vocabulary_are_forbidden(run: Run, tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, (END,), VOCAB_SIZE + 50)
    state = SamplingState(SamplingParams(temperature=0), [1], (END,), run(compiler.compile(Regex("(?s:.)*", "regex"))))
    logits = np.zeros(VOCAB_SIZE + 50, np.float32)
    logits[VOCAB_SIZE + 5] = 99
    drawn = draw(logits, state)
    compiler.close()
    assert drawn is not None
    assert drawn.token_id < VOCAB_SIZE


def test_a_grammar_that_gets_too_complex_fails_and_does_not_end(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            matcher = TokenMatcher(await engine.grammars.compile(Regex("(a|b)*a(a|b){30}", "regex")))
            matcher.accept(ord("z"))
            assert not matcher.allowed(VOCAB_SIZE).any()
            assert matcher.failure is not None
            assert not matcher.is_complete
            broken = (await engine.grammars.compile(Regex("a", "regex"))).start()
            broken.consume_token(ord("z"))
            with pytest.raises(InvalidRequest, match="cannot be followed any further"):
                _ = [delta async for delta in engine.submit(PROMPT, lively(0), grammar=CompiledGrammar(broken, OBJECT))]
            impossible = await engine.grammars.compile(Regex("a[a-c]", "regex"))
            with pytest.raises(GenerationFailed, match="every token is forbidden"):
                _ = [
                    delta
                    async for delta in engine.submit(PROMPT, lively(0, logit_bias={97: -np.inf}), grammar=impossible)
                ]

    run(scenario())


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (schema({"type": "object", "properties": {"a": {"not": {}}}}), 'Unimplemented keys: ["not"]'),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"x-guidance": {"lenient": True}, "not": {}}), "not"),
        (schema({"type": "string", "format": "weird"}), "Unknown format: weird"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable"),
        (schema({"type": "object", "minProperties": 2, "required": ["a"]}), "minProperties: 2"),
        (schema({"const": "x\x01"}), "control characters"),
        (schema({"enum": [["x\x7f"]]}), "control characters"),
        (schema({"type": "object", "properties": {"x\x1f": {}}}), "control characters"),
        (schema({"type": "string", "pattern": r"^\x01$"}), "control characters"),
        (schema({"type": "object", "patternProperties": {r"^\u0001$": {}}}), "control characters"),
        (schema({"$ref": "#"}), "schema"),
        (schema({"$ref": "https://example.org/x"}), "example.org"),
        (schema({"type": "string", "description": "x" * MAX_SCHEMA_BYTES}), "the limit is 262144"),
        (schema({"$defs": {f"r{i}": {"items": {"$ref": f"#/$defs/r{i + 1}"}} for i in range(2000)}}), "references"),
        (Regex("(a", "regex"), "unclosed group"),
        (Regex("(?=a)b", "regex"), "look-around"),
        (Regex("a" * (MAX_REGEX_BYTES + 1), "regex"), "the limit is 16384"),
        (Choice((), "choice"), "1 to 1000"),
        (Choice(("a",) * (MAX_CHOICES + 1), "choice"), "1001 choices"),
        (Choice(("a" * 70_000,), "choice"), "the limit is 65536"),
        (Grammar('start: "a" | foo', "grammar"), "foo"),
        (Grammar("root ::= nothing", "grammar"), "nothing"),
        (Grammar("start: " + "(" * 1500 + '"a"' + ")" * 1500, "grammar"), "nested"),
        (Grammar("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(MAX_GRAMMAR_NODES)), "grammar"), "rules"),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    run: Run, compiler: GrammarCompiler, constraint: Constraint, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(compiler.compile(constraint))
    assert words in refused.value.message
    assert len(refused.value.message) < 600
    assert refused.value.param == constraint.param
    assert len(compiler) == 0


def test_the_largest_grammars_do_not_overflow_the_stack(run: Run, engine_over: Run) -> None:
    """Chains as deep as the limits allow, compiled and followed."""
    chain = "\n".join(f'r{i}: r{i + 1} "a"' for i in range(MAX_GRAMMAR_NODES - 5))
    links = [{"required": ["a"], "properties": {"a": {"$ref": f"#/$defs/r{i + 1}"}}} for i in range(580)]
    refs = {f"r{i}": {"type": "object", "additionalProperties": False, **link} for i, link in enumerate(links)}
    deep = {f"r{i}": nested({"$ref": f"#/$defs/r{i + 1}"}, 80) for i in range(45)}

    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            for constraint in (
                Grammar(f'start: r0\n{chain}\nr{MAX_GRAMMAR_NODES - 5}: "b"', "grammar"),
                schema({"$ref": "#/$defs/r0", "$defs": {**refs, "r580": {"type": "string"}}}),
                schema({"$ref": "#/$defs/r0", "$defs": {**deep, "r45": {"type": "string"}}}),
            ):
                said = await answer(engine, constraint, lively(0, max_tokens=20))
                assert said.finish_reason is FinishReason.LENGTH

    run(scenario())


def test_nothing_is_compiled_after_the_end(run: Run, engine_over: Run) -> None:
    async def scenario() -> None:
        async with engine_over(EchoRunner()) as engine:
            await engine.grammars.compile(OBJECT)
        with pytest.raises(ShuttingDown):
            await engine.grammars.compile(OBJECT)

    run(scenario())


def test_equal_constraints_are_compiled_once_and_few_are_kept(run: Run, compiler: GrammarCompiler) -> None:
    async def scenario() -> None:
        both = [compiler.compile(Regex("a+", param)) for param in ("regex", "structured_outputs.regex")]
        first, second = await asyncio.gather(*both)
        assert first is second
        for number in range(MAX_CACHED - 1):
            await compiler.compile(Regex(f"a{{{number}}}", "regex"))
        assert len(compiler) == MAX_CACHED
        assert await compiler.compile(Regex("a+", "regex")) is first
        await compiler.compile(Regex("b", "regex"))
        assert len(compiler) == MAX_CACHED
        assert await compiler.compile(Regex("a+", "regex")) is first, "the one used last stays"

    run(scenario())


@pytest.mark.runtime
def test_the_real_model_answers_in_form(smollm2: InstalledModel, settings: Any) -> None:
    """Eight at a time at temperature 1.5, read as they come; beside them one that is free."""
    schemas = [random_schema(random.Random(seed)) for seed in range(8)]

    async def scenario() -> None:
        ready = load_model(smollm2, Placement("openvino", "CPU"), 64 << 20, settings())
        prompt = ready.tokenizer.encode("The record, as JSON:\n").ids
        try:
            grammars = [await ready.engine.grammars.compile(schema(one)) for one in schemas]
            generations = [
                ready.engine.submit(prompt, lively(seed, max_tokens=120), grammar=grammar)
                for seed, grammar in enumerate(grammars)
            ]
            free = ready.engine.submit(prompt, lively(0, max_tokens=20))
            for one, generation in zip(schemas, generations, strict=True):
                said = merge([delta async for delta in generation])
                if said.finish_reason is FinishReason.STOP:
                    jsonschema_rs.validator_for(one, validate_formats=True).validate(json.loads(said.text))
                else:
                    assert said.finish_reason is FinishReason.LENGTH
            assert len(merge([delta async for delta in free]).token_ids) > 0
        finally:
            await ready.engine.aclose()

    asyncio.run(scenario())
