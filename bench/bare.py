"""The runner alone, loaded in this process."""

import time
from pathlib import Path

import numpy as np

from vmm_adapters import catalog
from vmm_adapters.base import CausalLMRunner
from vmm_adapters.types import Batch, Chunk, KVCacheType, RunnerOptions


def kv_bytes(adapter: str, folder: Path, num_tokens: int, kv_cache_type: KVCacheType | None = None) -> int:
    """Bytes of the KV blocks that hold so many tokens, read off a small runner."""
    room = 256 * 1024**2  # a block's size comes out the more exactly, the more of them there are
    options = RunnerOptions(kv_cache_bytes=room, kv_cache_type=kv_cache_type)
    runner = catalog.load_causal_lm(adapter, folder, options)
    size = room // runner.num_blocks * -(-num_tokens // runner.block_size)
    runner.close()
    return size


def prefill_s(runner: CausalLMRunner, num_tokens: int, budget: int, rng: np.random.Generator) -> float:
    """Seconds that a random prompt takes, `budget` tokens a step."""
    tokens = rng.integers(100, 40_000, num_tokens).tolist()
    table = range(-(-num_tokens // runner.block_size))
    started = time.perf_counter()
    for start in range(0, num_tokens, budget):
        part = tokens[start : start + budget]
        runner.execute(Batch((Chunk(part, start, table, int(start + len(part) == num_tokens)),)))
    return time.perf_counter() - started
