"""Constraint → grammar → which tokens may come next.

A grammar is compiled once and kept; each sequence walks its own copy. Before each draw the copy says which tokens
can still lead to a valid answer, and moves on by the token drawn, so no answer can leave its grammar: it is whole, or
cut off by a limit and says so. Parsing, lexing and masks are llguidance's.

What a client sends as a grammar is a program that runs here. It is bounded in size, in nesting (the compiler recurses;
a stack overflow would end the process, so its thread also has a large stack) and, by llguidance's limits, in work.
"""

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_server.errors import InvalidRequest, ShuttingDown, UnsupportedParameter
from vmm_server.requests import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 4096
"""(Different `$ref`s + 1) x nesting, which is what the compiler's recursion cannot exceed."""
MAX_REGEX_BYTES = 16 * 1024
MAX_CHOICES = 1000
MAX_CHOICE_BYTES = 64 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_GRAMMAR_NODES = 2000
"""Rules, groups and objects of a grammar: each can be one level of recursion."""
MAX_CACHED = 64
"""Compiled grammars kept for each model."""
MAX_REASON = 500
"""Characters of llguidance's reason in an error."""

_STACK_BYTES = 256 * 1024**2  # address space; pages are taken as they are touched
_JSON_OPTIONS: "JsonCompileOptions" = {
    # all of them, because options in the schema itself (x-guidance) could weaken what is promised
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,16}",  # a model that loops on blanks gets on
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
    # without \u, by which a key could be spelt twice: {"a": 1, "\u0061": "x"} is one property, and not the schema's
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
}
# what those escapes cannot write, in a text and (group 1) as an escape in a pattern: llguidance would leave it out
_CONTROL = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")
_CONTROL_ESCAPE = re.compile(r"\\(?:(x[01]|x7[fF]|x\{|u00[01]|u007[fF]|u\{|U|c|[0-9av])|.)", re.DOTALL)
_COMPLETE = ("NoExtension", "NoExtensionBias", "EndOfSentence")


class CompiledGrammar:
    """A grammar at its beginning, for one tokeniser. Never moved on, so any thread may copy it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def start(self) -> LLMatcher:
        """A matcher of one's own."""
        return self._matcher.deep_copy()


