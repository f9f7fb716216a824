"""A model for which there is no memory: a clear error, nothing is left of it, and the next load works."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import EchoLoader, LiveServer, echo_app
from tests.breaking.conftest import Serve
from tests.conftest import MakeSettings

from vmm_adapters.errors import OutOfMemory
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.loading import load_model
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store

ASK = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": False}


@dataclass
class Cramped(EchoLoader):
    """Fails as often as there are errors."""

    errors: list[BaseException] = field(default_factory=list)

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return super().__call__(model, placement, kv_cache_bytes)


@pytest.fixture
def loader() -> Cramped:
    return Cramped()


@pytest.fixture
def server(tmp_path: Path, no_environment: None, loader: Cramped) -> Iterator[LiveServer]:
    server = LiveServer(echo_app(tmp_path, loader), loader)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def engines() -> int:
    """Threads of models in memory."""
    return sum(thread.name == "vmm-engine" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "error", [ModelLoadFailed("no room for 9 GB of weights", hint="lower memory_budget"), MemoryError("no room")]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_who_asks_is_told_and_the_next_one_is_served(
    server: LiveServer, loader: Cramped, error: BaseException, path: str
) -> None:
    loader.errors, before = [error], engines()
    answer = server.client.post(path, json=ASK)
    assert answer.status_code == 500, answer.text
    assert "error" in answer.json()
    if isinstance(error, ModelLoadFailed):
        assert "no room for 9 GB" in answer.text
    assert server.parts.pool.loaded() == []
    assert engines() == before
    assert "hello" in server.client.post(path, json=ASK).text
    (loaded,) = server.parts.pool.loaded()
    assert loaded.num_leases == 0
    assert engines() == before + 1


def test_a_runtime_that_runs_out_of_memory_says_so(installed: Any, settings: MakeSettings) -> None:
    installed("echo:latest")
    model = Registry(Store(settings().store_dir), read_cards(())).resolve("echo")
    with pytest.raises(ModelLoadFailed, match="no room for one KV block") as caught:
        load_model(model, Placement("echo", "CPU"), 0, settings())
    assert isinstance(caught.value.__cause__, OutOfMemory)


def test_a_budget_that_is_too_small_is_told_and_leaves_nothing(serve: Serve) -> None:
    running = serve(memory_budget="1KB", default_model="", load_timeout_s="50")

    def ask() -> None:
        answer = running.client.post("/api/chat", json=ASK)
        assert answer.status_code == 500, answer.text
        assert "memory_budget" in answer.text

    ask()
    before = running.settled()
    for _ in range(5):
        ask()
    running.settled(lambda now: now.open_fds <= before.open_fds and now.tasks <= before.tasks)
    assert running.client.get("/api/ps").json()["models"] == []
