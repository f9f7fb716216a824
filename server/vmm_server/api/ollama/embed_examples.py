"""What is sent to `/api/embed` and `/api/embeddings` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example

MODEL = "all-minilm"
COUNTS = {"total_duration": 14_000_000, "prompt_eval_count": 8}

EMBED = (
    Example(
        "Two texts",
        {"model": MODEL, "embeddings": [[0.6, -0.8], [0.8, 0.6]]} | COUNTS,
        {"model": MODEL, "input": ["Why is the sky blue?", "Why is the grass green?"]},
    ),
    Example(
        "One text, fewer numbers",
        {"model": MODEL, "embeddings": [[0.6, -0.8]]} | COUNTS,
        {"model": MODEL, "input": "Why is the sky blue?", "dimensions": 2, "truncate": False},
    ),
    Example("Load the model", {"model": MODEL, "embeddings": []}, {"model": MODEL, "keep_alive": "10m"}),
)
EMBEDDINGS = (
    Example("One text", {"embedding": [1.5, -2.0]}, {"model": MODEL, "prompt": "Why is the sky blue?"}),
    Example("Load the model", {"embedding": []}, {"model": MODEL}),
)
