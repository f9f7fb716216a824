"""What is sent to `/v1/embeddings` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example

MODEL = "all-minilm"
USAGE = {"prompt_tokens": 8, "total_tokens": 8}


def _answer(*embeddings: object) -> dict[str, object]:
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(embeddings)]
    return {"object": "list", "data": data, "model": MODEL, "usage": USAGE}


EMBEDDINGS = (
    Example(
        "One text",
        _answer([0.0138, -0.0427, 0.0663]),
        {"model": MODEL, "input": "A cat sits on the mat."},
    ),
    Example(
        "Two texts, as OpenAI's clients ask",
        _answer("Dj9iPMPnLr0=", "f6M3PbPkGb0="),
        {"model": MODEL, "input": ["A cat sits.", "Shares fell."], "encoding_format": "base64", "dimensions": 2},
    ),
)
