"""The default model through the paged runner says a text as well as llama.cpp does on the same file."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from vmm_adapters.openvino.runner import load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.models.store import InstalledModel

LLAMA_CPP = 17.505
"""llama-perplexity -c 512 on tests/data/ppl.txt and the default model's GGUF, 6 chunks."""
CHUNK = 512


@pytest.mark.runtime
def test_perplexity_is_within_half_a_percent_of_llama_cpps(smollm2: InstalledModel, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "data" / "ppl.txt").read_text()
    tokens = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    runner = load_runner(smollm2.folder, RunnerOptions(kv_cache_bytes=64 << 20, cache_dir=tmp_path))
    table = range(-(-CHUNK // runner.block_size))
    likelihoods = []
    for start in range(0, 6 * CHUNK, CHUNK):
        chunk = tokens[start : start + CHUNK]
        runner.execute(Batch((Chunk(chunk[: CHUNK // 2], 0, table, num_logits=0),)))
        # the second half is scored, each token by the logits at the one before it
        logits = runner.execute(Batch((Chunk(chunk[CHUNK // 2 : -1], CHUNK // 2, table, num_logits=CHUNK // 2 - 1),)))
        rows = logits.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        likelihoods.append(rows[np.arange(len(rows)), chunk[CHUNK // 2 + 1 :]])
    runner.close()
    perplexity = np.exp(-np.concatenate(likelihoods).mean())
    print(f"perplexity {perplexity:.4f}, llama.cpp {LLAMA_CPP}")  # noqa: T201 - shown by pytest -s
    assert perplexity / LLAMA_CPP == pytest.approx(1, abs=0.005)
