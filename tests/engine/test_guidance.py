"""What a runtime is told allows, token for token, what our own compiler allows."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from vmm_adapters.echo import END, VOCAB_SIZE, tokenizer_json
from vmm_adapters.types import Guidance
from vmm_server.engine.constraints import grammar_source
from vmm_server.engine.guidance import guidance_of
from vmm_server.errors import InvalidRequest
from vmm_server.prompt.answer import ThinkingState
from vmm_server.prompt.form import answer_constraint
from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat
from vmm_server.prompt.formats.detect import TOOL_FORMATS
from vmm_server.prompt.spelling import Spelling
from vmm_server.requests import (
    Choice,
    Composite,
    Constraint,
    Grammar,
    JsonObject,
    JsonSchema,
    Regex,
    Tool,
    ToolUse,
)

from .test_grammar import random_schema

TOKENIZER = LLTokenizer(json.dumps(tokenizer_json()), n_vocab=VOCAB_SIZE, eos_token=[END])
MAX_STEPS = 80
LARK = 'start: (word | "@other" | other)+ "}"\nword: /[a-c]+/\nother: "0".."9" /[@}{]/\n%ignore / /'
GBNF = 'root ::= item ("," item)*\nitem ::= [a-z]+ | "\\"" [^"]* "\\""'
REGEXES = (r"[a-c]{2,4}/\d+", "a|b/c|", r"(?s:.)x\n", r"@a|\}", "(?i)yes|no")

texts = st.text(st.sampled_from('ab@"\\/}{[]()^$.*+?|#&~-\n é'), min_size=1, max_size=6)
leaves: st.SearchStrategy[Constraint] = st.one_of(
    st.just(JsonObject("p")),
    st.builds(
        lambda seed, lenient: JsonSchema(json.dumps(random_schema(random.Random(seed))), "p", lenient),
        st.integers(0, 10_000),
        st.booleans(),
    ),
    st.sampled_from(REGEXES).map(lambda text: Regex(text, "p")),
    st.lists(texts, min_size=1, max_size=4, unique=True).map(lambda choices: Choice(tuple(choices), "p")),
    st.sampled_from([LARK, GBNF]).map(lambda text: Grammar(text, "p")),
)
COMPOSITES = (
    'start: "<" @one ">" @two',
    'start: (@one | "@two" "/@one" /@[ab]/)  @two?',
    'start: begin @one\nbegin: "\\"@one" part_one | @two\npart_one: /[^@]\\/@two/',
    'start: <|tool|> @one ("," @two)* <|end|>',
)
constraints = leaves | st.builds(
    lambda lark, one, two: Composite(lark, (("one", one), ("two", two)), "p"),
    st.sampled_from(COMPOSITES),
    leaves,
    leaves,
)


def told(guidance: Guidance) -> str:
    """The grammar that a runtime compiles of it."""
    match guidance.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(guidance.text)
        case "regex":
            return LLMatcher.grammar_from_regex(guidance.text)
        case "lark":
            return LLMatcher.grammar_from_lark(guidance.text)


def matcher(grammar: str) -> LLMatcher:
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def allowed(matcher: LLMatcher) -> set[int]:
    bits = matcher.compute_bitmask()
    return {token_id for token_id in range(VOCAB_SIZE) if bits[token_id // 8] >> token_id % 8 & 1}


def compare(constraint: Constraint | Composite, rng: random.Random, num_steps: int = MAX_STEPS) -> None:
    """Walk both grammars by the same tokens."""
    try:
        original = LLMatcher(TOKENIZER, grammar_source(constraint), log_level=0)
    except InvalidRequest:
        return
    if original.is_error():  # such a one is refused before anybody is told of it
        return
    guided, last = matcher(told(guidance_of(constraint))), -1
    for _ in range(num_steps):
        assert guided.is_accepting() == original.is_accepting()
        assert guided.is_stopped() == original.is_stopped()
        if original.is_stopped():
            break
        tokens, others = allowed(original), allowed(guided)
        if last == ord("\\"):  # \u is not told of
            tokens, others = tokens - {ord("u")}, others - {ord("u")}
        assert others == tokens
        last = rng.choice(sorted(tokens))
        assert original.consume_token(last)
        assert guided.consume_token(last)


@settings(max_examples=120, deadline=None)
@given(constraints, st.randoms(use_true_random=False))
def test_it_allows_the_same_tokens(constraint: Constraint | Composite, rng: random.Random) -> None:
    compare(constraint, rng)


@pytest.mark.parametrize("is_required", [True, False])
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_of_tools_are_the_same(name: str, is_required: bool, tokenizer: Tokenizer) -> None:
    format = ChatFormat(TOOL_FORMATS[name], ReasoningFormat("<think>", "</think>"), tools_in_template=True)
    rng = random.Random(name)
    tools = tuple(Tool(f"f{i}", None, json.dumps(random_schema(rng)), strict=i > 0) for i in range(2))
    for form in (None, JsonObject("p")):
        use = ToolUse(tools, required=is_required and form is None)
        thinking = ThinkingState.NONE if is_required else ThinkingState.OPEN
        constraint = answer_constraint(format, thinking=thinking, tools=use, form=form, spell=Spelling(tokenizer))
        assert isinstance(constraint, Composite)
        matcher(told(guidance_of(constraint)))
        for _ in range(2):
            compare(constraint, rng, 2 * MAX_STEPS)


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [
        (JsonObject("p"), "json_schema"),
        (JsonSchema('{"type": "null"}', "p"), "json_schema"),
        (Regex("a+", "p"), "regex"),
        (Choice(("a", "b"), "p"), "regex"),
        (Grammar(GBNF, "p"), "lark"),
        (Composite("start: @a", (("a", Regex("a+", "p")),), "p"), "lark"),
    ],
)
def test_it_is_of_the_plainest_kind(constraint: Constraint | Composite, kind: str) -> None:
    assert guidance_of(constraint).kind == kind


def test_a_schema_is_as_it_was_sent_but_for_how_it_is_enforced() -> None:
    sent = {"type": "object", "properties": {"é": {"const": 1}}, "x-guidance": {"lenient": True}}
    text = guidance_of(JsonSchema(json.dumps(sent), "p")).text
    schema = json.loads(text)
    options = schema.pop("x-guidance")
    assert schema == {"type": "object", "properties": {"é": {"const": 1}}}
    assert not options["lenient"]
    assert not {name for name in options if name.startswith("json_")}, "older releases refuse what they do not know"


def test_a_name_in_a_text_is_no_reference() -> None:
    lark = guidance_of(Composite('start: "@a" /@a/ @a', (("a", Choice(("x",), "p")),), "p")).text
    assert re.findall(r"@a|part_a", lark) == ["@a", "@a", "part_a", "part_a"]
