"""Whatever an answer's grammar lets through is, to those who read the answer, what was asked for."""

import asyncio
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from vmm_adapters.types import FinishReason
from vmm_server.engine.constraints import MAX_SCHEMAS_BYTES
from vmm_server.engine.grammar import GrammarCompiler, TokenMatcher
from vmm_server.engine.stopping import Detokenizer, special_token_ids
from vmm_server.engine.stream import Delta
from vmm_server.errors import InvalidRequest
from vmm_server.prompt.answer import AnswerReader, ThinkingState
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.formats.reasoning import REASONING_FORMATS
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.requests import Choice, Composite, Grammar, JsonObject, JsonSchema, Regex, Tool, ToolUse

THINK = ReasoningFormat("<think>", "</think>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<escape>")
TEXT = Path(__file__).parents[1].joinpath("data/ppl.txt").read_text("utf-8")[:20_000]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
FLAG = {
    "type": "object",
    "properties": {"flag": {"$ref": "#/$defs/flag"}},
    "required": ["flag"],
    "additionalProperties": False,
    "$defs": {"flag": {"type": "boolean"}},
}
SCHEMAS = {"get_weather": WEATHER, "set-flag": FLAG}
ANSWER = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 9}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["answer", "n"],
    "additionalProperties": False,
}
FORM = JsonSchema(json.dumps(ANSWER), "response_format")
MODES = ("form", "required", "one", "form or calls", "strict")
BEGINNINGS = {
    ThinkingState.NONE: ("", ""),
    ThinkingState.POSSIBLE: ("", "<think>\nhm {<]\n</think>\n\n"),
    ThinkingState.OPEN: ("hm </thin", 'hm [{"\n</think>\n\n'),
}
NUM_WALKS = 4


