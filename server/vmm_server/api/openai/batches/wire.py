"""Shapes of `/v1/batches`, as openai-python's `types/batch_create_params.py` and `types/batch.py` have them."""

from typing import Annotated

import msgspec
from pydantic import Field

from vmm_server.api.body import Wire
from vmm_server.api.openai.files.wire import ExpiresAfter
from vmm_server.batch_store import Batch
from vmm_server.batches import ENDPOINTS, WINDOW_S, NewBatch
from vmm_server.errors import InvalidRequest

Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class BatchRequest(Wire):
    """Body of `POST /v1/batches`."""

    input_file_id: str
    """A file that was uploaded with the purpose `batch`."""
    endpoint: str
    """The route that all lines ask."""
    completion_window: str
    """`24h`."""
    metadata: Annotated[dict[Key, Value], Field(max_length=16)] | None = None
    """Up to 16 pairs, which come back with the batch."""
    output_expires_after: ExpiresAfter | None = None
    """When the files of results are deleted; they are kept unless this says so."""


def new_batch(wire: BatchRequest, tenant: str) -> NewBatch:
    """What a body asks for. Raises `InvalidRequest`."""
    if wire.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint: {wire.endpoint[:100]!r} is none of {', '.join(ENDPOINTS)}", param="endpoint")
    if wire.completion_window not in WINDOW_S:
        raise InvalidRequest(
            f"completion_window: {wire.completion_window[:100]!r} is none of {', '.join(WINDOW_S)}",
            param="completion_window",
        )
    return NewBatch(
        tenant,
        wire.endpoint,
        wire.input_file_id,
        wire.completion_window,
        None if wire.metadata is None else msgspec.json.encode(wire.metadata),
        None if wire.output_expires_after is None else wire.output_expires_after.seconds,
    )


def batch_object(batch: Batch) -> dict[str, object]:
    """What clients see of a batch."""
    usage = batch.usage
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": None if batch.errors is None else {"object": "list", "data": msgspec.json.decode(batch.errors)},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at if batch.status == "expired" else None,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {
            "total": batch.num_lines,
            "completed": batch.num_completed,
            "failed": batch.num_failed,
        },
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
        "metadata": None if batch.metadata is None else msgspec.json.decode(batch.metadata),
    }
