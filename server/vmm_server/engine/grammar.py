"""Constraint → grammar → which tokens may come next.

A grammar is compiled once and kept; each sequence walks its own copy. Before each draw the copy says which tokens
can still lead to a valid answer, and moves on by the token drawn, so no answer can leave its grammar: it is whole, or
cut off by a limit and says so. Parsing, lexing and masks are llguidance's.

What a client sends as a grammar is a program that runs here. It is bounded in size and in nesting (`constraints`; the
compiler recurses, and a stack overflow would end the process, so its threads also have a large stack), by llguidance's
limits in work, and where these do not bound it, by a trial in another process (`grammar_trial`). Constraints that are
known to be quick never wait for such a trial: they have a thread of their own.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.types import Guidance
from vmm_server.engine.constraints import check_size, grammar_source, is_costly, loosest, shortened
from vmm_server.engine.grammar_trial import MAX_CPU_S, MAX_MEMORY_BYTES, STACK_BYTES, is_bearable, parser_limits
from vmm_server.engine.guidance import guidance_of
from vmm_server.errors import GenerationFailed, InvalidRequest, ShuttingDown, UnsupportedParameter
from vmm_server.requests import Composite, Constraint, JsonSchema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CACHED = 64
"""Compiled grammars kept for each model."""
_NUM_TRIALS = 2
"""That run at a time, for one model."""
_COMPLETE = ("NoExtension", "NoExtensionBias", "EndOfSentence")


class CompiledGrammar:
    """A grammar at its beginning, for one tokeniser. Never moved on, so any thread may copy it."""

    def __init__(self, matcher: "LLMatcher", constraint: Constraint | Composite) -> None:
        self._matcher = matcher
        self.constraint = constraint
        """What it enforces: what was asked for, or what is left of it where it is lenient."""

    @cached_property
    def guidance(self) -> Guidance:
        """The same, for a runtime that draws tokens itself."""
        return guidance_of(self.constraint)

    def start(self) -> "LLMatcher":
        """A matcher of one's own."""
        return self._matcher.deep_copy()


class TokenMatcher:
    """Where one sequence stands in its grammar. For one thread."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._grammar = grammar
        self.failure: str | None = None
        """Set when nothing can be allowed any more although the grammar is not fulfilled."""

    @cached_property
    def _matcher(self) -> "LLMatcher":
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

    def forced(self) -> list[int]:
        """Tokens that have to come next, one after the other; none where there is a choice."""
        matcher = self._matcher
        return [] if matcher.is_stopped() else list(matcher.compute_ff_tokens())

    def num_allowed(self, token_ids: list[int]) -> int:
        """How many of the tokens may come next, one after the other."""
        matcher = self._matcher
        return 0 if matcher.is_stopped() else matcher.validate_tokens(token_ids)

    def _fail(self, reason: str) -> None:
        self.failure = f"the grammar cannot be followed any further: {shortened(reason)}"


class GrammarCompiler:
    """Compiles constraints for one model, in threads of its own; keeps the last `MAX_CACHED`."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        self._vocab_size = vocab_size
        self._cache: OrderedDict[Constraint | Composite, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closed = False
        self._quick = _Threads(1, "vmm-grammar")
        self._costly = _Threads(_NUM_TRIALS, "vmm-grammar-trial")

    def __len__(self) -> int:
        """Grammars kept."""
        return len(self._cache)

    async def compile(self, constraint: Constraint | Composite) -> CompiledGrammar:
        """The grammar of a constraint.

        Raises `InvalidRequest` with llguidance's reason or the limit, naming the field; `ShuttingDown` after `close`;
        `GenerationFailed` where no process can be started for a trial.
        """
        if self._is_closed:
            raise ShuttingDown
        check_size(constraint)
        if (found := self._cached(constraint)) is not None:
            return found
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._quick.executor, is_costly, constraint):
            return await loop.run_in_executor(self._costly.executor, self._try_first, constraint)
        return await loop.run_in_executor(self._quick.executor, self._compile, constraint)

    def close(self) -> None:
        """Compile what was asked for, then end the threads."""
        self._is_closed = True
        self._quick.close()
        self._costly.close()

    @cached_property
    def _ll_tokenizer(self) -> "LLTokenizer":
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = max(self._vocab_size, 1 + max(vocabulary.values(), default=0))
        made: LLTokenizer = import_module("llguidance").LLTokenizer(
            self._tokenizer.to_str(), n_vocab=size, eos_token=self._eos_token_ids or None
        )
        return made

    def _cached(self, constraint: Constraint | Composite) -> CompiledGrammar | None:
        with self._lock:
            if constraint in self._cache:
                self._cache.move_to_end(constraint)
            return self._cache.get(constraint)

    def _try_first(self, constraint: Constraint | Composite) -> CompiledGrammar:
        """Compile it here once another process could."""
        if (found := self._cached(constraint)) is not None:
            return found
        try:
            bearable = is_bearable(grammar_source(constraint))
        except OSError as error:
            raise GenerationFailed(f"no process can be started to check a grammar: {error.strerror}") from error
        if not bearable:
            limits = f"more than {MAX_CPU_S} s or {MAX_MEMORY_BYTES // 2**20} MiB"
            raise InvalidRequest(
                f"{constraint.param}: compiling it takes {limits}, which is the limit",
                param=constraint.param,
                hint="join fewer schemas and patterns (allOf, $ref beside other keywords), and repeat less",
            )
        return self._compile(constraint)

    def _compile(self, constraint: Constraint | Composite) -> CompiledGrammar:
        if (found := self._cached(constraint)) is not None:  # compiled while this one waited
            return found
        param = constraint.param
        try:
            tokenizer = self._ll_tokenizer
        except ValueError as error:
            raise UnsupportedParameter(f"{param}: this model's tokeniser has no masks: {error}", param=param) from error
        grammar = self._build(constraint, tokenizer)
        with self._lock:
            self._cache[constraint] = grammar
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _build(self, constraint: Constraint | Composite, tokenizer: "LLTokenizer") -> CompiledGrammar:
        source = grammar_source(constraint)
        matcher: LLMatcher = import_module("llguidance").LLMatcher(
            tokenizer, source, log_level=0, limits=parser_limits()
        )
        if not matcher.is_error():
            matcher.compute_bitmask()  # what the lexer learns here, each copy knows
        if not matcher.is_error():
            return CompiledGrammar(matcher, constraint)
        if isinstance(constraint, Composite):
            parts = tuple((name, self._enforceable(part, tokenizer)) for name, part in constraint.parts)
            if parts != constraint.parts:
                return self._build(replace(constraint, parts=parts), tokenizer)
        param = constraint.param
        raise InvalidRequest(f"{param}: {shortened(matcher.get_error())}", param=param)

    def _enforceable(self, part: Constraint, tokenizer: "LLTokenizer") -> Constraint:
        """The part, if it is not to blame; else what is left of a lenient one. Raises naming the field of any other."""
        try:
            self._build(part, tokenizer)
        except InvalidRequest:
            if isinstance(part, JsonSchema) and part.lenient:
                return loosest(part)
            raise
        return part


class _Threads:
    """An executor that starts with its first work, and whose threads have room for a compiler that recurses."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """All its threads are there."""
        executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix=self._name)
        started = threading.Barrier(self._num_threads + 1)
        before = threading.stack_size(STACK_BYTES)
        try:
            for _ in range(self._num_threads):
                executor.submit(started.wait)
        finally:
            threading.stack_size(before)
        started.wait()
        return executor

    def close(self) -> None:
        """End the threads once their work is done. Idempotent."""
        if "executor" in self.__dict__:
            self.executor.shutdown(wait=False)
