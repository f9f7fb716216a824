"""What is sent to `/v1/files` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example

MODEL = "smollm2:135m"
CREATED = 1_795_253_400
ID = "file-3f1c9a70d2be4858a06c1d27"
STORED = {"file_id": ID}
CONTENT = (
    '{"custom_id": "sky", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "smollm2:135m",'
    ' "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 8}}\n'
)
FILE = {
    "id": ID,
    "object": "file",
    "bytes": len(CONTENT),
    "created_at": CREATED,
    "expires_at": CREATED + 30 * 24 * 3600,
    "filename": "questions.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}

CREATE = (Example("Upload what a batch reads", FILE, {"purpose": "batch"}),)
LIST = (Example("All files", {"object": "list", "data": [FILE], "first_id": ID, "last_id": ID, "has_more": False}),)
RETRIEVE = (Example("A file", FILE, path=STORED),)
CONTENTS = (Example("Its content", CONTENT, path=STORED, media_type="application/octet-stream"),)
DELETE = (Example("Forget it", {"id": ID, "object": "file", "deleted": True}, path=STORED),)
