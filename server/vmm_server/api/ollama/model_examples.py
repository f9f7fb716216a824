"""What is sent to the routes under `/api` that deal with models and what comes back, for the OpenAPI document."""

from vmm_server.api.ollama.examples import MODEL, WHEN
from vmm_server.api.openapi import TEXT, Example
from vmm_server.api.streaming import NDJSON

DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NO_BYTES = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""Of an empty file."""
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "135M",
    "quantization_level": "Q4_1",
    "context_length": 8192,
}
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
CREATE = (
    Example(
        "Of another model",
        [
            {"status": f"using existing layer sha256:{DIGEST}"},
            {"status": "writing manifest"},
            {"status": "success"},
        ],
        {
            "model": "mario",
            "from": MODEL,
            "system": "You are Mario from Super Mario Bros.",
            "parameters": {"temperature": 0.2, "stop": ["Luigi:"]},
            "messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "It's-a me!"}],
        },
        media_type=NDJSON,
    ),
    Example(
        "Of a Modelfile's text",
        {"status": "success"},
        {"model": "mario", "modelfile": f"FROM {MODEL}\nSYSTEM You are Mario.\n", "stream": False},
    ),
    Example(
        "Of an uploaded file",
        {"status": "success"},
        {"model": "mine", "files": {"mine.gguf": f"sha256:{DIGEST}"}, "quantize": "q4_1", "stream": False},
        is_sent=False,
    ),
)
COPY = (Example("A second name", "", {"source": MODEL, "destination": "backup/smollm2"}, media_type=TEXT),)
PUSH = (
    Example(
        "With progress",
        [
            {"status": "retrieving manifest"},
            {"status": "pushing b179c9523d0e", "digest": f"sha256:{DIGEST}", "total": 98_362_432, "completed": 0},
            {"status": "pushing manifest"},
            {"status": "success"},
        ],
        {"model": "models.example.org/me/smollm2:135m"},
        media_type=NDJSON,
        is_sent=False,
    ),
)
CREATE_BLOB = (Example("Upload a file", "", path={"digest": NO_BYTES}, media_type=TEXT, status=201),)
HEAD_BLOB = (Example("A file that is here", {"digest": NO_BYTES}, path={"digest": NO_BYTES}),)
