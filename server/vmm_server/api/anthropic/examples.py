"""What is sent to `/v1/messages` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import SSE, Example

MODEL = "smollm2:135m"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
HEAD = {"id": "msg_4f8c2a5b9d7e4c1f8a6b3d02", "type": "message", "role": "assistant", "model": MODEL}
USAGE = {
    "input_tokens": 14,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 24,
    "output_tokens_details": {"thinking_tokens": 0},
}
ENDED = {"stop_reason": "end_turn", "stop_sequence": None}
WEATHER = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}

CREATE = (
    Example(
        "One answer",
        HEAD | {"content": [{"type": "text", "text": "Blue light is scattered most."}]} | ENDED | {"usage": USAGE},
        {"model": MODEL, "max_tokens": 200, "system": "Be brief.", "messages": QUESTION},
    ),
    Example(
        "A stream",
        [
            {
                "type": "message_start",
                "message": HEAD
                | {"content": [], "stop_reason": None, "stop_sequence": None}
                | {"usage": {"input_tokens": 14, "output_tokens": 0}},
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Blue"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": ENDED, "usage": USAGE},
            {"type": "message_stop"},
        ],
        {"model": MODEL, "max_tokens": 200, "messages": QUESTION, "stream": True},
        media_type=SSE,
    ),
    Example(
        "A tool call",
        HEAD
        | {"content": [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}}]}
        | {"stop_reason": "tool_use", "stop_sequence": None, "usage": USAGE},
        {
            "model": MODEL,
            "max_tokens": 200,
            "messages": [{"role": "user", "content": "Does it rain in Oslo?"}],
            "tools": [WEATHER],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
    ),
)
COUNT = (
    Example(
        "A prompt with a tool",
        {"input_tokens": 103},
        {"model": MODEL, "messages": QUESTION, "tools": [WEATHER]},
    ),
)
