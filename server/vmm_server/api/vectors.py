"""Vectors on the wire, as OpenAI's API has them: JSON numbers, or base64 of little-endian float32."""

import asyncio
import base64
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vmm_server.api.answers import provenance
from vmm_server.api.streaming import WholeAnswer
from vmm_server.embedding import Embedded
from vmm_server.errors import InvalidRequest

FORMATS = ("float", "base64")
_MANY_NUMBERS = 20_000
"""From here on encoding takes milliseconds, which the event loop has not."""

EncodingFormat = Annotated[str | None, Field(json_schema_extra={"enum": [*FORMATS, None]})]


def check_encoding_format(asked: str | None) -> None:
    """Raises `InvalidRequest` for a format that there is not."""
    if asked not in (None, *FORMATS):
        raise InvalidRequest(
            "Invalid value for 'encoding_format': must be 'float' or 'base64'", param="encoding_format"
        )


async def embedding_answer(embedded: Embedded, model: str, encoding_format: str | None) -> WholeAnswer:
    """OpenAI's list of embeddings; `model` as the client wrote it."""
    as_base64 = encoding_format == "base64"
    if embedded.vectors.size < _MANY_NUMBERS:
        data = encode_vectors(embedded.vectors, as_base64=as_base64)
    else:
        data = await asyncio.to_thread(encode_vectors, embedded.vectors, as_base64=as_base64)
    usage = {"prompt_tokens": embedded.num_tokens, "total_tokens": embedded.num_tokens}
    return WholeAnswer({"object": "list", "data": data, "model": model, "usage": usage}, provenance(embedded))


def encode_vectors(vectors: NDArray[np.float32], *, as_base64: bool) -> msgspec.Raw:
    """`data` as JSON. No number passes through Python code."""
    shown = shown_vectors(vectors, as_base64=as_base64)
    rows = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(shown)]
    return msgspec.Raw(msgspec.json.encode(rows))


def shown_vectors(vectors: NDArray[np.float32], *, as_base64: bool) -> list[Any]:
    """Each as numbers, or as base64."""
    if as_base64:
        content = vectors.astype("<f4", copy=False)
        return [base64.b64encode(np.ascontiguousarray(row).data).decode("ascii") for row in content]
    numbers: list[Any] = vectors.tolist()
    return numbers
