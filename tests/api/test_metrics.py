"""`GET /metrics`: figures that Prometheus's own parser reads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tests.api.conftest import LiveServer, StartServer
from tests.api.fake_audio import sound

from vmm_adapters.echo import Gate
from vmm_adapters.errors import OutOfMemory
from vmm_adapters.types import Batch
from vmm_server.engine.engine import EngineOptions
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.router import Placement
from vmm_server.models.store import Store

ECHO = (("backend", "echo"), ("device", "CPU"), ("model", "echo:latest"), ("variant", ""))
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}

Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]


def figures(server: LiveServer, accept: str = "text/plain") -> Figures:
    answer = server.client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    parse = parse_openmetrics if "openmetrics" in answer.headers["content-type"] else parse_text
    found: Figures = {}
    for family in parse(answer.text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name} is told twice"
            found[sample.name][labels] = sample.value
    return found


@pytest.fixture
def server(start_server: StartServer) -> LiveServer:
    return start_server()


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_what_a_model_did_is_counted(server: LiveServer, accept: str) -> None:
    assert "vmm_tokens_generated_total" not in figures(server, accept)  # nothing is in memory
    long = [{"role": "user", "content": "Hello " * 20}, *CHAT["messages"]]
    for _ in range(2):
        asked = {"model": "echo", "messages": long}
        usage = server.client.post("/v1/chat/completions", json=asked).raise_for_status().json()["usage"]
    found = figures(server, accept)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert found["vmm_tokens_generated_total"] == {ECHO: 2 * (len("Hello") + 1)}  # with the one that ends it
    assert found["vmm_prompt_tokens_total"] == {ECHO: 2 * usage["prompt_tokens"]}
    assert found["vmm_cached_tokens_total"] == {ECHO: cached}
    assert found["vmm_requests_running"] == found["vmm_requests_waiting"] == {ECHO: 0}
    (loaded,) = server.parts.pool.loaded()
    assert found["vmm_model_memory_bytes"] == {ECHO: loaded.size_bytes}
    assert found["vmm_kv_blocks"] == {ECHO: server.stats().num_blocks}
    assert found["vmm_model_info"] == {(ECHO[0], ECHO[1], ("digest", "e" * 64), *ECHO[2:]): 1}
    assert found["process_resident_memory_bytes"][()] > 0


def test_what_runs_and_what_waits(start_server: StartServer, gate: Gate) -> None:
    server = start_server(gate=gate, options=EngineOptions(max_sequences=1))
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(server.client.post, "/v1/chat/completions", json=CHAT) for _ in range(2)]
        gate.wait_entered()
        while not (found := figures(server))["vmm_requests_waiting"][ECHO]:
            pass
        gate.open()
        assert found["vmm_requests_running"][ECHO] == found["vmm_requests_waiting"][ECHO] == 1
        assert 0 < found["vmm_kv_blocks_used"][ECHO] < found["vmm_kv_blocks"][ECHO]
        assert all(answer.result().is_success for answer in answers)


def test_what_hears_is_counted(audio_server: LiveServer) -> None:
    ear = tuple((name, "whisper:tiny.en" if name == "model" else value) for name, value in ECHO)
    fields, files = {"model": "whisper:tiny.en"}, {"file": ("speech.wav", sound(1))}
    audio_server.client.post("/v1/audio/transcriptions", data=fields, files=files).raise_for_status()
    found = figures(audio_server)
    for name in ("vmm_inputs_total", "vmm_tokens_generated_total", "vmm_requests_running", "vmm_requests_waiting"):
        assert ear in found[name], name


def test_the_tokens_of_an_encoder(encoder_server: LiveServer) -> None:
    words = tuple((name, "words:latest" if name == "model" else value) for name, value in ECHO)
    before = figures(encoder_server).get("vmm_prompt_tokens_total", {}).get(words, 0)
    asked = {"model": "words", "input": ["one", "two"]}
    usage = encoder_server.client.post("/v1/embeddings", json=asked).raise_for_status().json()["usage"]
    found = figures(encoder_server)
    assert found["vmm_prompt_tokens_total"][words] - before == usage["prompt_tokens"]
    assert words not in found.get("vmm_kv_blocks", {})


def test_loads_that_failed_by_place_and_reason(start_server: StartServer) -> None:
    places = (Placement("openvino", "GPU.0"), Placement("openvino", "CPU"))
    server = start_server(placements=places, load_gate=_no_room)
    assert server.client.post("/v1/chat/completions", json=CHAT).status_code == 500
    failures = figures(server)["vmm_load_failures_total"]
    assert {(dict(labels)["device"], dict(labels)["reason"]): value for labels, value in failures.items()} == {
        ("GPU.0", "OutOfMemory"): 1,
        ("CPU", "OutOfMemory"): 1,
    }


def test_models_that_share_all_labels_are_one_series(server: LiveServer) -> None:
    """A model that was made anew under its old name, while the old one is still in memory."""
    server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    echo = server.parts.registry.resolve("echo")
    Store(server.parts.settings.store_dir).install(replace(echo, weights="f" * 64, digest="f" * 64))
    server.client.post("/v1/chat/completions", json=CHAT).raise_for_status()
    assert len(server.parts.pool.loaded()) == 2
    found = figures(server)
    assert found["vmm_tokens_generated_total"] == {ECHO: 2 * (len("Hello") + 1)}
    assert {dict(labels)["digest"] for labels in found["vmm_model_info"]} == {"e" * 64, "f" * 64}


def _no_room(batch: Batch) -> None:
    raise ModelLoadFailed("no room") from OutOfMemory("no room")
