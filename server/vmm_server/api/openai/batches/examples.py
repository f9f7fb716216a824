"""What is sent to `/v1/batches` and what comes back, for the OpenAPI document."""

from vmm_server.api.openai.files.examples import ID as FILE_ID
from vmm_server.api.openapi import Example

ID = "batch_9b1f6c3ad2e04f5f8d7e6a5b4c3d2e1f"
STORED = {"batch_id": ID}
CREATED = 1_795_253_400
METADATA = {"description": "nightly"}
NEW: dict[str, object] = {
    "id": ID,
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": None,
    "errors": None,
    "input_file_id": FILE_ID,
    "completion_window": "24h",
    "status": "validating",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": CREATED,
    "in_progress_at": None,
    "expires_at": CREATED + 24 * 3600,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "usage": {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    },
    "metadata": METADATA,
}
DONE = NEW | {
    "model": "smollm2:135m",
    "status": "completed",
    "output_file_id": "file-8c51ab6de0974ee29c15c94f",
    "in_progress_at": CREATED + 1,
    "finalizing_at": CREATED + 60,
    "completed_at": CREATED + 61,
    "request_counts": {"total": 1, "completed": 1, "failed": 0},
    "usage": {
        "input_tokens": 37,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 45,
    },
}

CREATE = (
    Example(
        "Compute a file of requests",
        NEW,
        {
            "input_file_id": FILE_ID,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": METADATA,
            "output_expires_after": {"anchor": "created_at", "seconds": 30 * 24 * 3600},
        },
    ),
)
LIST = (Example("The newest", {"object": "list", "data": [DONE], "first_id": ID, "last_id": ID, "has_more": False}),)
RETRIEVE = (Example("One that is done", DONE, path=STORED),)
CANCEL = (
    Example(
        "Too late",
        {
            "error": {
                "message": "Cannot cancel a batch with status 'completed'.",
                "type": "invalid_request_error",
                "param": "batch_id",
                "code": None,
            }
        },
        path=STORED,
        status=400,
    ),
)
