"""How well a text model foretells a text, scored as llama-perplexity does.

The text is cut into windows of 512 tokens; of each, the second half is scored, every token by the logits at the one
before it. Perplexity is e to the mean negative log likelihood (natural logarithm) of what was scored.
"""

from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from vmm_adapters.base import CausalLMRunner
from vmm_adapters.types import Batch, Chunk
from vmm_server.errors import InvalidRequest

WINDOW = 512
_PIECE = 64
"""Tokens whose logits are in memory at a time."""


def text_windows(tokenizer: Tokenizer, text: str, context_length: int) -> list[list[int]]:
    """The whole windows of a text. Each begins with the token that the tokeniser puts before texts, if it has one.

    Raises `InvalidRequest` (param `text`) for a text that has none.
    """
    size = min(WINDOW, context_length)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    before: list[int] = tokenizer.encode("", add_special_tokens=True).ids[:1]
    windows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    if not windows:
        raise InvalidRequest(
            f"text: has {len(ids)} tokens, at least {size} are needed", param="text", hint="name a longer text"
        )
    return [[*before, *window[len(before) :]] for window in windows]


def perplexity(
    runner: CausalLMRunner, windows: Sequence[Sequence[int]], progress: Callable[[int, int], None]
) -> tuple[float, int]:
    """(perplexity, tokens scored). `progress` is told (windows done, of how many) and may raise."""
    total, count = 0.0, 0
    for done, window in enumerate(windows):
        progress(done, len(windows))
        table = range(-(-len(window) // runner.block_size))
        half = len(window) // 2
        runner.execute(Batch((Chunk(window[:half], 0, table, num_logits=0),)))
        for start in range(half, len(window) - 1, _PIECE):
            piece = window[start : min(start + _PIECE, len(window) - 1)]
            rows = runner.execute(Batch((Chunk(piece, start, table, num_logits=len(piece)),))).astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            following = window[start + 1 : start + 1 + len(piece)]
            total += float((rows[np.arange(len(rows)), following] - np.log(np.exp(rows).sum(axis=1))).sum())
            count += len(piece)
    progress(len(windows), len(windows))
    return float(np.exp(-total / count)), count
