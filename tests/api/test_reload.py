"""`POST /api/vmm/reload` beside requests that run, and what it changes in a server."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import EchoLoader, LiveServer, install_echo
from tests.api.test_http import CHAT

from vmm_adapters.echo import Gate
from vmm_server.api.vmm.examples import MACHINE
from vmm_server.app import create_app
from vmm_server.models.machine import MachineReader
from vmm_server.models.store import Store
from vmm_server.settings import read_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def server(home: Path, gate: Gate, no_environment: None) -> Iterator[LiveServer]:
    """Reads its settings from `vmm.toml`."""
    read = partial(read_settings, home=home, calibrate="off")
    (home / "vmm.toml").write_text('default_model = ""')
    settings = read()
    install_echo(Store(settings.store_dir), home / "echo")
    loader = EchoLoader(gate=gate)
    app = create_app(settings, load=loader, machine=MachineReader(lambda: MACHINE), read=read)
    server = LiveServer(app, loader)
    server.start()
    yield server
    server.stop()


def write(home: Path, **values: object) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in ({"default_model": ""} | values).items()]
    (home / "vmm.toml").write_text("\n".join(lines))


def reload(server: LiveServer) -> Any:
    return server.client.post("/api/vmm/reload")


def test_a_stream_goes_on_while_everything_is_read_again(server: LiveServer, home: Path, gate: Gate) -> None:
    gate.release(1)
    with server.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        write(home, ollama_version="9.9.9", port=1)
        answer = reload(server).json()
        assert answer["changed"] == {"at_once": ["ollama_version"], "at_next_load": [], "at_restart": ["port"]}
        gate.open()
        assert "data: [DONE]" in list(lines)
    assert server.client.get("/api/version").json()["version"] == "9.9.9"


def test_a_broken_file_is_a_400_that_names_it(server: LiveServer, home: Path) -> None:
    write(home, max_queue="many", ollama_version="9.9.9")
    answer = reload(server)
    assert answer.status_code == 400
    assert f"{home / 'vmm.toml'}: setting max_queue" in answer.json()["error"]
    assert server.client.get("/api/version").json()["version"] != "9.9.9"


def test_hosts_and_origins_change_at_once(server: LiveServer, home: Path) -> None:
    foreign = {"origin": "https://app.example"}
    assert server.client.get("/api/version", headers=foreign).status_code == 403
    assert server.client.get("/api/version", headers={"host": "ai.example"}).status_code == 403
    write(home, origins=["https://app.example"], allowed_hosts=["ai.example"])
    reload(server).raise_for_status()
    assert server.client.get("/api/version", headers=foreign).status_code == 200
    assert server.client.get("/api/version", headers={"host": "ai.example"}).status_code == 200


def test_image_urls_are_refused_at_once(server: LiveServer, home: Path) -> None:
    write(home, image_urls="off", max_pending=3, max_audio_seconds=5)
    reload(server).raise_for_status()
    parts = server.parts
    assert (parts.fetcher.allowed, parts.admission.max_pending, parts.transcriptions.limits.max_seconds) == (
        "off",
        3,
        5,
    )


def test_another_default_model_is_loaded_beside_what_runs(server: LiveServer, home: Path, gate: Gate) -> None:
    gate.open()
    write(home, default_model="echo")
    assert reload(server).json()["changed"]["at_once"] == ["default_model"]
    assert server.client.get("/health/ready").status_code == 200
    server.client.post("/api/generate", json={"model": "echo", "prompt": "a"}).raise_for_status()
    assert [loaded.name for loaded in server.parts.pool.loaded()] == ["echo:latest"]


def test_keep_alive_of_what_is_loaded_from_now_on(server: LiveServer, home: Path, gate: Gate) -> None:
    gate.open()
    write(home, keep_alive=-1)
    reload(server).raise_for_status()
    server.client.post("/api/generate", json={"model": "echo", "prompt": "a"}).raise_for_status()
    (loaded,) = server.parts.pool.loaded()
    assert loaded.keep_alive.seconds is None
