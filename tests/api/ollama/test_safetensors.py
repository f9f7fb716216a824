"""A text model made of uploaded safetensors, over HTTP."""

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[2] / "data" / "gguf_reference"


@pytest.fixture
def server(start_server: Callable[..., Any]) -> Any:
    """A server of its own, with the real importer."""
    return start_server()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Qwen 3 in two files."""
    tiny = runpy.run_path(str(REFERENCE / "tiny_models.py"))
    model = tiny["MODELS"]["qwen3"]
    write: Callable[..., Path] = runpy.run_path(str(REFERENCE / "tiny_folders.py"))["write_folder"]
    return write(tmp_path / "tiny", model, tiny["weights"](model), dtype="BF16", shards=2)


def upload(server: Any, folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        digests[path.name] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        sent = server.client.post(f"/api/blobs/{digests[path.name]}", content=path.read_bytes())
        assert sent.status_code in (200, 201)
    return digests


def create(server: Any, **body: object) -> Any:
    return server.client.post("/api/create", json={"stream": False, **body})


def test_a_model_is_made_shown_and_quantised(server: Any, folder: Path) -> None:
    files = upload(server, folder)
    streamed = server.client.post("/api/create", json={"model": "mine", "files": files, "system": "Be brief."})
    statuses = [json.loads(line)["status"] for line in streamed.text.splitlines()]
    assert (statuses[0], statuses[-1]) == ("converting model", "success")
    shown = server.client.post("/api/show", json={"model": "mine"}).json()
    assert (
        shown["details"].items() >= {"format": "safetensors", "family": "qwen3", "quantization_level": "BF16"}.items()
    )
    assert shown["model_info"].items() >= {"qwen3.block_count": 3, "qwen3.attention.key_length": 32}.items()
    assert (shown["system"], shown["capabilities"]) == ("Be brief.", ["completion"])
    assert create(server, model="small", files=upload(server, folder), quantize="q8_0").json() == {"status": "success"}
    shown = server.client.post("/api/show", json={"model": "small"}).json()
    assert shown["details"]["quantization_level"] == "Q8_0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "the model family 'mamba' is not supported in safetensors"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ],
)
def test_what_cannot_be_read_is_a_400_that_names_it(
    server: Any, folder: Path, changes: dict[str, object], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    answer = create(server, model="mine", files=upload(server, folder))
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert str(folder.parent) not in answer.text


def test_a_missing_part_is_named(server: Any, folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    answer = create(server, model="mine", files=upload(server, folder))
    assert answer.status_code == 400
    assert "model-00002-of-00002.safetensors: is missing" in answer.json()["error"]
