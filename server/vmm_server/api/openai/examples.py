"""What is sent to the routes under `/v1` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import SSE, Example

MODEL = "smollm2:135m"
CREATED = 1_795_253_400
INSTALLED = {
    "id": MODEL,
    "object": "model",
    "created": CREATED,
    "owned_by": "library",
    "max_model_len": 8192,
    "context_length": 8192,
}
LIST_MODELS = (Example("Installed models", {"object": "list", "data": [INSTALLED]}),)
RETRIEVE_MODEL = (Example("A model", INSTALLED, path={"model_id": MODEL}),)

USAGE = {
    "prompt_tokens": 14,
    "completion_tokens": 24,
    "total_tokens": 38,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
ANSWER = "Blue light is scattered most."
CHAT_HEAD = {
    "id": "chatcmpl-9c3cd2c77ce245e9aa0f1f36",
    "object": "chat.completion",
    "created": CREATED,
    "model": MODEL,
    "system_fingerprint": "vmm-b179c9523d0e",
}
CHUNK_HEAD = CHAT_HEAD | {"object": "chat.completion.chunk"}
TEXT_HEAD = CHAT_HEAD | {"id": "cmpl-5d1c3f0b9a7e4c2d8f6b1a03", "object": "text_completion"}


def _message(content: str | None) -> dict[str, object]:
    return {"role": "assistant", "content": content, "refusal": None}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = {
    "id": "call_8f2b6c1d9a3e4f70",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
OSLO = {"role": "user", "content": "How is the weather in Oslo?"}


def _choice(finish_reason: str | None, **said: object) -> dict[str, object]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}


CHAT = (
    Example(
        "One answer",
        CHAT_HEAD | {"choices": [_choice("stop", message=_message(ANSWER))], "usage": USAGE},
        {"model": MODEL, "messages": QUESTION},
    ),
    Example(
        "A stream",
        [
            CHUNK_HEAD | {"choices": [_choice(None, delta={"role": "assistant", "content": "Blue"})], "usage": None},
            CHUNK_HEAD | {"choices": [_choice(None, delta={"content": " light"})], "usage": None},
            CHUNK_HEAD | {"choices": [_choice("stop", delta={})], "usage": None},
            CHUNK_HEAD | {"choices": [], "usage": USAGE},
            "[DONE]",
        ],
        {"model": MODEL, "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}},
        media_type=SSE,
    ),
    Example(
        "A tool call",
        CHAT_HEAD
        | {
            "choices": [_choice("tool_calls", message=_message(None) | {"tool_calls": [CALL]})],
            "usage": USAGE,
        },
        {"model": MODEL, "messages": [OSLO], "tools": [WEATHER], "tool_choice": "required"},
    ),
    Example(
        "After a tool's answer",
        CHAT_HEAD | {"choices": [_choice("stop", message=_message("It snows in Oslo."))], "usage": USAGE},
        {
            "model": MODEL,
            "messages": [
                OSLO,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": CALL["id"], "content": "snow, -4 degrees"},
            ],
            "tools": [WEATHER],
        },
    ),
    Example(
        "An answer with a schema",
        CHAT_HEAD | {"choices": [_choice("stop", message=_message('{"colour": "blue"}'))], "usage": USAGE},
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What colour is the sky? Answer in JSON."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {
                        "type": "object",
                        "properties": {"colour": {"enum": ["blue", "grey", "black"]}},
                        "required": ["colour"],
                        "additionalProperties": False,
                    },
                },
            },
        },
    ),
)
COMPLETION = (
    Example(
        "Continue a text",
        TEXT_HEAD | {"choices": [_choice("length", text=" blue, and the sea")], "usage": USAGE},
        {"model": MODEL, "prompt": "The sky is", "max_tokens": 5},
    ),
    Example(
        "A stream",
        [
            TEXT_HEAD | {"choices": [_choice(None, text=" blue")]},
            TEXT_HEAD | {"choices": [_choice("length", text=",")]},
            "[DONE]",
        ],
        {"model": MODEL, "prompt": "The sky is", "max_tokens": 2, "stream": True},
        media_type=SSE,
    ),
)
