"""A model that is replaced while requests run on it: new ones take the new one, the old one leaves after the last."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.echo import Gate, write_echo_model
from vmm_adapters.echo_encoder import write_echo_encoder
from vmm_server.models.store import InstalledModel, Store

ASK = {"model": "live", "prompt": "hello"}
WAIT_S = 30


class Two:
    """Names `live` and `next`: two models whose folders are the store's, and belong to nobody else."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.store: Store = server.parts.store
        self.folders: dict[str, Path] = {}
        for index, name in enumerate(("live", "next")):
            self.install(name, str(index + 1))

    def install(self, name: str, digit: str) -> InstalledModel:
        self.store.prepare()
        folder = self.store.models_dir / (digit * 64)
        write_echo_model(folder)
        self.folders[name] = folder
        blob = self.store.blob(digit * 64)
        blob.write_text("fetched")
        echo = self.server.parts.registry.resolve("echo")
        model = replace(echo, name=f"{name}:latest", aliases=(), digest=digit * 64, weights="", folder=folder)
        return self.store.install(model, blobs=[digit * 64])

    def loaded(self) -> set[str]:
        """Digests of what is in memory."""

        async def look() -> set[str]:
            return {loaded.model.digest[0] for loaded in self.server.parts.pool.loaded()}

        return self.server.run(look())  # type: ignore[no-any-return]

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until it is so."""
        for _ in range(WAIT_S * 100):
            if what():
                return
            threading.Event().wait(0.01)
        raise TimeoutError


def by_copy(two: Two) -> None:
    body = {"source": "next", "destination": "live"}
    two.server.client.post("/api/copy", json=body).raise_for_status()


def by_create(two: Two) -> None:
    body = {"model": "live", "from": "next", "system": "Be kind.", "stream": False}
    two.server.client.post("/api/create", json=body).raise_for_status()


def by_another_process(two: Two) -> None:
    other = Store(two.store.root)
    other.install(replace(two.server.parts.registry.resolve("next"), name="live:latest"), blobs=["2" * 64])
    other.collect()


@pytest.mark.parametrize("swap", [by_copy, by_create, by_another_process])
def test_a_replaced_model_ends_what_runs_on_it_and_leaves(
    start_server: Any, gate: Gate, swap: Callable[[Two], None]
) -> None:
    two = Two(start_server({"keep_alive": -1}, gate=gate))
    gate.release(2)
    client = two.server.client
    with client.stream("POST", "/api/generate", json=ASK | {"keep_alive": -1}) as response:
        assert response.headers["x-vmm-model-digest"] == "1" * 64
        lines = response.iter_lines()
        said = [json.loads(next(lines))]
        swap(two)
        assert two.folders["live"].exists(), "it is in use"
        assert two.store.blob("1" * 64).exists()
        assert two.loaded() == {"1"}
        gate.open()
        said += [json.loads(line) for line in lines]
    assert "".join(line["response"] for line in said) == "hello"
    assert said[-1]["done_reason"] == "stop"
    two.wait_for(lambda: "1" not in two.loaded())
    two.wait_for(lambda: not two.folders["live"].exists() and not two.store.blob("1" * 64).exists())
    again = client.post("/api/generate", json=ASK | {"stream": False})
    assert again.json()["response"] == "hello"
    assert two.loaded() == {two.server.parts.registry.resolve("live").weights[0]} == {"2"}
    assert two.folders["next"].exists()


def test_new_requests_take_the_new_model_while_the_old_one_runs(start_server: Any, gate: Gate) -> None:
    two = Two(start_server(gate=gate))
    gate.release(2)
    client = two.server.client
    with client.stream("POST", "/api/generate", json={"model": "live", "prompt": "x" * 200}) as old:
        lines = old.iter_lines()
        next(lines)
        by_copy(two)
        with ThreadPoolExecutor() as threads:
            asked = client.build_request("POST", "/api/generate", json=ASK)
            sent = threads.submit(client.send, asked, stream=True)
            while not sent.done():  # steps of both, fewer than the old one's 200
                gate.release()
                threading.Event().wait(0.01)
            new = sent.result()
        assert new.headers["x-vmm-model-digest"] == "2" * 64
        assert two.loaded() == {"1", "2"}
        gate.open()
        gate.release()  # there may be two that wait
        assert json.loads(list(new.iter_lines())[-1])["done"]
        assert json.loads(list(lines)[-1])["done"]


def test_what_another_name_needs_stays(start_server: Any) -> None:
    two = Two(start_server())
    two.server.client.post("/api/copy", json={"source": "live", "destination": "second"}).raise_for_status()
    two.server.client.post("/api/generate", json={"model": "live"}).raise_for_status()
    by_copy(two)
    (loaded,) = two.server.parts.pool.loaded()
    assert not loaded.is_replaced
    two.server.client.request("DELETE", "/api/delete", json={"model": "second"}).raise_for_status()
    assert two.loaded() == set()
    two.wait_for(lambda: not two.folders["live"].exists())


def test_a_name_that_comes_back_keeps_its_model(start_server: Any) -> None:
    two = Two(start_server())
    two.server.client.post("/api/generate", json={"model": "live"}).raise_for_status()
    old = two.server.parts.registry.resolve("live")
    by_copy(two)
    two.store.install(replace(old, name="back:latest"))
    two.server.parts.pool.find_replaced()
    (loaded,) = two.server.parts.pool.loaded()
    assert not loaded.is_replaced


def answer_after(server: Any, loading: Gate, path: str, body: dict[str, Any], change: Callable[[], object]) -> Any:
    """To a request for `live`, whose model is changed while it waits for another one's load."""
    with ThreadPoolExecutor() as threads:
        first = threads.submit(server.client.post, "/api/generate", json={"model": "echo"})
        loading.wait_entered()
        waiting = threads.submit(server.client.post, path, json={"model": "live", **body})
        while server.parts.pool.arrivals.count < 2:
            threading.Event().wait(0.01)
        change()
        loading.open()
        assert first.result().status_code == 200
        return waiting.result()


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/generate", {"prompt": "hello", "stream": False}, "hello"),
        ("/api/generate", {}, "load"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}, "hello"),
        ("/tokenize", {"prompt": "hello"}, "tokens"),
    ],
)
def test_who_waits_for_a_model_that_is_replaced_gets_the_new_one(
    start_server: Any, path: str, body: dict[str, Any], said: str
) -> None:
    loading = Gate()
    two = Two(start_server(load_gate=loading))

    def replace_it() -> None:
        by_copy(two)
        assert not two.folders["live"].exists()

    answer = answer_after(two.server, loading, path, body, replace_it)
    assert answer.status_code == 200, answer.text
    assert said in answer.text
    assert two.loaded() == {"e", "2"}


