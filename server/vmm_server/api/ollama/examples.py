"""What is sent to the routes under `/api` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import TEXT, Example
from vmm_server.api.streaming import NDJSON

MODEL = "smollm2:135m"
WHEN = "2026-11-21T09:30:00.125000Z"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "135M",
    "quantization_level": "Q4_1",
    "context_length": 8192,
}
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

ROOT = (Example("Is somebody there", "Ollama is running", media_type=TEXT),)
VERSION = (Example("Versions", {"version": "0.13.0", "vmm_version": "0.1.0"}),)
TAGS = (
    Example(
        "Installed models",
        {
            "models": [
                {
                    "name": MODEL,
                    "model": MODEL,
                    "modified_at": WHEN,
                    "size": 98_362_432,
                    "digest": DIGEST,
                    "details": DETAILS,
                    "capabilities": ["completion"],
                }
            ]
        },
    ),
)
PS = (
    Example(
        "Loaded models",
        {
            "models": [
                {
                    "name": MODEL,
                    "model": MODEL,
                    "size": 181_403_648,
                    "digest": DIGEST,
                    "details": DETAILS,
                    "expires_at": "2026-11-21T09:35:00.125000Z",
                    "size_vram": 0,
                    "context_length": 8192,
                    "placement": "openvino/CPU",
                }
            ]
        },
    ),
)
SHOW = (
    Example(
        "A model",
        {
            "license": "Apache-2.0",
            "modelfile": "# SmolLM2 135M Instruct\nFROM smollm2:135m\nPARAMETER temperature 0.2\n",
            "parameters": "temperature                    0.2",
            "template": "{% for message in messages %}…{% endfor %}",
            "system": "",
            "details": DETAILS,
            "messages": [],
            "model_info": {
                "general.architecture": "llama",
                "general.basename": "smollm2",
                "general.parameter_count": 135_000_000,
                "llama.context_length": 8192,
            },
            "capabilities": ["completion"],
            "modified_at": WHEN,
        },
        {"model": MODEL},
    ),
)
PULL = (
    Example("Wait for the end", {"status": "success"}, {"model": MODEL, "stream": False}),
    Example(
        "With progress",
        [
            {"status": "pulling manifest"},
            {"status": "pulling b179c9523d0e", "digest": f"sha256:{DIGEST}", "total": 98_362_432},
            {
                "status": "pulling b179c9523d0e",
                "digest": f"sha256:{DIGEST}",
                "total": 98_362_432,
                "completed": 5_000_000,
            },
            {"status": "verifying sha256 digest"},
            {"status": "success"},
        ],
        {"model": MODEL},
        media_type=NDJSON,
    ),
)
DELETE = (Example("Remove a model", "", {"model": MODEL}, media_type=TEXT),)

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
        "Unload the model",
        STATE | {"response": "", "done": True, "done_reason": "unload"},
        {"model": MODEL, "keep_alive": 0},
    ),
)
