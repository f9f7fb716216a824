"""The test model as a `TextBackend`: `echo`'s words, drawn by itself, for whatever is built on such runtimes.

It computes at most `max_sequences` requests, one token each a step, on an `EchoRunner` that has one large block for
each of them. A block keeps its tokens until another request takes it, so a prompt that begins as an earlier one did is
cached. An image is seen as its size: `[4x3]`, width by height, goes before what the user said last, and so comes back.

It fails when told to: `gate` may raise in a step, which then loses all requests, and `fail` says which request fails
alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from vmm_adapters.echo import END, SPECIAL_TOKENS, USER, VOCAB_SIZE, EchoRunner, encode, read_sizes, tokenizer_json
from vmm_adapters.echo_script import Script, read_script
from vmm_adapters.errors import AdapterError, OutOfMemory, RuntimeFailed
from vmm_adapters.types import (
    Batch,
    Chunk,
    FinishReason,
    Guidance,
    RunnerOptions,
    SamplingParams,
    TextOutput,
    TextRequest,
)

MAX_SEQUENCES = 4
LACKS: Mapping[str, str] = MappingProxyType(
    {
        "logprobs": "this runtime draws tokens without saying how likely they were",
        "prompt_logprobs": "this runtime keeps no logits of the prompt",
        "logit_bias": "this runtime takes no bias",
        "min_p": "this runtime does not know min_p",
        "typical_p": "this runtime does not know typical_p",
        "repetition_penalty": "this runtime has no penalties",
        "repetition_window": "this runtime has no penalties",
        "presence_penalty": "this runtime has no penalties",
        "frequency_penalty": "this runtime has no penalties",
    }
)

Fail = Callable[[TextRequest, int], AdapterError | None]
"""A request and how many tokens it has drawn → what it fails with before the next one."""


@dataclass(slots=True)
class _Sequence:
    """A request under way; the first `num_computed` of its tokens are in block `slot`."""

    request: TextRequest
    token_ids: list[int]
    num_prompt_tokens: int
    slot: int
    num_computed: int
    num_cached: int
    random: np.random.Generator | None
    matcher: LLMatcher | None

    @property
    def num_drawn(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


class EchoBackend:
    """See the module, and `TextBackend`. `gate` is called with every batch before it is computed (`echo.Gate`)."""

    def __init__(
        self,
        *,
        max_sequences: int = MAX_SEQUENCES,
        context_length: int = 512,
        lacks: Mapping[str, str] = LACKS,
        device: str = "CPU",
        gate: Callable[[Batch], None] | None = None,
        fail: Fail | None = None,
        script: Script | None = None,
    ) -> None:
        self.max_sequences = max_sequences
        self.vocab_size = VOCAB_SIZE
        self.context_length = context_length
        self.device = device
        self.lacks = lacks
        self.gate = gate
        self._runner = EchoRunner(
            num_blocks=max_sequences, block_size=context_length, context_length=context_length, gate=gate, script=script
        )
        self.memory_bytes = self._runner.memory_bytes
        self._fail = fail
        self._sequences: dict[int, _Sequence] = {}
        self._computed: list[list[int]] = [[] for _ in range(max_sequences)]
        """What each block holds."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._runner.is_closed

    def add(self, request: TextRequest) -> None:
        """See `TextBackend.add`."""
        token_ids = list(request.token_ids) if request.text is None else _seen(request.text, request.images)
        limit = min(request.max_length, self.context_length)
        if not 0 < len(token_ids) < limit:
            raise RuntimeFailed(f"a prompt of {len(token_ids)} tokens, where 1 to {limit - 1} leave room for an answer")
        if len(self._sequences) == self.max_sequences:
            raise RuntimeFailed(f"{self.max_sequences} requests at the same time at most")
        matcher = None if request.guidance is None else self._matcher(request.guidance)
        taken = {sequence.slot for sequence in self._sequences.values()}
        free = (slot for slot in range(self.max_sequences) if slot not in taken)
        num_cached, slot = max((_num_common(token_ids[:-1], self._computed[slot]), -slot) for slot in free)
        sampling = request.sampling
        seed = None if sampling.seed is None else sampling.seed % 2**64
        random = None if sampling.temperature == 0 else np.random.default_rng(seed)
        self._sequences[request.id] = _Sequence(
            request, token_ids, len(token_ids), -slot, num_cached, num_cached, random, matcher
        )

    def step(self) -> Sequence[TextOutput]:
        """See `TextBackend.step`: one token for each request."""
        outputs = [output for sequence in list(self._sequences.values()) if (output := self._failed(sequence))]
        under_way = list(self._sequences.values())
        if not under_way:
            return outputs
        chunks = (Chunk(each.token_ids[each.num_computed :], each.num_computed, [each.slot]) for each in under_way)
        try:
            logits = self._runner.execute(Batch(tuple(chunks)))
        except Exception:
            self._sequences.clear()
            self._computed = [[] for _ in self._computed]
            raise
        return [*outputs, *map(self._advance, under_way, logits)]

    def abort(self, request_id: int) -> None:
        """See `TextBackend.abort`."""
        self._sequences.pop(request_id, None)

    def warm_up(self) -> None:
        """There is nothing to warm."""

    def close(self) -> None:
        """Forget everything."""
        self._sequences.clear()
        self._runner.close()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(json.dumps(tokenizer_json()), n_vocab=VOCAB_SIZE, eos_token=[END])

    def _matcher(self, guidance: Guidance) -> LLMatcher:
        match guidance.kind:
            case "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(guidance.text)
            case "regex":
                grammar = LLMatcher.grammar_from_regex(guidance.text)
            case "lark":
                grammar = LLMatcher.grammar_from_lark(guidance.text)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RuntimeFailed(f"the guidance cannot be compiled: {matcher.get_error()}")
        return matcher

    def _failed(self, sequence: _Sequence) -> TextOutput | None:
        """Its end, if it is told to fail now."""
        if self._fail is None or (error := self._fail(sequence.request, sequence.num_drawn)) is None:
            return None
        del self._sequences[sequence.request.id]
        return TextOutput(sequence.request.id, error=error)

    def _advance(self, sequence: _Sequence, logits: NDArray[np.float32]) -> TextOutput:
        """Draw a token, and end the request if it is the last one."""
        request, sampling = sequence.request, sequence.request.sampling
        is_first = sequence.num_drawn == 0
        sequence.num_computed = len(sequence.token_ids)
        self._computed[sequence.slot] = list(sequence.token_ids)
        token_id = _draw(self._masked(sequence, logits), sampling, sequence.random)
        if token_id is None:
            del self._sequences[request.id]
            return TextOutput(request.id, error=RuntimeFailed("every token is forbidden"))
        sequence.token_ids.append(token_id)
        reason = self._finish_reason(sequence, token_id)
        if reason is not None:
            del self._sequences[request.id]
        return TextOutput(
            request.id,
            (token_id,),
            reason,
            num_prompt_tokens=sequence.num_prompt_tokens if is_first else None,
            num_cached_tokens=sequence.num_cached if is_first else None,
        )

    def _masked(self, sequence: _Sequence, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits (float32 `[vocab_size]`), -inf where a token must not come."""
        request, row = sequence.request, logits.copy()
        if sequence.num_drawn < request.sampling.min_tokens:
            row[[*request.eos_token_ids, *request.sampling.stop_token_ids]] = -np.inf
        if sequence.matcher is not None:
            bits = np.frombuffer(sequence.matcher.compute_bitmask(), np.uint8)
            row[np.unpackbits(bits, count=len(row), bitorder="little") == 0] = -np.inf
        elif request.sampling.ignore_eos:
            row[END] = -np.inf
        return row

    def _finish_reason(self, sequence: _Sequence, token_id: int) -> FinishReason | None:
        request, matcher = sequence.request, sequence.matcher
        if token_id in request.eos_token_ids or token_id in request.sampling.stop_token_ids:
            return FinishReason.STOP
        if matcher is not None and (not matcher.consume_token(token_id) or matcher.is_stopped()):
            return FinishReason.STOP
        is_long = len(sequence.token_ids) >= min(request.max_length, self.context_length)
        return FinishReason.LENGTH if is_long or sequence.num_drawn == request.sampling.max_tokens else None


def load_backend(folder: Path, options: RunnerOptions) -> EchoBackend:
    """Load what `write_echo_model` wrote. Raises `UnsupportedModel` for any other model, `OutOfMemory`."""
    context_length, _ = read_sizes(folder)
    max_sequences = min(MAX_SEQUENCES, options.max_sequences)
    backend = EchoBackend(
        max_sequences=max_sequences, context_length=context_length, device=options.device, script=read_script(folder)
    )
    if backend.memory_bytes > options.kv_cache_bytes:
        raise OutOfMemory(f"no room for {max_sequences} sequences", hint="raise memory_budget")
    return backend


def _seen(text: str, images: Sequence[NDArray[np.uint8]]) -> list[int]:
    """The tokens of a rendered prompt, with its images."""
    sizes = "".join(f"[{image.shape[1]}x{image.shape[0]}]" for image in images)
    before, user, question = text.rpartition(SPECIAL_TOKENS[USER - 256])
    return encode(before + user + sizes + question)


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    unequal = (position for position, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(unequal, min(len(left), len(right)))


def _draw(row: NDArray[np.float32], params: SamplingParams, random: np.random.Generator | None) -> int | None:
    """A token by temperature, `top_k` and `top_p`; `None` where all are forbidden."""
    best = np.argsort(-row, kind="stable")
    best = best[np.isfinite(row[best])][: params.top_k or None]
    if not len(best):
        return None
    if random is None:
        return int(best[0])
    weights = np.exp((row[best] - row[best[0]]).astype(np.float64) / params.temperature)
    cumulative = np.cumsum(weights / weights.sum())
    num_kept = int(np.searchsorted(cumulative, min(params.top_p, cumulative[-1]))) + 1
    return int(best[np.searchsorted(cumulative[:num_kept], random.random() * cumulative[num_kept - 1], side="right")])