class TokenMatcher:
    """Where one sequence stands in its grammar. For one thread."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self.failure: str | None = None
        """Set when nothing can be allowed any more although the grammar is not fulfilled."""

    @cached_property
    def _matcher(self) -> LLMatcher:
        return self._grammar.start()

    @property
    def is_complete(self) -> bool:
        """The grammar is fulfilled and allows nothing more."""
        matcher = self._matcher
        return matcher.is_stopped() and matcher.stop_reason() in _COMPLETE and matcher.is_accepting()

    def allowed(self, num_tokens: int) -> NDArray[np.bool_]:
        """bool `[num_tokens]`: may this token come next? EOS tokens only where the grammar is fulfilled."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():  # the mask is then EOS alone, which would pass for an end
            self._fail(self._matcher.get_error())
        elif self._matcher.is_stopped() and not self.is_complete:
            self._fail(self._matcher.stop_reason())
        if self.failure is not None:
            return np.zeros(num_tokens, np.bool_)
        return np.unpackbits(bits, count=num_tokens, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """Move on by a token that was allowed."""
        if not self._matcher.consume_token(token_id):
            self._fail(self._matcher.get_error())

    def _fail(self, reason: str) -> None:
        self.failure = f"the grammar cannot be followed any further: {_shortened(reason)}"


class GrammarCompiler:
    """Compiles constraints for one model, in a thread of its own, one at a time; keeps the last `MAX_CACHED`."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        self._vocab_size = vocab_size
        self._cache: OrderedDict[Constraint, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False
        # below llguidance's own number where that allows gigabytes: a lexer state takes up to 2 KB
        self._limits = LLParserLimits(max_lexer_states=25_000, verbose_errors=False)

    def __len__(self) -> int:
        """Grammars kept."""
        return len(self._cache)

    async def compile(self, constraint: Constraint) -> CompiledGrammar:
        """The grammar of a constraint.

        Raises `InvalidRequest` with llguidance's reason, naming the field; `ShuttingDown` after `close`.
        """
        if self._is_closed:
            raise ShuttingDown
        _check_size(constraint)
        if (found := self._cached(constraint)) is not None:
            return found
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._compile, constraint)

    def close(self) -> None:
        """Compile what was asked for, then end the thread."""
        self._is_closed = True
        if "_executor" in self.__dict__:
            self._executor.shutdown(wait=False)

    @cached_property
    def _executor(self) -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(1, thread_name_prefix="vmm-grammar")
        before = threading.stack_size(_STACK_BYTES)
        try:
            executor.submit(int)  # starts the thread
        finally:
            threading.stack_size(before)
        return executor

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = max(self._vocab_size, 1 + max(vocabulary.values(), default=0))
        return LLTokenizer(self._tokenizer.to_str(), n_vocab=size, eos_token=self._eos_token_ids or None)

    def _cached(self, constraint: Constraint) -> CompiledGrammar | None:
        with self._lock:
            if constraint in self._cache:
                self._cache.move_to_end(constraint)
            return self._cache.get(constraint)

    def _compile(self, constraint: Constraint) -> CompiledGrammar:
        if (found := self._cached(constraint)) is not None:  # compiled while this one waited
            return found
        param = constraint.param
        try:
            tokenizer = self._ll_tokenizer
        except ValueError as error:
            raise UnsupportedParameter(f"{param}: this model's tokeniser has no masks: {error}", param=param) from error
        source = _source(constraint)
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what the lexer learns here, each copy knows
        if matcher.is_error():
            raise InvalidRequest(f"{param}: {_shortened(matcher.get_error())}", param=param)
        grammar = CompiledGrammar(matcher)
        with self._lock:
            self._cache[constraint] = grammar
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar


def _source(constraint: Constraint) -> str:
    """The grammar as llguidance reads it. Raises `InvalidRequest`."""
    param = constraint.param
    try:
        match constraint:
            case JsonObject():
                return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)
            case JsonSchema(schema):
                _check_schema(schema, param)
                return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
            case Regex(pattern):
                return LLMatcher.grammar_from_regex(pattern)
            case Choice(choices):
                strings = (json.dumps(choice, ensure_ascii=False) for choice in choices)
                return LLMatcher.grammar_from_lark("start: " + " | ".join(strings))
            case Grammar(text):
                lark = any_to_lark(text)
                _check_nodes(lark, param)
                return LLMatcher.grammar_from_lark(lark)
    except InvalidRequest:
        raise
    except Exception as error:  # the reader of GBNF raises bare ones
        raise InvalidRequest(f"{param}: {_shortened(str(error))}", param=param) from error


def _check_size(constraint: Constraint) -> None:
    match constraint:
        case JsonObject():
            return
        case JsonSchema(text, param):
            limit = MAX_SCHEMA_BYTES
        case Regex(text, param):
            limit = MAX_REGEX_BYTES
        case Grammar(text, param):
            limit = MAX_GRAMMAR_BYTES
        case Choice(choices, param):
            if not 1 <= len(choices) <= MAX_CHOICES:
                raise InvalidRequest(f"{param}: {len(choices)} choices, 1 to {MAX_CHOICES} are taken", param=param)
            text, limit = "".join(choices), MAX_CHOICE_BYTES
    size = len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise InvalidRequest(f"{param}: {size} bytes, the limit is {limit}", param=param)
    if isinstance(constraint, Grammar):
        _check_nodes(text, param)


def _check_schema(schema: str, param: str) -> None:
    """Raise `InvalidRequest` for what llguidance would not notice: too deep for a stack, or not to be enforced."""
    references: set[str] = set()
    depth, level = 0, [json.loads(schema)]
    while level:
        depth += 1
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                references.update(target for key, target in value.items() if key == "$ref" and isinstance(target, str))
                below.extend(value.values())
                _check_min_properties(value, param)
                _check_characters(value, param)
            elif isinstance(value, list):
                below.extend(value)
        level = below
    if (1 + len(references)) * depth > MAX_SCHEMA_DEPTH:
        message = f"{len(references)} references at a nesting of {depth}, their product may be {MAX_SCHEMA_DEPTH}"
        raise InvalidRequest(f"{param}: {message}", param=param)


def _check_min_properties(schema: dict[str, object], param: str) -> None:
    """Properties are counted as they are written, and nothing keeps a free one from being written twice."""
    fewest, required = schema.get("minProperties"), schema.get("required")
    if isinstance(fewest, int) and fewest > (len(required) if isinstance(required, list) else 0):
        reason = f"minProperties: {fewest} is more than the required properties, and cannot be enforced"
        raise InvalidRequest(f"{param}: {reason}", param=param)


def _check_characters(schema: dict[str, object], param: str) -> None:
    """Control characters without a short escape cannot be written."""
    texts = [*schema, *_strings(schema.values())]
    pattern, properties = schema.get("pattern"), schema.get("patternProperties")
    patterns = [pattern] if isinstance(pattern, str) else []
    patterns.extend(properties if isinstance(properties, dict) else ())
    escapes = (match[1] for text in patterns for match in _CONTROL_ESCAPE.finditer(text))
    if any(map(_CONTROL.search, texts)) or any(escapes):
        raise InvalidRequest(f"{param}: control characters cannot be enforced, but \\b \\t \\n \\f \\r", param=param)


def _strings(values: Iterable[object]) -> Iterator[str]:
    """Those among the values, and in arrays among them."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _strings(value)


def _check_nodes(text: str, param: str) -> None:
    """Raise `InvalidRequest` for a grammar that would need too much of the compiler's stack."""
    nodes = sum(text.count(character) for character in ":([{")
    if nodes > MAX_GRAMMAR_NODES:
        message = f"{nodes} rules, groups and objects, the limit is {MAX_GRAMMAR_NODES}"
        raise InvalidRequest(f"{param}: {message}", param=param)


def _shortened(reason: str) -> str:
    text = " ".join(reason.split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"
