"""What is sent to `/v1/responses` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import SSE, Example

MODEL = "smollm2:135m"
QUESTION = "Why is the sky blue?"
CREATED = 1_795_253_400
ID = "resp_26c8afe9b6ec83d64c30496e3602b8c85704607be73bb776"
GIVEN_ID = "msg_0d3bf7064721f3cf75ee2833419c95c9a8c11a4dcb69fe40"
ITEM_ID = "msg_cdea3fd2d706f1ca2f7e8256e02eb3f1ad91b3af934c20c0"
STORED = {"response_id": ID}

PART = {"type": "output_text", "text": "Blue light is scattered most.", "annotations": [], "logprobs": []}
NO_PART = PART | {"text": ""}
ITEM = {"id": ITEM_ID, "type": "message", "status": "completed", "role": "assistant", "content": [PART]}
NO_ITEM = ITEM | {"status": "in_progress", "content": []}
CONFIGURATION: dict[str, object] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": MODEL,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 0.2,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 0.9,
    "truncation": "disabled",
    "user": None,
}
BEGUN: dict[str, object] = {
    "id": ID,
    "object": "response",
    "created_at": CREATED,
    "completed_at": None,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
    "output": [],
    **CONFIGURATION,
    "usage": None,
}
USAGE = {
    "input_tokens": 14,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 24,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 38,
}
WHOLE = BEGUN | {"completed_at": CREATED + 1, "status": "completed", "output": [ITEM], "usage": USAGE}
_IN_ITEM = {"item_id": ITEM_ID, "output_index": 0, "content_index": 0}


def _event(number: int, name: str, **fields: object) -> dict[str, object]:
    return {"type": f"response.{name}", "sequence_number": number, **fields}


CREATE = (
    Example("One answer", WHOLE, {"model": MODEL, "input": QUESTION}),
    Example(
        "A stream",
        [
            _event(0, "created", response=BEGUN),
            _event(1, "in_progress", response=BEGUN),
            _event(2, "output_item.added", output_index=0, item=NO_ITEM),
            _event(3, "content_part.added", **_IN_ITEM, part=NO_PART),
            _event(4, "output_text.delta", **_IN_ITEM, delta="Blue light", logprobs=[]),
            _event(5, "output_text.done", **_IN_ITEM, text=PART["text"], logprobs=[]),
            _event(6, "content_part.done", **_IN_ITEM, part=PART),
            _event(7, "output_item.done", output_index=0, item=ITEM),
            _event(8, "completed", response=WHOLE),
        ],
        {"model": MODEL, "input": [{"role": "user", "content": QUESTION}], "stream": True},
        media_type=SSE,
    ),
    Example(
        "Go on from a stored response",
        WHOLE | {"previous_response_id": ID},
        {"model": MODEL, "previous_response_id": ID, "input": "And at dusk?"},
    ),
)
COUNT = (
    Example("Count", {"object": "response.input_tokens", "input_tokens": 14}, {"model": MODEL, "input": QUESTION}),
)
RETRIEVE = (Example("A stored response", WHOLE, path=STORED),)
DELETE = (Example("Forget it", {"id": ID, "object": "response", "deleted": True}, path=STORED),)
LIST_INPUT_ITEMS = (
    Example(
        "One item",
        {
            "object": "list",
            "data": [
                {
                    "id": GIVEN_ID,
                    "type": "message",
                    "status": "completed",
                    "role": "user",
                    "content": [{"type": "input_text", "text": QUESTION}],
                }
            ],
            "first_id": GIVEN_ID,
            "last_id": GIVEN_ID,
            "has_more": False,
        },
        path=STORED,
    ),
)
CANCEL = (
    Example(
        "Too late",
        {
            "error": {
                "message": "Cannot cancel a synchronous response: only those made with background can be",
                "type": "invalid_request_error",
                "param": "response_id",
                "code": None,
            }
        },
        path=STORED,
        status=400,
    ),
)
