"""The default model through the paged runner: as good as llama.cpp on the same file, and the same in any company.

Kernels differ with the shape of a batch, so equality on a real model is equality up to near-ties: logits move a little,
and the most likely token changes only where the best two were that close.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.openvino.runner import OpenVINORunner, load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.models.store import InstalledModel

pytestmark = pytest.mark.runtime

LLAMA_CPP = 17.505
"""llama-perplexity -c 512 on tests/data/ppl.txt and the default model's GGUF, 6 chunks."""
CHUNK = 512
NEAR = 1.0
"""How far a logit may move with the company it is computed in: a few steps of bf16, which are 0.25 from 32 on."""


@pytest.fixture(scope="module")
def tokens(smollm2: InstalledModel) -> list[int]:
    text = (Path(__file__).parents[1] / "data" / "ppl.txt").read_text()
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def runner(smollm2: InstalledModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenVINORunner]:
    options = RunnerOptions(kv_cache_bytes=64 << 20, cache_dir=tmp_path_factory.mktemp("cache"))
    runner = load_runner(smollm2.folder, options)
    yield runner
    runner.close()


def assert_same_up_to_near_ties(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
    moved = float(np.abs(ours - reference).max())
    print(f"logits moved by at most {moved:.3f}")  # noqa: T201 - shown by pytest -s
    assert moved < NEAR
    chosen, expected = ours.argmax(axis=-1), reference.argmax(axis=-1)
    rows = np.arange(len(reference))
    assert (reference[rows, expected] - reference[rows, chosen] <= 2 * moved).all()


def test_perplexity_is_within_half_a_percent_of_llama_cpps(runner: OpenVINORunner, tokens: list[int]) -> None:
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
    perplexity = np.exp(-np.concatenate(likelihoods).mean())
    print(f"perplexity {perplexity:.4f}, llama.cpp {LLAMA_CPP}")  # noqa: T201 - shown by pytest -s
    assert perplexity / LLAMA_CPP == pytest.approx(1, abs=0.005)


def test_sixteen_together_say_what_each_says_alone(runner: OpenVINORunner, tokens: list[int]) -> None:
    prompts = [tokens[100 * i : 100 * i + 40 + i] for i in range(16)]
    tables = [range(4 * i, 4 * i + 4) for i in range(16)]
    alone = np.concatenate(
        [runner.execute(Batch((Chunk(p, 0, t),))).copy() for p, t in zip(prompts, tables, strict=True)]
    )
    together = runner.execute(Batch(tuple(Chunk(p, 0, t) for p, t in zip(prompts, tables, strict=True))))
    assert_same_up_to_near_ties(together, alone)
    following = alone.argmax(axis=-1).tolist()
    steps = [Chunk([token], len(p), t) for token, p, t in zip(following, prompts, tables, strict=True)]
    decoded = runner.execute(Batch(tuple(steps))).copy()
    assert_same_up_to_near_ties(np.concatenate([runner.execute(Batch((step,))).copy() for step in steps]), decoded)


def test_a_cached_prefix_says_what_a_cold_one_says(runner: OpenVINORunner, tokens: list[int]) -> None:
    size = runner.block_size
    prompt = tokens[: 10 * size + 5]
    cold = runner.execute(Batch((Chunk(prompt, 0, range(11)),))).copy()
    cached = runner.execute(Batch((Chunk(prompt[10 * size :], 10 * size, [*range(10), 20]),))).copy()
    assert_same_up_to_near_ties(cached, cold)
