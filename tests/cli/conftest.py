"""A home with the echo model; and a conversation without a server or a terminal: a client that answers by rote, and
lines that were typed before.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.echo import write_echo_model
from vmm_server.cli.client import Client
from vmm_server.cli.conversation import Conversation, Session
from vmm_server.errors import ModelNotFound
from vmm_server.models.pull import PullEvent
from vmm_server.models.store import InstalledModel, Store

Messages = list[dict[str, Any]]


class FakeClient:
    """Answers with the number of messages it was sent; `broken` is raised after the first piece."""

    def __init__(self) -> None:
        self.seen: list[Messages] = []
        self.fields: list[dict[str, object]] = []
        self.loaded: list[tuple[str, str | None]] = []
        self.created: list[dict[str, object]] = []
        self.thinking: tuple[str, ...] = ()
        self.broken: BaseException | None = None
        self.shown: dict[str, Any] = {"capabilities": ["completion"], "details": {}, "model_info": {}}

    def chat(self, model: str, messages: Messages, **fields: object) -> Iterator[dict[str, Any]]:
        self.seen.append(messages)
        self.fields.append({"model": model, **fields})
        for piece in self.thinking:
            yield {"message": {"content": "", "thinking": piece}}
        yield {"message": {"content": f"{len(messages)} "}}
        if self.broken:
            raise self.broken
        yield {"message": {"content": "messages"}}
        yield {"message": {"content": ""}, "done": True, "eval_count": 4, "eval_duration": 2_000_000_000}

    def show(self, model: str) -> dict[str, Any]:
        return self.shown

    def installed(self) -> list[dict[str, Any]]:
        return [{"name": "m:latest"}, {"name": "other:latest"}]

    def load(self, model: str, keep_alive: str | None, options: dict[str, object]) -> None:
        if model == "nonsense":
            raise ModelNotFound(model)
        self.loaded.append((model, keep_alive))

    def create(self, body: dict[str, object]) -> Iterator[PullEvent]:
        self.created.append(body)
        yield PullEvent("success")


class Typed:
    """A reader that gives these lines, then Ctrl-D."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.keeps_history = True
        self.prompts: list[str] = []
        self._left = list(lines)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self._left.pop(0) if self._left else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def conversation(fake: FakeClient) -> Conversation:
    return Conversation(cast(Client, fake), Session("m"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the model `echo:latest` installed."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "echo"
    write_echo_model(folder, context_length=4096)
    echo = InstalledModel(
        name="echo:latest",
        aliases=(),
        digest="e" * 64,
        size_bytes=1000,
        modified_at=datetime.now(UTC),
        adapter="echo",
        folder=folder,
        format="onnx",
        family="echo",
        parameter_size="0",
        quantization="none",
        context_length=4096,
        embedding_length=None,
        capabilities=("completion",),
        license=None,
        title="Echo",
        system=None,
        sampling=SamplingDefaults(temperature=0),
        source=f"file:{folder}",
    )
    Store(home / "models").install(echo, revision=None, blobs=())
    return home
