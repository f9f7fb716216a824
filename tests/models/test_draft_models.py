"""Which model drafts for which, and what the log says where none does."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.echo import write_echo_model
from vmm_adapters.types import SamplingParams
from vmm_server.errors import ModelNotFound
from vmm_server.models.loading import ReadyModel, load_model
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings

Install = Callable[..., InstalledModel]
ECHO = Placement("echo", "CPU")
KV_BYTES = 1 << 18


@pytest.fixture
def models(tmp_path: Path, install: Install) -> dict[str, InstalledModel]:
    """Two that echo, one whose vocabulary is another, and an encoder."""
    found = {}
    for index, name in enumerate(("large", "small", "foreign", "encoder")):
        write_echo_model(tmp_path / name)
        does = "embedding" if name == "encoder" else "completion"
        found[name] = install(
            f"{name}:latest",
            folder=tmp_path / name,
            weights=f"{index}" * 64,
            context_length=512,
            capabilities=(does,),
            size_bytes=1000,
        )
    path = tmp_path / "foreign" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(tokenizer))
    return found


@pytest.fixture
def load(tmp_path: Path, models: dict[str, InstalledModel]) -> Callable[..., ReadyModel]:
    def resolve(name: str) -> InstalledModel:
        if name not in models:
            raise ModelNotFound(name)
        return models[name]

    def load(draft_model: str, *, kv_bytes: int = KV_BYTES, **fields: Any) -> ReadyModel:
        settings = Settings(home=tmp_path, draft_model=draft_model, **fields)
        ready = load_model(models["large"], ECHO, kv_bytes, settings, resolve)
        assert isinstance(ready, ReadyModel)
        return ready

    return load


def ask(ready: ReadyModel) -> str:
    async def scenario() -> str:
        prompt = ready.tokenizer.encode("<|user|>Hello, how are you?<|end|><|assistant|>").ids
        try:
            deltas = ready.engine.submit(prompt, SamplingParams(temperature=0))
            return "".join([delta.text async for delta in deltas])
        finally:
            await ready.aclose()

    return asyncio.run(scenario())


def test_it_takes_its_memory_from_the_kv_blocks(
    load: Callable[..., ReadyModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vmm_server")
    alone, together = load(""), load("small")
    assert "small:latest drafts for large:latest on echo/CPU" in caplog.text
    assert together.memory_bytes <= KV_BYTES
    assert 0 < together.engine.stats.num_blocks < alone.engine.stats.num_blocks
    assert ask(alone) == ask(together) == "Hello, how are you?"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone", "'gone' not found"),
        ("foreign", "its vocabulary is another one"),
        ("encoder", "it is no text model"),
    ],
)
def test_what_cannot_draft_is_told_and_the_model_runs(
    load: Callable[..., ReadyModel], caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    ready = load(name)
    assert f"{name} does not draft for large:latest on echo/CPU: " in caplog.text
    assert reason in caplog.text
    assert ask(ready) == "Hello, how are you?"


def test_one_that_is_too_large_is_left_out(load: Callable[..., ReadyModel], caplog: pytest.LogCaptureFixture) -> None:
    ready = load("small", kv_bytes=1900)
    assert "more than half of what the KV blocks may take" in caplog.text
    assert ask(ready) == "Hello, how are you?"


@pytest.mark.parametrize("fields", [{"draft_model": "large"}, {"draft_model": "small", "speculation": "off"}])
def test_nobody_drafts_for_itself_or_when_it_is_off(
    load: Callable[..., ReadyModel], caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    caplog.set_level("INFO", logger="vmm_server")
    assert ask(load(**fields)) == "Hello, how are you?"
    assert caplog.text == ""
