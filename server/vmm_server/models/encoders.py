"""An encoder's folder on disk → a batcher that is warm: the blocking half of a load."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters import catalog
from vmm_adapters.card import EmbeddingRecipe
from vmm_adapters.types import EncoderInput, EncoderOptions
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.ready import warm
from vmm_server.models.router import NO_LOAD, Load, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.settings import Settings

Row = NDArray[np.float32]
"""A text's vector, or a pair's logits: float32 `[dim]`."""
MAX_BATCH_TOKENS = 1024
"""Tokens with padding that are computed together. More is not faster on a CPU, and everybody else waits longer."""
MAX_PADDING = 0.1
"""Of a batch. A quarter costs a fifth more than a tenth on texts of mixed length; less than a tenth gains nothing."""


@dataclass(frozen=True, slots=True)
class ReadyEncoder:
    """Everything a request needs of a loaded encoder."""

    batcher: Batcher[EncoderInput, Row]
    tokenizer: Tokenizer
    """Neither truncates nor pads."""
    recipe: EmbeddingRecipe
    placement: Placement
    context_length: int
    vocab_size: int
    dim: int
    memory_bytes: int

    @property
    def load(self) -> Load:
        """See `Ready`. A call takes milliseconds: it counts for nothing beside a text."""
        return NO_LOAD

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.batcher.failure

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.batcher.aclose()


def load_encoder(model: InstalledModel, placement: Placement, settings: Settings) -> ReadyEncoder:
    """Load an encoder on a placement, and warm it up. Raises `ModelLoadFailed`, `AdapterError`."""
    tokenizer = read_tokenizer(model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    recipe = model.embedding or EmbeddingRecipe(normalize=False)
    max_length = min(model.context_length, settings.context_length or model.context_length)
    options = EncoderOptions(
        max_length=max_length,
        pooling=recipe.pooling,
        normalize=False,  # a request may want what is not: `Embeddings` divides by the norm
        device=placement.device,
        num_threads=settings.num_threads,
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
    )
    encoder = catalog.load_encoder(placement.adapter, model.folders[placement.variant], options)
    warm(encoder)

    def compute(inputs: Sequence[EncoderInput]) -> list[Row]:
        return list(encoder.encode(inputs))

    batcher = Batcher(
        compute,
        size=lambda each: len(each.token_ids),
        close=encoder.close,
        options=BatcherOptions(
            BatchLimits(settings.max_sequences, max_size=MAX_BATCH_TOKENS, max_padding=MAX_PADDING),
            max_calls=settings.max_sequences + settings.max_queue,
        ),
        name=f"vmm-encoder {model.name}",
    )
    return ReadyEncoder(
        batcher=batcher,
        tokenizer=tokenizer,
        recipe=recipe,
        placement=placement,
        context_length=max_length,
        vocab_size=tokenizer.get_vocab_size(),
        dim=encoder.dim,
        memory_bytes=encoder.memory_bytes,
    )
