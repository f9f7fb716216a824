"""The one way to run an encoder: resolve → validate → lease → tokenise → batch.

Everything that deserves a 4xx happens before anything is computed. Nothing is streamed: a call returns whole or raises.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.types import EncoderInput
from vmm_server.cl100k import Cl100k
from vmm_server.encoder_inputs import Inputs, embedding_inputs, pair_inputs, text_inputs
from vmm_server.engine.batcher import Computed
from vmm_server.errors import InvalidRequest
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.leases import Lease
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.observed import Operation
from vmm_server.one_shot import Answered, OneShot
from vmm_server.requests import EmbeddingRequest, RerankRequest

logger = logging.getLogger(__name__)

Row = NDArray[np.float32]
Told = TypeVar("Told")
_NO_NUMBER = "try another text; if none works, the model's weights are damaged: pull it again"
_NO_TABLE = (
    "send text instead (check_embedding_ctx_length=False on LangChain's OpenAIEmbeddings), or set tiktoken_dir on the "
    'server to a folder with cl100k_base.tiktoken; for ids of the model itself add "token_encoding": "model"'
)


@dataclass(frozen=True, slots=True)
class Encoded(Answered):
    """Of texts."""

    num_tokens: int
    """Tokens of the inputs, special ones included, padding not."""
    num_dropped_tokens: int
    """Cut off at the ends of inputs that were too long."""

    @property
    def num_input_tokens(self) -> int | None:
        """See `Answered`."""
        return self.num_tokens


@dataclass(frozen=True, slots=True)
class Embedded(Encoded):
    """Vectors of texts."""

    vectors: NDArray[np.float32]
    """`[texts, dimensions]`, in the order of the inputs."""


@dataclass(frozen=True, slots=True)
class Reranked(Encoded):
    """Scores of documents."""

    scores: tuple[float, ...]
    """In the order of the documents."""


class Embeddings:
    """Runs encoders. Every dialect goes through here."""

    def __init__(self, one_shot: OneShot, *, read_table: Callable[[], Cl100k | None] = lambda: None) -> None:
        """`read_table` reads OpenAI's table of tokens, when token ids are first to be decoded with it."""
        self._one_shot = one_shot
        self._read_table = read_table
        self._table: Cl100k | None = None

    async def embed(self, request: EmbeddingRequest) -> Embedded:
        """One vector an input.

        Raises `InvalidRequest` and its kinds, `ModelNotFound`, `ModelLoadFailed`, `Overloaded`, `ShuttingDown`,
        `GenerationFailed`.
        """
        model = self._one_shot.resolve(request.model, "embedding")
        if model.embedding_length is not None:
            check_dimensions(request.dimensions, model.embedding_length)
        table = await self._table_for(request)

        async def embed(lease: Lease[ReadyEncoder]) -> Embedded:
            vectors, inputs, computed = await text_vectors(request, lease.ready, table)
            return Embedded(*_told(lease, inputs, computed), vectors)

        return await self._on_encoder(model, request, embed, "embeddings")

    async def rerank(self, request: RerankRequest) -> Reranked:
        """One score a document, higher is nearer: a cross-encoder's logit through a sigmoid, or, of a model that
        embeds, the cosine of the two vectors. Raises as `embed` does."""
        model = self._one_shot.resolve(request.model, "rerank", "embedding")

        async def rerank(lease: Lease[ReadyEncoder]) -> Reranked:
            ready, scores_pairs = lease.ready, "rerank" in lease.model.capabilities
            write = pair_inputs if scores_pairs else text_inputs
            inputs = await _prepare(lambda: write(request, ready), ready)
            rows, computed = await _rows(inputs.items, ready, "documents")
            scores = _sigmoid(rows[:, 0]) if scores_pairs else unit(rows[1:]) @ unit(rows[:1])[0]
            return Reranked(*_told(lease, inputs, computed), tuple(scores.tolist()))

        return await self._on_encoder(model, request, rerank, "rerank")

    async def _on_encoder(
        self,
        model: InstalledModel,
        request: EmbeddingRequest | RerankRequest,
        work: Callable[[Lease[ReadyEncoder]], Awaitable[Told]],
        operation: Operation,
    ) -> Told:
        return await self._one_shot.run(
            model, ReadyEncoder, work, operation=operation, keep_alive=request.keep_alive, wanted=request.wanted
        )

    async def _table_for(self, request: EmbeddingRequest) -> Cl100k | None:
        """The table that token ids are decoded with, if any are to be."""
        if request.token_encoding == "model" or all(isinstance(value, str) for value in request.inputs):
            return None
        if self._table is None:
            self._table = await asyncio.to_thread(self._read_table)
        if self._table is None:
            raise InvalidRequest(
                f"input: token ids of OpenAI's cl100k_base cannot be read here; {_NO_TABLE}", param="input"
            )
        return self._table


async def text_vectors(
    request: EmbeddingRequest, ready: ReadyEncoder, table: Cl100k | None = None
) -> tuple[NDArray[np.float32], Inputs, Computed[Row]]:
    """`[texts, dimensions]`, the tokens they are made of, and what became of those. Raises as `embed` does."""
    check_dimensions(request.dimensions, ready.dim)
    inputs = await _prepare(lambda: embedding_inputs(request, ready, table), ready)
    vectors, computed = await _rows(inputs.items, ready, "input")
    cut = request.dimensions is not None and request.dimensions < ready.dim
    if cut:
        vectors = vectors[:, : request.dimensions]
    if cut or (ready.recipe.normalize if request.normalize is None else request.normalize):
        vectors = unit(vectors)
    return vectors, inputs, computed


async def _prepare(write: Callable[[], Inputs], ready: ReadyEncoder) -> Inputs:
    with ready.batcher.preparing():
        return await asyncio.to_thread(write)


async def _rows(
    inputs: Sequence[EncoderInput], ready: ReadyEncoder, param: str
) -> tuple[NDArray[np.float32], Computed[Row]]:
    """The encoder's rows, stacked and as they came. Raises `InvalidRequest` for inputs of which it makes what is no
    number."""
    computed = await ready.batcher.timed_call(inputs)
    rows = np.stack(computed.results)
    if not np.isfinite(rows).all():
        raise InvalidRequest("embedding contains NaN or Inf values", param=param, hint=_NO_NUMBER)
    return rows, computed


def check_dimensions(asked: int | None, dim: int) -> None:
    """Raises `InvalidRequest` when more numbers are asked for than there are."""
    if asked is not None and asked > dim:
        raise InvalidRequest(f"dimensions: {asked} is more than the {dim} that the model has", param="dimensions")


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their L2 norm, which counts as 1e-12 at least."""
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which does not overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def _told(
    lease: Lease[ReadyEncoder], inputs: Inputs, computed: Computed[Row]
) -> tuple[InstalledModel, Placement, float, float, int, int]:
    """The fields of `Encoded`. What was cut off is said in the log as well."""
    model = lease.model
    if inputs.num_dropped_tokens:
        logger.warning("cut off %d tokens of texts that are too long for %s", inputs.num_dropped_tokens, model.name)
    return model, lease.ready.placement, lease.load_s, computed.queued_s, inputs.num_tokens, inputs.num_dropped_tokens
