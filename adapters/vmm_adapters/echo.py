"""The test model: a `CausalLMRunner` that computes nothing and answers predictably.

* In a chat it says the last user message again, token by token, then `<|end|>` (its EOS token).
* Text without the chat's markers it continues with the alphabet: after a letter comes the next one (`z` → `a`), after
  anything else `a`. It never ends by itself.

A folder with a `script.json` holds a model that says other things in a chat (`echo_script`), and echoes the rest.

The expected token's logit stands `PEAK` above small noise that depends on the whole context, so temperatures,
seeds and log-probabilities have something to work on.

It treats its KV blocks as a real decoder does. A position stores its token and a running hash of all tokens up to
it, made from the hash found *through the block table* one position before; every answer is read back from the
blocks. A block table that names a wrong block, a block written while shared, or one given away too early fails
with `RuntimeFailed` or changes the answer.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.echo_script import Script, next_byte, read_script
from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel
from vmm_adapters.types import Batch, Chunk, RunnerOptions

SPECIAL_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
"""Ids from 256 on; ids below are bytes."""
_FIRST_SPECIAL = 256
USER, ASSISTANT, END = (
    _FIRST_SPECIAL + SPECIAL_TOKENS.index(token) for token in ("<|user|>", "<|assistant|>", "<|end|>")
)
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
PEAK = 30.0
"""How far the expected token's logit stands above the noise, which is in [0, 1)."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_MAX_REMEMBERED_ANSWERS = 256

_HASH_FACTOR = np.uint64(6364136223846793005)  # Knuth's MMIX multiplier; arithmetic is modulo 2**64
_BYTES_PER_POSITION = 12


class Gate:
    """Holds a runner at the start of each step until the test lets it go. Safe across threads."""

    def __init__(self) -> None:
        self._entered = Semaphore(0)
        self._permits = Semaphore(0)
        self._is_open = False
        self.batch = Batch(())
        """The step that is held, or was last."""

    def __call__(self, batch: Batch) -> None:
        """Called by the runner."""
        self.batch = batch
        self._entered.release()
        if not self._is_open:
            self._permits.acquire()

    def wait_entered(self, timeout_s: float = 10.0) -> Batch:
        """Block until the runner is held in its next step; returns that step. Raises `TimeoutError`."""
        if not self._entered.acquire(timeout=timeout_s):
            raise TimeoutError(f"the runner did not start a step in {timeout_s} s")
        return self.batch

    def release(self, num_steps: int = 1) -> None:
        """Let this many steps through, the one that is held first."""
        self._permits.release(num_steps)

    def open(self) -> None:
        """Hold nothing any more."""
        self._is_open = True
        self._permits.release()


