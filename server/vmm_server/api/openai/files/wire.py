"""Shapes of `/v1/files`, as openai-python's `types/file_create_params.py` and `types/file_object.py` have them."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from vmm_server.api.body import Integer, Wire
from vmm_server.file_store import StoredFile

Purpose = Literal["batch", "user_data", "assistants", "vision", "evals", "fine-tune"]
PURPOSES = get_args(Purpose)
MAX_EXPIRY_S = 30 * 24 * 3600
"""What files of batches live for unless said."""


class ExpiresAfter(Wire):
    """When a file is deleted by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[Integer, Field(ge=3600, le=MAX_EXPIRY_S)]


class FileForm(Wire):
    """Fields of `POST /v1/files`, beside the file."""

    purpose: Purpose
    """What it is for; only files for `batch` can be read by batches."""
    expires_after: ExpiresAfter | None = None
    """Files for `batch` live for 30 days unless this says otherwise, others until they are deleted."""


def expiry_s(form: FileForm) -> int | None:
    """Seconds that a file lives."""
    if form.expires_after is not None:
        return form.expires_after.seconds
    return MAX_EXPIRY_S if form.purpose == "batch" else None


def file_object(file: StoredFile) -> dict[str, object]:
    """What clients see of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