def test_a_text_is_embedded_by_the_model_of_now(start_server: Any, tmp_path: Path) -> None:
    loading = Gate()
    server = start_server(load_gate=loading)
    store, echo = server.parts.store, server.parts.registry.resolve("echo")
    for name, dim in (("live", 32), ("next", 48)):
        write_echo_encoder(tmp_path / name, dim=dim)
        fields: dict[str, Any] = {"name": f"{name}:latest", "aliases": (), "digest": f"{dim:064}", "weights": ""}
        fields |= {"folder": tmp_path / name, "capabilities": ("embedding",), "context_length": 64}
        store.install(replace(echo, **fields))

    def replace_it() -> None:
        server.client.post("/api/copy", json={"source": "next", "destination": "live"}).raise_for_status()

    answer = answer_after(server, loading, "/v1/embeddings", {"input": "hello"}, replace_it)
    assert len(answer.json()["data"][0]["embedding"]) == 48
    assert answer.headers["x-vmm-model-digest"] == f"{48:064}"


def test_who_waits_for_a_model_that_is_deleted_is_told(start_server: Any) -> None:
    loading = Gate()
    server = Two(start_server(load_gate=loading)).server

    def delete_it() -> None:
        server.client.request("DELETE", "/api/delete", json={"model": "live"}).raise_for_status()

    assert answer_after(server, loading, "/api/generate", {"prompt": "hello"}, delete_it).status_code == 404


def test_nothing_is_dropped_while_models_are_swapped_and_released(start_server: Any) -> None:
    two = Two(start_server())
    client, stop, lost, answered = two.server.client, threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            with client.stream("POST", "/api/generate", json=ASK) as response:
                lines = [json.loads(line) for line in response.iter_lines()]
            said = "".join(line.get("response", "") for line in lines)
            (answered if (response.status_code, said) == (200, "hello") else lost).append(lines[-1])

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        two.install("next", str(turn + 3))
        by_copy(two)
        client.post("/api/copy", json={"source": "next", "destination": f"live@v{turn}"}).raise_for_status()
        shares = {"live": 50, f"v{turn}": 50}
        client.put("/api/vmm/releases/live", json={"shares": shares}).raise_for_status()
        client.post("/api/vmm/reload").raise_for_status()
        client.delete("/api/vmm/releases/live").raise_for_status()
        client.request("DELETE", "/api/delete", json={"model": f"live@v{turn}"}).raise_for_status()
    stop.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert lost == []
    assert len(answered) > 20
    two.wait_for(lambda: two.loaded() <= {"8"})
    two.wait_for(lambda: [*two.store.models_dir.iterdir()] == [two.store.models_dir / ("8" * 64)])