class EchoRunner:
    """See the module. `gate` is called with every batch before it is computed; it may block (`Gate`) or raise."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 16,
        context_length: int = 512,
        vocab_size: int = VOCAB_SIZE,
        gate: Callable[[Batch], None] | None = None,
        script: Script | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.device = "CPU"
        self.memory_bytes = num_blocks * block_size * _BYTES_PER_POSITION
        self.is_closed = False
        self.gate = gate
        self._script = script
        self._answers: dict[int, bytes] = {}
        """What a scripted model says, by the hash of the conversation: searched once an answer, not once a token."""
        self._tokens = np.zeros((num_blocks, block_size), np.int32)
        self._hashes = np.zeros((num_blocks, block_size), np.uint64)
        self._columns = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """See `CausalLMRunner.execute`. Raises `RuntimeFailed` when a block table cannot be right."""
        if self.gate is not None:
            self.gate(batch)
        expected: list[int] = []
        states: list[np.uint64] = []
        for chunk in batch.chunks:
            tokens, hashes = self._store(chunk)
            for end in range(len(tokens) - chunk.num_logits + 1, len(tokens) + 1):
                expected.append(self._next_token(tokens[:end], hashes))
                states.append(hashes[end - 1])
        return self._logits(expected, states)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """See `CausalLMRunner.copy_blocks`."""
        for source, target in pairs:
            self._tokens[target] = self._tokens[source]
            self._hashes[target] = self._hashes[source]

    def warm_up(self) -> None:
        """There is nothing to warm."""

    def close(self) -> None:
        """Forget the blocks."""
        self.is_closed = True
        self._tokens = self._tokens[:0]
        self._hashes = self._hashes[:0]

    def _store(self, chunk: Chunk) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Write the chunk's tokens through its block table; returns all tokens and hashes up to its end."""
        size = self.block_size
        end = chunk.start + len(chunk.token_ids)
        if end > len(chunk.block_table) * size:
            raise RuntimeFailed(f"{len(chunk.block_table)} blocks of {size} cannot hold {end} positions")
        table = np.array(chunk.block_table[: -(-end // size)], np.intp)
        positions = np.arange(chunk.start, end)
        self._tokens[table[positions // size], positions % size] = chunk.token_ids
        tokens = self._tokens[table].reshape(-1)[:end]
        hashes = self._hashes[table].reshape(-1)[:end]
        state = int(hashes[chunk.start - 1]) if chunk.start else 1
        for position, token in enumerate(chunk.token_ids, chunk.start):
            state = (state * int(_HASH_FACTOR) + token + 1) % 2**64
            hashes[position] = state
        self._hashes[table[positions // size], positions % size] = hashes[chunk.start :]
        before = np.concatenate((np.ones(1, np.uint64), hashes[:-1]))
        wrong = hashes != before * _HASH_FACTOR + tokens.astype(np.uint64) + np.uint64(1)
        if wrong.any():
            position = int(wrong.argmax())
            raise RuntimeFailed(f"block {table[position // size]} does not hold position {position} of this sequence")
        return tokens, hashes

    def _next_token(self, tokens: NDArray[np.int32], hashes: NDArray[np.uint64]) -> int:
        """The script's next token, else the echo's."""
        starts = np.flatnonzero(tokens == ASSISTANT)
        if self._script is None or not len(starts):
            return next_token(tokens)
        start = int(starts[-1])
        key = int(hashes[start])
        if key not in self._answers:
            if len(self._answers) == _MAX_REMEMBERED_ANSWERS:
                self._answers.clear()
            answer = self._script.answer(decode(tokens[: start + 1]))
            self._answers[key] = decode(last_question(tokens[:start])) if answer is None else answer
        byte = next_byte(self._answers[key], decode(tokens[start + 1 :]))
        return END if byte is None else byte

    def _logits(self, expected: list[int], states: list[np.uint64]) -> NDArray[np.float32]:
        """float32 `[len(expected), vocab_size]`: noise hashed from (state, column), and the peaks."""
        mixed = np.array(states, np.uint64)[:, None] ^ self._columns
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        logits = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        logits[np.arange(len(expected)), expected] = PEAK
        return logits


def next_token(tokens: NDArray[np.int32]) -> int:
    """What the model says after this context (int32 `[n]`, n > 0)."""
    answers = np.flatnonzero(tokens == ASSISTANT)
    if not len(answers):
        last = int(tokens[-1])
        return last + 1 if ord("a") <= last < ord("z") or ord("A") <= last < ord("Z") else ord("a")
    answer = int(answers[-1])
    question = last_question(tokens[:answer])
    spoken = len(tokens) - answer - 1
    return int(question[spoken]) if spoken < len(question) else END


def last_question(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """What the user said last in a conversation (int32 `[n]`)."""
    users = np.flatnonzero(tokens == USER)
    question = tokens[users[-1] + 1 :] if len(users) else tokens[:0]
    ends = np.flatnonzero(question == END)
    return question[: ends[0]] if len(ends) else question


def decode(tokens: NDArray[np.int32]) -> bytes:
    """The text of these tokens (int32 `[n]`), special tokens by their names."""
    specials = np.flatnonzero(tokens >= _FIRST_SPECIAL)
    pieces, start = [], 0
    for position in specials:
        pieces.append(tokens[start:position].astype(np.uint8).tobytes())
        pieces.append(SPECIAL_TOKENS[int(tokens[position]) - _FIRST_SPECIAL].encode())
        start = int(position) + 1
    return b"".join((*pieces, tokens[start:].astype(np.uint8).tobytes()))


def encode(text: str) -> list[int]:
    """The tokens of a text, special tokens by their names."""
    pieces = re.split("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")", text)
    specials = {token: _FIRST_SPECIAL + index for index, token in enumerate(SPECIAL_TOKENS)}
    return [token for piece in pieces for token in ([specials[piece]] if piece in specials else piece.encode())]


def read_sizes(folder: Path) -> tuple[int, int]:
    """Context length and block size of what `write_echo_model` wrote. Raises `UnsupportedModel` for any other model."""
    try:
        model = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
        kind, context_length, block_size = model["type"], model["context_length"], model.get("block_size", 16)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{folder.name} is not an echo model: {error}") from error
    if kind != "echo":
        raise UnsupportedModel(f"the echo adapter cannot run a {kind!r} model")
    return context_length, block_size


def load_runner(folder: Path, options: RunnerOptions) -> EchoRunner:
    """Load what `write_echo_model` wrote. Raises `UnsupportedModel` for any other model, `OutOfMemory`."""
    context_length, block_size = read_sizes(folder)
    affordable = options.kv_cache_bytes // (block_size * _BYTES_PER_POSITION)
    useful = options.max_sequences * -(-context_length // block_size)
    if affordable == 0:
        raise OutOfMemory("no room for one KV block", hint="raise memory_budget")
    return EchoRunner(
        num_blocks=min(affordable, useful),
        block_size=block_size,
        context_length=context_length,
        script=read_script(folder),
    )


def write_echo_model(folder: Path, *, context_length: int = 512, block_size: int = 16) -> None:
    """Write a model folder that `load_runner` and `tokenizers` read. Existing files are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|end|>",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        },
        "genai_config.json": {
            "model": {
                "type": "echo",
                "context_length": context_length,
                "block_size": block_size,
                "vocab_size": VOCAB_SIZE,
                "eos_token_id": [END],
                "pad_token_id": END,
            },
            "search": {"max_length": context_length},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def tokenizer_json() -> dict[str, object]:
    """A byte-level BPE without merges, as `tokenizer.json`: the token id of a byte is the byte."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 256 + i, "content": token, **special} for i, token in enumerate(SPECIAL_TOKENS)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {each: byte for byte, each in enumerate(_byte_characters())}, "merges": []},
    }


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
