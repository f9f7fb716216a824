"""`POST /v1/rerank`: documents by how near they are to a query. Jina's and Cohere's fields, as far as they agree."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp
from pydantic import Field

from vmm_server.api.answers import provenance
from vmm_server.api.body import Duration, Integer, Wire, read_body
from vmm_server.api.openapi import Example, described
from vmm_server.api.placement import PlacementFields, placed
from vmm_server.api.streaming import WholeAnswer, json_response
from vmm_server.embedding import Embeddings, Reranked
from vmm_server.errors import InvalidRequest
from vmm_server.requests import RerankRequest

MAX_DOCUMENTS = 2048
"""In one request."""


class RerankDocument(Wire):
    """A document that is an object."""

    text: str


class RerankBody(PlacementFields):
    """Body of `POST /v1/rerank`."""

    model: str
    query: str
    documents: list[str | RerankDocument]
    top_n: Annotated[Integer, Field(ge=1)] | None = None
    """How many of the nearest are answered; all by default."""
    return_documents: bool | None = None
    """Whether results carry their documents."""
    truncate: bool | None = None
    """Cut documents that are too long at their end; else they are refused."""
    max_tokens_per_doc: Annotated[Integer, Field(ge=1)] | None = None
    """Cut documents to so many tokens."""
    keep_alive: Duration = None


_MODEL = "all-minilm"
_DOCUMENTS = ["Share prices dropped.", "A kitten rests on a rug."]
_ANSWER = {
    "id": "rerank-5d1c3f0b9a7e4c2d8f6b1a03",
    "model": _MODEL,
    "results": [{"index": 1, "relevance_score": 0.5926}, {"index": 0, "relevance_score": 0.0281}],
    "usage": {"prompt_tokens": 24, "total_tokens": 24},
    "meta": {"tokens": {"input_tokens": 24}},
}
RERANK = (
    Example("All documents", _ANSWER, {"model": _MODEL, "query": "Where is the cat?", "documents": _DOCUMENTS}),
    Example(
        "The nearest one, with its text",
        _ANSWER
        | {"results": [{"index": 1, "relevance_score": 0.5926, "document": {"text": "A kitten rests on a rug."}}]},
        {
            "model": _MODEL,
            "query": "Where is the cat?",
            "documents": [{"text": text} for text in _DOCUMENTS],
            "top_n": 1,
            "return_documents": True,
        },
    ),
)


class RerankController(Controller):
    """Reranking."""

    @post(
        "/v1/rerank",
        status_code=200,
        operation_id="rerank",
        summary="Sort documents by how near they are to a query",
        opt=described(*RERANK, body=RerankBody, runs=True),
    )
    async def rerank(self, request: Request[Any, Any, Any], embeddings: NamedDependency[Embeddings]) -> ASGIApp:
        """Nearest first; `index` is the document's place in the request."""
        return await _reply(request, embeddings)

    @post(
        "/rerank",
        status_code=200,
        operation_id="rerankUnprefixed",
        summary="The same as /v1/rerank",
        opt=described(*RERANK, body=RerankBody, runs=True),
    )
    async def unprefixed(self, request: Request[Any, Any, Any], embeddings: NamedDependency[Embeddings]) -> ASGIApp:
        """For clients of servers that have it here."""
        return await _reply(request, embeddings)

    @post(
        "/v2/rerank",
        status_code=200,
        operation_id="rerankV2",
        summary="The same as /v1/rerank",
        opt=described(*RERANK, body=RerankBody, runs=True),
    )
    async def version_2(self, request: Request[Any, Any, Any], embeddings: NamedDependency[Embeddings]) -> ASGIApp:
        """For Cohere's clients."""
        return await _reply(request, embeddings)


async def _reply(request: Request[Any, Any, Any], embeddings: Embeddings) -> ASGIApp:
    wire = await read_body(request, RerankBody)
    asked = placed(rerank_request(wire), request.headers, wire)

    async def answer() -> WholeAnswer:
        reranked = await embeddings.rerank(asked)
        return WholeAnswer(rerank_answer(wire, asked.documents, reranked), provenance(reranked))

    return json_response(answer)


def rerank_request(wire: RerankBody) -> RerankRequest:
    """What a body asks for. Raises `InvalidRequest` naming the field."""
    if not wire.query:
        raise InvalidRequest("query: must not be empty", param="query")
    if not 1 <= len(wire.documents) <= MAX_DOCUMENTS:
        raise InvalidRequest(
            f"documents: {len(wire.documents)} documents, 1 to {MAX_DOCUMENTS} can be ranked", param="documents"
        )
    return RerankRequest(
        model=wire.model,
        query=wire.query,
        documents=tuple(one if isinstance(one, str) else one.text for one in wire.documents),
        truncate=bool(wire.truncate) or wire.max_tokens_per_doc is not None,
        max_tokens_per_document=wire.max_tokens_per_doc,
        keep_alive=wire.keep_alive,
    )


def rerank_answer(wire: RerankBody, documents: Sequence[str], reranked: Reranked) -> dict[str, object]:
    """Results by score, highest first; equal ones stay in order."""
    order = sorted(range(len(documents)), key=lambda index: -reranked.scores[index])[: wire.top_n]
    results: list[dict[str, object]] = []
    for index in order:
        shown: dict[str, object] = {"index": index, "relevance_score": reranked.scores[index]}
        results.append(shown | {"document": {"text": documents[index]}} if wire.return_documents else shown)
    return {
        "id": f"rerank-{secrets.token_hex(12)}",
        "model": wire.model,
        "results": results,
        "usage": {"prompt_tokens": reranked.num_tokens, "total_tokens": reranked.num_tokens},
        "meta": {"tokens": {"input_tokens": reranked.num_tokens}},
    }
