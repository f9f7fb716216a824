"""A text scored by a client through `/v1/completions`, and by the runner itself: the same perplexity."""

import asyncio
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer

from vmm_adapters.openvino.runner import load_runner
from vmm_adapters.types import Batch, Chunk, RunnerOptions
from vmm_server.app import create_app
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.store import InstalledModel

CHUNK, NUM_CHUNKS = 512, 6
HALF = CHUNK // 2
MODELS = Path(__file__).parents[3] / ".cache" / "vmm" / "models"
"""Where `smollm2` is."""


def runners_own(folder: Path, chunks: list[list[int]], cache_dir: Path) -> list[float]:
    """Log-likelihoods of the second halves, one plain call a chunk, log-softmax in float64."""
    runner = load_runner(folder, RunnerOptions(kv_cache_bytes=64 << 20, cache_dir=cache_dir))
    table = range(-(-CHUNK // runner.block_size))
    likelihoods: list[float] = []
    for chunk in chunks:
        runner.execute(Batch((Chunk(chunk[:HALF], 0, table, num_logits=0),)))
        logits = runner.execute(Batch((Chunk(chunk[HALF:-1], HALF, table, num_logits=HALF - 1),)))
        rows = logits.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        likelihoods += rows[np.arange(len(rows)), chunk[HALF + 1 :]].tolist()
    runner.close()
    return likelihoods


@pytest.mark.runtime
def test_perplexity_through_the_route_is_the_runners_own(smollm2: InstalledModel, settings: Any) -> None:
    text = (Path(__file__).parents[2] / "data" / "ppl.txt").read_text()
    tokens = Tokenizer.from_file(str(smollm2.folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    chunks = [tokens[start : start + CHUNK] for start in range(0, NUM_CHUNKS * CHUNK, CHUNK)]
    configured = settings(models_dir=MODELS, kv_cache_size=256 << 20, backend="openvino")
    own = runners_own(smollm2.folder, chunks, compiled_dir(configured.cache_dir, smollm2))

    async def score() -> list[float]:
        app = create_app(configured)
        transport = httpx.ASGITransport(app=app)
        async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = {"model": smollm2.name, "prompt": chunks, "echo": True, "max_tokens": 0, "logprobs": 1}
            response = await client.post("/v1/completions", json=asked | {"temperature": 0}, timeout=300)
        response.raise_for_status()
        scores = [choice["logprobs"]["token_logprobs"] for choice in response.json()["choices"]]
        assert all(one[0] is None and len(one) == CHUNK for one in scores)
        return [logprob for one in scores for logprob in one[HALF + 1 :]]

    served = asyncio.run(score())
    perplexities = [math.exp(-sum(one) / len(one)) for one in (own, served)]
    print(f"perplexity: runner {perplexities[0]:.4f}, route {perplexities[1]:.4f}")  # noqa: T201 - shown by pytest -s
    assert len(served) == len(own) == NUM_CHUNKS * (HALF - 1)
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)
