"""What is sent to `/api/chat` and `/api/generate` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example
from vmm_server.api.streaming import NDJSON

MODEL = "smollm2:135m"
WHEN = "2026-11-21T09:30:00.125000Z"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
COUNTS = {
    "total_duration": 412_000_000,
    "prompt_eval_count": 14,
    "prompt_eval_duration": 31_000_000,
    "eval_count": 24,
    "eval_duration": 380_000_000,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
STATE = {"model": MODEL, "created_at": WHEN}
LOGPROB = {"token": "Blue", "logprob": -0.25, "bytes": [66, 108, 117, 101]}
OPTIONS = {
    "num_keep": 5,
    "seed": 42,
    "num_predict": 3,
    "draft_num_predict": 4,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 0.7,
    "repeat_last_n": 33,
    "temperature": 0.8,
    "repeat_penalty": 1.2,
    "presence_penalty": 1.5,
    "frequency_penalty": 1.0,
    "stop": ["\n", "user:"],
    "num_ctx": 1024,
    "num_batch": 2,
    "num_gpu": 1,
    "main_gpu": 0,
    "use_mmap": True,
    "num_thread": 8,
}
"""All there are."""

CHAT = (
    Example(
        "One answer",
        STATE
        | {"message": {"role": "assistant", "content": "Blue light is scattered most."}, "done": True}
        | {"done_reason": "stop"}
        | COUNTS,
        {"model": MODEL, "messages": QUESTION, "stream": False},
    ),
    Example(
        "A stream",
        [
            STATE | {"message": {"role": "assistant", "content": "Blue"}, "done": False},
            STATE | {"message": {"role": "assistant", "content": " light"}, "done": False},
            STATE | {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"} | COUNTS,
        ],
        {"model": MODEL, "messages": QUESTION, "options": {"temperature": 0.2, "num_predict": 200}},
        media_type=NDJSON,
    ),
    Example(
        "After a tool's answer",
        STATE
        | {"message": {"role": "assistant", "content": "It snows in Oslo."}, "done": True}
        | {"done_reason": "stop"}
        | COUNTS,
        {
            "model": MODEL,
            "messages": [
                {"role": "user", "content": "How is the weather in Oslo?"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
                {"role": "tool", "tool_name": "weather", "content": "snow, -4 degrees"},
            ],
            "tools": [WEATHER],
            "stream": False,
        },
    ),
    Example(
        "The prompt alone",
        STATE
        | {"message": {"role": "assistant", "content": ""}, "done": False}
        | {"_debug_info": {"rendered_template": "<|user|>Why is the sky blue?<|end|><|assistant|>"}},
        {"model": MODEL, "messages": QUESTION, "_debug_render_only": True},
    ),
    Example(
        "Load the model",
        STATE | {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"},
        {"model": MODEL, "keep_alive": "10m"},
    ),
)
GENERATE = (
    Example(
        "One answer",
        STATE
        | {"response": "Blue light is scattered most.", "done": True, "done_reason": "stop", "context": [1, 2683, 30]}
        | COUNTS,
        {"model": MODEL, "prompt": "Why is the sky blue?", "stream": False},
    ),
    Example(
        "A stream",
        [
            STATE | {"response": "Blue", "done": False},
            STATE | {"response": " light", "done": False},
            STATE | {"response": "", "done": True, "done_reason": "stop", "context": [1, 2683, 30]} | COUNTS,
        ],
        {"model": MODEL, "prompt": "Why is the sky blue?", "options": {"num_predict": 200}},
        media_type=NDJSON,
    ),
    Example(
        "With options",
        STATE
        | {"response": "Blue light is scattered most.", "done": True, "done_reason": "length"}
        | {"context": [1, 2683, 30]}
        | COUNTS,
        {"model": MODEL, "prompt": "Why is the sky blue?", "stream": False, "options": OPTIONS},
    ),
    Example(
        "Log-probabilities",
        STATE
        | {"response": "Blue", "done": True, "done_reason": "length", "context": [1, 2683, 30]}
        | {"logprobs": [LOGPROB | {"top_logprobs": [LOGPROB]}]}
        | COUNTS,
        {
            "model": MODEL,
            "prompt": "Why is the sky blue?",
            "stream": False,
            "logprobs": True,
            "top_logprobs": 2,
            "options": {"num_predict": 2},
        },
    ),
    Example(
        "A raw prompt",
        STATE | {"response": " is blue", "done": True, "done_reason": "length"} | COUNTS,
        {"model": MODEL, "prompt": "The sky", "raw": True, "stream": False, "options": {"num_predict": 2}},
    ),
    Example(
        "Unload the model",
        STATE | {"response": "", "done": True, "done_reason": "unload"},
        {"model": MODEL, "keep_alive": 0},
    ),
)