@dataclass(frozen=True)
class Writer:
    """A tokeniser with words, its grammars, and a model that knows nothing."""

    tokenizer: Tokenizer
    compiler: GrammarCompiler
    spell: Spelling

    def grammar(self, constraint: Any) -> Any:
        return asyncio.run(self.compiler.compile(constraint))

    def write(self, grammar: Any, seed: str, beginning: str = "", limit: int = 300) -> list[int] | None:
        """Token ids of an answer that ends, mostly at random; `None` if it did not."""
        rng, matcher, size = random.Random(seed), TokenMatcher(grammar), self.tokenizer.get_vocab_size()
        forced = list(self.tokenizer.encode(beginning, add_special_tokens=False).ids)
        closing = [i for i in range(size) if set('"}]<>)') & set(self.tokenizer.id_to_token(i))]
        said: list[int] = []
        while len(said) < limit:
            if matcher.is_complete:
                return said
            allowed = matcher.allowed(size)
            assert matcher.failure is None
            preferred = [i for i in closing if allowed[i]]
            if forced:
                token = forced.pop(0)
                assert allowed[token], (self.tokenizer.decode([*said, token], skip_special_tokens=False), seed)
            elif allowed[0] and rng.random() < 0.4:
                return said
            elif preferred and rng.random() < 0.5:
                token = rng.choice(preferred)
            else:
                token = int(rng.choice(np.flatnonzero(allowed)))
            if token == 0:
                return said
            said.append(token)
            matcher.accept(token)
        return None

    def read(
        self, format: ChatFormat, thinking: ThinkingState, tools: ToolUse | None, ids: list[int]
    ) -> tuple[str, str, list[tuple[str, str]]]:
        """(thinking, content, calls) of an answer, as whoever asked gets them."""
        marks = [*format.tools.special_tokens, *([THINK.start, THINK.end] if format.reasoning else [])]
        detokenizer = Detokenizer(self.tokenizer, special_token_ids(self.tokenizer) - self.spell.ids(marks))
        reader = AnswerReader(
            format,
            thinking=thinking,
            tools=tools.callable if tools else (),
            token_bytes=TokenBytes(self.tokenizer),
            new_call_id=lambda: "id",
        )
        deltas = [Delta(detokenizer.push(token), (token,)) for token in ids]
        deltas.append(Delta(detokenizer.flush(), finish_reason=FinishReason.STOP))
        said = [part for delta in deltas for part in reader.read(delta)]
        calls: list[tuple[str, str]] = []
        for piece in (piece for delta in said for piece in delta.tool_calls):
            if piece.name is not None:
                calls.append((piece.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
        return "".join(delta.reasoning for delta in said), "".join(delta.text for delta in said), calls


@pytest.fixture(scope="module", params=["special", "added", "plain"])
def writer(request: pytest.FixtureRequest) -> Any:
    """Markers as special tokens, as tokens that are text to the tokeniser (as Qwen's), or spelt in many."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, *['{"name": "f"}\n</tool_call></think>\n\n'] * 3], trainer)
    if request.param != "plain":
        special = request.param == "special"
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in MARKERS])
    compiler = GrammarCompiler(tokenizer, (0,), tokenizer.get_vocab_size())
    yield Writer(tokenizer, compiler, Spelling(tokenizer))
    compiler.close()


def tool_use(mode: str) -> ToolUse | None:
    if mode == "form":
        return None
    tools = [
        Tool(name, None, json.dumps(schema), mode != "one", f"tools[{index}]")
        for index, (name, schema) in enumerate(SCHEMAS.items())
    ]
    return ToolUse(tuple(tools), required=mode in ("required", "one"), parallel=mode != "one")


def judge(mode: str, content: str, calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema_rs.validator_for(SCHEMAS[name]).validate(json.loads(arguments))
    if mode in ("required", "one") or (mode == "form or calls" and calls):
        assert not content
        assert len(calls) == 1 if mode == "one" else calls
    elif mode != "strict":
        assert not calls
        jsonschema_rs.validator_for(ANSWER).validate(json.loads(content))


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_what_a_grammar_allows_is_read_as_what_was_asked_for(writer: Writer, name: str) -> None:
    tools = TOOL_FORMATS[name]
    for mode, thinking in itertools.product(MODES, ThinkingState):
        format = ChatFormat(tools, None if thinking is ThinkingState.NONE else THINK, tools_in_template=True)
        use, form = tool_use(mode), FORM if "form" in mode else None
        constraint = answer_constraint(format, thinking=thinking, tools=use, form=form, spell=writer.spell)
        grammar = writer.grammar(constraint)
        for walk in range(NUM_WALKS):
            beginning = BEGINNINGS[thinking][walk % 2]
            ids = writer.write(grammar, f"{name} {mode} {thinking} {walk}", beginning)
            if ids is None:
                assert "</think>" not in beginning or walk % 2 == 0
                continue
            thought, content, calls = writer.read(format, thinking, use, ids)
            judge(mode, content, calls)
            assert bool(thought) >= beginning.endswith("</think>\n\n")


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_a_strict_call_holds_wherever_a_text_begins_one(writer: Writer, name: str) -> None:
    tools = TOOL_FORMATS[name]
    format = ChatFormat(tools, None, tools_in_template=True)
    use = tool_use("strict")
    assert use is not None
    constraint = answer_constraint(format, thinking=ThinkingState.NONE, tools=use, form=None, spell=writer.spell)
    assert isinstance(constraint, Composite)
    seen: list[str] = []

    def watching(text: str) -> str:
        seen.append(text)
        return writer.spell(text)

    start = tools.start(watching)
    beginning = seen[-1] if seen else json.loads(start)
    for walk in range(NUM_WALKS):
        ids = writer.write(writer.grammar(constraint), f"{name} {walk}", f"Let me see: {beginning}")
        assert ids is not None
        _, content, calls = writer.read(format, ThinkingState.NONE, use, ids)
        assert content == "Let me see:"
        assert calls
        judge("strict", content, calls)


@pytest.mark.parametrize(
    ("form", "text", "wrong"),
    [
        (Regex("[a-z]{3}", "p"), "abc", "ab1"),
        (Choice(('say "hi"\n', "no"), "p"), 'say "hi"\n', "yes"),
        (Grammar('start: "<" NAME ">"\nNAME: /[a-z]+/\nBLANK: "x"\nanswer: "y"', "p"), "<abc>", "y"),
        (Grammar('root ::= "a" | "b"', "p"), "b", "c"),
        (JsonObject("p"), '{"a": [1]}', "[1]"),
    ],
)
def test_every_form_holds_after_thinking(writer: Writer, form: Any, text: str, wrong: str) -> None:
    format = ChatFormat(TOOL_FORMATS["hermes"], THINK, tools_in_template=True)
    constraint = answer_constraint(format, thinking=ThinkingState.OPEN, tools=None, form=form, spell=writer.spell)
    grammar = writer.grammar(constraint)
    ids = writer.write(grammar, "x", f"well, {wrong}</think>\n\n{text}")
    assert ids is not None
    thought, content, _ = writer.read(format, ThinkingState.OPEN, None, ids)
    assert (thought, content) == (f"well, {wrong}", text)
    with pytest.raises(AssertionError):
        writer.write(grammar, "x", f"well</think>{wrong}")


def test_a_form_may_stand_in_the_tags_that_a_family_puts_around_answers(writer: Writer) -> None:
    format = ChatFormat(TOOL_FORMATS["granite"], REASONING_FORMATS["granite_tags"], tools_in_template=True)
    constraint = answer_constraint(format, thinking=ThinkingState.OPEN, tools=None, form=FORM, spell=writer.spell)
    grammar = writer.grammar(constraint)
    said = '{"answer": "yes", "n": 7}'
    tagged = f"<response>\n{said}\n</response>"
    for text in (f"hm</think>\n{said}", f"hm</think>\n\n{tagged}", f"</think>{tagged}"):
        ids = writer.write(grammar, "x", text)
        assert ids is not None
        assert writer.read(format, ThinkingState.OPEN, None, ids)[1].strip() == said
    for text in (f"hm</think><response>{said}x", "hm</think><response></"):
        with pytest.raises(AssertionError):
            writer.write(grammar, "x", text)


def test_a_marker_is_not_spelt_where_it_means_nothing(writer: Writer) -> None:
    """Who reads the answer sees a marker in its letters too: they may not end a thought that the grammar goes on with,
    nor begin a call that it does not know of.
    """
    if writer.tokenizer.token_to_id("<think>") is None:
        return
    format = ChatFormat(TOOL_FORMATS["hermes"], THINK, tools_in_template=True)
    thinking = answer_constraint(format, thinking=ThinkingState.OPEN, tools=None, form=FORM, spell=writer.spell)
    plain = ChatFormat(TOOL_FORMATS["hermes"], None, tools_in_template=True)
    use = tool_use("strict")
    calling = answer_constraint(plain, thinking=ThinkingState.NONE, tools=use, form=None, spell=writer.spell)
    for constraint, marker in ((thinking, "</think>"), (calling, "<tool_call>")):
        matcher = TokenMatcher(writer.grammar(constraint))
        for letter in marker[:-1]:
            matcher.accept(writer.tokenizer.token_to_id(letter))
        allowed = matcher.allowed(writer.tokenizer.get_vocab_size())
        assert not allowed[writer.tokenizer.token_to_id(marker[-1])]
        assert allowed[writer.tokenizer.token_to_id("x")]


@pytest.mark.parametrize("writer", ["plain"], indirect=True)
@pytest.mark.parametrize(("name", "beginning"), [("granite", "<|tool_call|>"), ("llama3_json", '{ \n"')])
def test_a_call_begins_in_one_way(writer: Writer, name: str, beginning: str) -> None:
    """What else its reader takes for the beginning of a call is kept out of a free text."""
    format = ChatFormat(TOOL_FORMATS[name], None, tools_in_template=True)
    constraint = answer_constraint(
        format, thinking=ThinkingState.NONE, tools=tool_use("strict"), form=None, spell=writer.spell
    )
    matcher = TokenMatcher(writer.grammar(constraint))
    letters = writer.tokenizer.encode("So: " + beginning[:-1], add_special_tokens=False).ids
    for token in letters:
        matcher.accept(token)
    assert not matcher.allowed(writer.tokenizer.get_vocab_size())[writer.tokenizer.token_to_id(beginning[-1])]
    assert matcher.failure is None


def test_the_schemas_of_an_answer_have_a_size_together(writer: Writer) -> None:
    schema = json.dumps({"type": "object", "description": "x" * (MAX_SCHEMAS_BYTES // 3)})
    tools = tuple(Tool(f"t{index}", None, schema, param=f"tools[{index}]") for index in range(3))
    format = ChatFormat(TOOL_FORMATS["hermes"], None, tools_in_template=True)
    use = ToolUse(tools, required=True)
    constraint = answer_constraint(format, thinking=ThinkingState.NONE, tools=use, form=None, spell=writer.spell)
    with pytest.raises(InvalidRequest, match=f"the limit is {MAX_SCHEMAS_BYTES}") as refused:
        writer.grammar(constraint)
    assert refused.value.param == "tools"


def test_nothing_ends_before_the_form_is_fulfilled(writer: Writer) -> None:
    format = ChatFormat(TOOL_FORMATS["hermes"], THINK, tools_in_template=True)
    for thinking, beginning in itertools.product((ThinkingState.POSSIBLE, ThinkingState.OPEN), ("", "x", "x</think>")):
        text = "<think>" + beginning if thinking is ThinkingState.POSSIBLE and beginning else beginning
        constraint = answer_constraint(format, thinking=thinking, tools=None, form=FORM, spell=writer.spell)
        matcher = TokenMatcher(writer.grammar(constraint))
        for token in writer.tokenizer.encode(text, add_special_tokens=False).ids:
            assert not matcher.allowed(writer.tokenizer.get_vocab_size())[0]
            matcher.accept(token)
        assert not matcher.allowed(writer.tokenizer.get_vocab_size())[0]


def test_what_needs_no_mask_gets_none(writer: Writer) -> None:
    free = ToolUse((Tool("f"), Tool("g")))
    nobody = ToolUse((Tool("f"),), allowed=frozenset())
    for thinking, reasoning in ((ThinkingState.NONE, None), (ThinkingState.OPEN, THINK)):
        format = ChatFormat(TOOL_FORMATS["hermes"], reasoning, tools_in_template=True)
        for tools in (None, free, nobody):
            assert answer_constraint(format, thinking=thinking, tools=tools, form=None, spell=writer.spell) is None
    plain = ChatFormat(TOOL_FORMATS["hermes"], None, tools_in_template=True)
    assert answer_constraint(plain, thinking=ThinkingState.NONE, tools=nobody, form=FORM, spell=writer.spell) is FORM


def constraint_on(parameters: dict[str, Any], writer: Writer, *, strict: bool) -> Any:
    tools = (Tool("fine", param="tools[0]"), Tool("odd", None, json.dumps(parameters), strict, "tools[1].function"))
    format = ChatFormat(TOOL_FORMATS["hermes"], None, tools_in_template=True)
    use = ToolUse(tools, required=True)
    return answer_constraint(format, thinking=ThinkingState.NONE, tools=use, form=None, spell=writer.spell)


ODD: list[tuple[dict[str, Any], str]] = [
    ({"type": "object", "properties": {"a": {"not": {}}}}, 'Unimplemented keys: ["not"]'),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x).*$"}}}, "look-around"),
    ({"type": "object", "properties": {"a": {"type": "string", "format": "uri-template"}}}, "uri-template"),
    ({"type": "object", "properties": {"a": {"type": "date"}}}, "date"),
    ({"type": "object", "minProperties": 3}, "minProperties"),
]


@pytest.mark.parametrize(("parameters", "words"), ODD)
def test_a_strict_schema_that_cannot_be_enforced_is_refused_by_name(
    writer: Writer, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        writer.grammar(constraint_on(parameters, writer, strict=True))
    assert refused.value.param == "tools[1].function"
    assert words in refused.value.message


@pytest.mark.parametrize("parameters", [schema for schema, words in ODD if words != "minProperties"])
def test_what_cannot_be_enforced_of_other_schemas_is_left_out(writer: Writer, parameters: dict[str, Any]) -> None:
    grammar = writer.grammar(constraint_on(parameters, writer, strict=False))
    for arguments in ("{}", '{"a": "x"}'):
        text = f'<tool_call>\n{{"name": "odd", "arguments": {arguments}}}\n</tool_call>'
        assert writer.write(grammar, "x", text) is not None


@pytest.mark.parametrize(
    ("parameters", "invented"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),
        ({"type": "object", "properties": {}}, False),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^b$": {}}}, True),
        ({"type": "object"}, True),
    ],
)
def test_no_arguments_are_invented_that_a_schema_does_not_ask_for(
    writer: Writer, parameters: dict[str, Any], invented: bool
) -> None:
    grammar = writer.grammar(constraint_on(parameters, writer, strict=False))
    text = '<tool_call>\n{"name": "odd", "arguments": {"a": "x", "b": 1'
    if invented:
        writer.write(grammar, "x", text)
    else:
        with pytest.raises(AssertionError):
            writer.write(grammar, "x", text)


@pytest.mark.parametrize("writer", ["special"], indirect=True)
def test_a_hundred_tools_of_a_hundred_kilobytes_are_enforced(writer: Writer) -> None:
    """What others refuse: more than 97 KB of schemas."""
    properties = {f"argument_{i}": {"type": "string", "description": "x" * 90} for i in range(8)}
    tools = []
    for index in range(100):
        own = {"kind": {"const": f"k{index}"}, "nested": {"type": "object", "properties": {"a": {"enum": [1, 2]}}}}
        schema = {"type": "object", "properties": {**own, **properties}, "required": ["kind"]}
        tools.append(Tool(f"tool_{index}", "y" * 200, json.dumps(schema), True, f"tools[{index}]"))
    assert sum(len(tool.parameters) for tool in tools) > 97 * 1024
    for name in TOOL_FORMATS:
        format = ChatFormat(TOOL_FORMATS[name], THINK, tools_in_template=True)
        for use in (ToolUse(tuple(tools), required=True), ToolUse(tuple(tools))):
            constraint = answer_constraint(
                format, thinking=ThinkingState.POSSIBLE, tools=use, form=FORM, spell=writer.spell
            )
            ids = writer.write(writer.grammar(constraint), name, limit=600)
            if ids is not None:
                _, _, calls = writer.read(format, ThinkingState.POSSIBLE, use, ids)
                for called, arguments in calls:
                    schema = json.loads(tools[int(called.removeprefix("tool_"))].parameters)
                    jsonschema_rs.validator_for(schema).validate(json.loads(arguments))
