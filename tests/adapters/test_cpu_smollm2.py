"""The default model on kernels of our own: as good as llama.cpp on the same file, near OpenVINO in float32, and the
same to the last bit in any company.

Inputs of products have 8 bits, in blocks of 32, as in llama.cpp; so logits differ a little from float32's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.cpu.runner import CPURunner, load_runner
from vmm_adapters.openvino import runner as openvino
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.models.store import InstalledModel

pytestmark = pytest.mark.runtime

Logits = NDArray[np.float32]
LLAMA_CPP = 17.505
"""llama-perplexity -c 512 on tests/data/ppl.txt and the default model's GGUF, 6 chunks."""
CHUNK = 512
NUM_TOKENS = 200
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


@pytest.fixture(scope="module")
def tokens(smollm2: InstalledModel) -> list[int]:
    text = (Path(__file__).parents[1] / "data" / "ppl.txt").read_text()
    tokenizer = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def options(kernel_cache: Path) -> RunnerOptions:
    return RunnerOptions(kv_cache_bytes=96 << 20, num_threads=2, shared_cache_dir=kernel_cache)


@pytest.fixture(scope="module")
def runner(smollm2: InstalledModel, options: RunnerOptions) -> Iterator[CPURunner]:
    runner = load_runner(smollm2.folder, options)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def narrow(smollm2: InstalledModel, options: RunnerOptions) -> Iterator[CPURunner]:
    """Keys and values in bytes."""
    runner = load_runner(smollm2.folder, replace(options, kv_cache_type="u8"))
    yield runner
    runner.close()


def run(runner: CPURunner, tokens: Sequence[int], sizes: Sequence[int], first: int = 0) -> Logits:
    """Logits of all tokens, in chunks of so many."""
    table = range(first, first - -len(tokens) // runner.block_size + 1)
    ends = np.cumsum(sizes)
    chunks = [
        Chunk(tokens[end - size : end], int(end) - size, table, size) for end, size in zip(ends, sizes, strict=True)
    ]
    return np.concatenate([runner.execute(Batch((chunk,))).copy() for chunk in chunks])


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    normal: NDArray[np.float64] = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return normal


def test_perplexity_is_within_half_a_percent_of_llama_cpps(runner: CPURunner, tokens: list[int]) -> None:
    table = range(-(-CHUNK // runner.block_size))
    likelihoods = []
    for start in range(0, 6 * CHUNK, CHUNK):
        chunk = tokens[start : start + CHUNK]
        runner.execute(Batch((Chunk(chunk[: CHUNK // 2], 0, table, num_logits=0),)))
        # the second half is scored, each token by the logits at the one before it
        logits = runner.execute(Batch((Chunk(chunk[CHUNK // 2 : -1], CHUNK // 2, table, num_logits=CHUNK // 2 - 1),)))
        likelihoods.append(log_softmax(logits)[np.arange(len(logits)), chunk[CHUNK // 2 + 1 :]])
    perplexity = np.exp(-np.concatenate(likelihoods).mean())
    print(f"perplexity {perplexity:.4f}, llama.cpp {LLAMA_CPP}")  # noqa: T201 - shown by pytest -s
    assert perplexity / LLAMA_CPP == pytest.approx(1, abs=0.005)


@pytest.fixture(scope="module")
def expected(smollm2: InstalledModel, tokens: list[int], tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """OpenVINO's in float32, keys and values too, of the first 200 tokens."""
    options = RunnerOptions(kv_cache_bytes=96 << 20, cache_dir=tmp_path_factory.mktemp("cache"))
    runner = openvino.load_runner(smollm2.folder, options, properties=EXACT)
    table = range(-(-NUM_TOKENS // runner.block_size))
    logits = runner.execute(Batch((Chunk(tokens[:NUM_TOKENS], 0, table, NUM_TOKENS),))).copy()
    runner.close()
    return logits


@pytest.mark.parametrize("kind", ["runner", "narrow"])
def test_logits_are_near_openvinos_in_float32(
    kind: str, expected: Logits, tokens: list[int], request: pytest.FixtureRequest
) -> None:
    logits = run(request.getfixturevalue(kind), tokens[:NUM_TOKENS], [NUM_TOKENS])
    ours, theirs = log_softmax(logits), log_softmax(expected)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    cosines = (logits * expected).sum(axis=1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    agreement = (logits.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(f"KL {divergence.mean():.5f}, cosine {cosines.mean():.5f}, same first {agreement:.3f}")  # noqa: T201
    assert divergence.mean() < 0.006
    assert cosines.mean() > 0.999
    assert agreement > 0.94


def test_keys_and_values_in_bytes_take_little_more_than_half_the_memory(runner: CPURunner, narrow: CPURunner) -> None:
    assert 1.7 * runner.num_blocks < narrow.num_blocks < 2 * runner.num_blocks


@pytest.mark.parametrize("kind", ["runner", "narrow"])
def test_chunks_of_any_size_give_the_same_bits(kind: str, tokens: list[int], request: pytest.FixtureRequest) -> None:
    runner: CPURunner = request.getfixturevalue(kind)
    prompt = tokens[:150]
    whole = run(runner, prompt, [150])
    for sizes in ([1] * 17 + [133], [75, 75], [7] * 21 + [3], [16] * 9 + [6], [149, 1]):
        assert (run(runner, prompt, sizes) == whole).all(), sizes


def test_any_number_together_say_what_each_says_alone(runner: CPURunner, tokens: list[int]) -> None:
    prompts = [tokens[40 * i : 40 * i + 5 + i] for i in range(24)]
    tables = [range(4 * i, 4 * i + 4) for i in range(24)]
    alone = [runner.execute(Batch((Chunk(p, 0, t),))).copy() for p, t in zip(prompts, tables, strict=True)]
    together = runner.execute(Batch(tuple(Chunk(p, 0, t) for p, t in zip(prompts, tables, strict=True)))).copy()
    assert (together == np.concatenate(alone)).all()
    following = together.argmax(axis=1).tolist()
    steps = [Chunk([token], len(p), t) for token, p, t in zip(following, prompts, tables, strict=True)]
    decoded = [runner.execute(Batch((step,))).copy() for step in steps]
    for count in (2, 3, 5, 8, 15, 16, 17, 24):
        assert (runner.execute(Batch(tuple(steps[:count]))) == np.concatenate(decoded[:count])).all(), count
