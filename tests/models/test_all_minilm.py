"""The embedding model that is known by name: its vectors are those of sentence-transformers."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmm_server.embedding import Embeddings
from vmm_server.errors import ContextLengthExceeded
from vmm_server.models.loading import load_model
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.one_shot import OneShot
from vmm_server.requests import EmbeddingRequest, RerankRequest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "all_minilm"
TEXTS = json.loads((DATA / "texts.json").read_text())
VECTORS = np.load(DATA / "vectors.npy")

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def registry() -> Registry:
    """With all-minilm pulled, once, as `vmm pull all-minilm:22m` does."""
    store = Store(ROOT / ".cache" / "vmm" / "models")
    registry = Registry(store, read_cards(()))

    async def pull() -> None:
        async for _ in Puller(store, registry).pull("all-minilm:22m"):
            pass

    asyncio.run(pull())
    return registry


@pytest.fixture
def with_embeddings(registry: Registry, settings: Any) -> Callable[[Callable[[Embeddings], Any]], None]:
    """Run `body(embeddings)` on an event loop."""

    def run(body: Callable[[Embeddings], Any]) -> None:
        async def bounded() -> None:
            configured = settings()
            placer = Placer(configured, MachineReader().read)
            pool = ModelPool(configured, partial(load_model, settings=configured), placer)
            try:
                await asyncio.wait_for(body(Embeddings(OneShot(registry, pool))), 60)
            finally:
                await pool.aclose()

        asyncio.run(bounded())

    return run


def request(*texts: str, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest("all-minilm", texts, tuple(f"input[{index}]" for index in range(len(texts))), **fields)


def test_it_is_installed_as_its_card_says(registry: Registry) -> None:
    model = registry.resolve("all-minilm:l6-v2")
    assert isinstance(model, InstalledModel)
    assert (model.name, model.family, model.format) == ("all-minilm:22m", "bert", "safetensors")
    assert (model.context_length, model.embedding_length) == (256, 384)
    assert model.capabilities == ("embedding",)


def test_vectors_are_those_of_sentence_transformers(with_embeddings: Any) -> None:
    """Empty, odd, long (cut to 256 tokens there too) and ordinary texts, alone and together."""

    async def body(embeddings: Embeddings) -> None:
        together = await embeddings.embed(request(*TEXTS, truncate=True))
        np.testing.assert_allclose(together.vectors, VECTORS, rtol=0, atol=1e-5)
        assert str(together.placement) == "openvino/CPU"
        for text, expected in zip(TEXTS, VECTORS, strict=True):
            alone = await embeddings.embed(request(text, truncate=True))
            np.testing.assert_allclose(alone.vectors[0], expected, rtol=0, atol=1e-5)
        with pytest.raises(ContextLengthExceeded, match=r"input\[7\] is \d+ tokens, the limit is 256"):
            await embeddings.embed(request(*TEXTS))

    with_embeddings(body)


def test_it_knows_what_is_alike(with_embeddings: Any) -> None:
    documents = ("Shares fell sharply.", "A kitten rests on a rug.", "How do I reset my password?")

    async def body(embeddings: Embeddings) -> None:
        reranked = await embeddings.rerank(RerankRequest("all-minilm", "Where is the cat?", documents))
        assert int(np.argmax(reranked.scores)) == 1

    with_embeddings(body)


def test_companies_of_every_size_change_nothing(with_embeddings: Any) -> None:
    words = " ".join(TEXTS[:3]).split()
    texts = [" ".join(words[: 1 + index % len(words)]) for index in range(100)]

    async def body(embeddings: Embeddings) -> None:
        whole = await embeddings.embed(request(*texts))
        parts = await asyncio.gather(*(embeddings.embed(request(text)) for text in texts))
        np.testing.assert_allclose(np.concatenate([one.vectors for one in parts]), whole.vectors, rtol=0, atol=1e-5)

    with_embeddings(body)
