"""Models that come and go over HTTP: how long they stay, who leaves for whom, and what it took."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from vmm_adapters.echo import EchoRunner, Gate, write_echo_model
from vmm_server.models.store import Store

NAMES = ("one", "two", "three")
SIZE = EchoRunner(num_blocks=64).memory_bytes
"""What each takes: half of it, it says, for its weights."""


@pytest.fixture
def crowded(start_server: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts a server with three echo models and memory for two."""

    def start(changes: dict[str, object] | None = None, **options: Any) -> Any:
        budget = {"memory_budget": 2 * SIZE, "kv_cache_size": SIZE // 2}
        server = start_server(budget | (changes or {}), **options)
        store, echo = Store(server.parts.settings.store_dir), server.parts.registry.resolve("echo")
        for index, name in enumerate(NAMES):
            write_echo_model(tmp_path / name)
            store.install(
                replace(
                    echo,
                    name=f"{name}:latest",
                    aliases=(),
                    digest=f"{index:064}",
                    weights="",
                    folder=tmp_path / name,
                    size_bytes=SIZE // 2,
                )
            )
        return server

    return start


def ask(server: Any, model: str, prompt: str = "ab", **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "stream": False, "raw": True, "options": {"num_predict": 3}}
    return server.client.post("/api/generate", json=body | fields)


def loaded(server: Any) -> dict[str, datetime]:
    models = server.client.get("/api/ps").json()["models"]
    return {model["name"].removesuffix(":latest"): datetime.fromisoformat(model["expires_at"]) for model in models}


def test_three_models_share_the_room_of_two(crowded: Callable[..., Any]) -> None:
    server = crowded()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: ask(server, NAMES[index % 3]), range(60)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["response"] for answer in answers} == {"cde"}
    assert len(loaded(server)) == 2
    assert all(each.num_leases == 0 for each in server.parts.pool.loaded())


def test_a_request_says_how_long_its_model_stays_and_ps_shows_it(crowded: Callable[..., Any]) -> None:
    server = crowded({"keep_alive": "10m"})

    def minutes() -> float:
        return round((loaded(server)["one"] - datetime.now(UTC)) / timedelta(minutes=1), 1)

    assert ask(server, "one").status_code == 200
    assert minutes() == 10
    assert ask(server, "one", "", keep_alive="1h").json()["done_reason"] == "load"
    assert minutes() == 60
    assert ask(server, "one").status_code == 200
    assert minutes() == 60
    assert ask(server, "one", keep_alive=90).status_code == 200
    assert minutes() == 1.5
    assert ask(server, "one", keep_alive=-1).status_code == 200
    assert minutes() > 1e6
    assert ask(server, "one", "", keep_alive=0).json()["done_reason"] == "unload"
    assert loaded(server) == {}


def test_what_does_not_fit_beside_pinned_models_says_so(crowded: Callable[..., Any]) -> None:
    server = crowded()
    for name in NAMES[:2]:
        assert ask(server, name, "", keep_alive=-1).status_code == 200
    answer = ask(server, "three")
    assert answer.status_code == 500
    words = answer.json()["error"]
    assert "no room for 'three:latest': it needs " in words
    assert re.search(r"held by one:latest \(\d+ MB, pinned\), two:latest \(\d+ MB, pinned\)", words)
    assert loaded(server).keys() == {"one", "two"}
    assert ask(server, "two", "", keep_alive="1m").status_code == 200
    assert ask(server, "three").status_code == 200
    assert loaded(server).keys() == {"one", "three"}


def test_a_model_in_use_is_waited_for_so_long_and_no_longer(crowded: Callable[..., Any], gate: Gate) -> None:
    server = crowded({"max_loaded_models": 1, "load_timeout_s": 0.3}, gate=gate)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, "one")
        gate.wait_entered()
        refused = ask(server, "two")
        assert refused.status_code == 503
        assert re.search(r"one:latest \(\d+ MB, in use\)", refused.json()["error"])
        assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("5", "true")
        gate.open()
        assert running.result().status_code == 200
    assert ask(server, "two").status_code == 200


def test_durations_and_counts_add_up(crowded: Callable[..., Any]) -> None:
    server = crowded()
    cold, warm = (ask(server, "one", "ab" * 40).json() for _ in range(2))
    for answer in (cold, warm):
        parts = sum(answer.get(name, 0) for name in ("load_duration", "prompt_eval_duration", "eval_duration"))
        assert 0 < parts <= answer["total_duration"]
        assert answer["prompt_eval_count"] == 80
    assert cold["load_duration"] > 0
    assert "load_duration" not in warm
    assert "prompt_eval_cached_count" not in cold
    assert 0 < warm["prompt_eval_cached_count"] < 80
