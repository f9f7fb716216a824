"""Requests that say where they have to run, over a server whose models may run in three places."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.datastructures import Headers
from tests.api.conftest import LiveServer, StartServer, servers_in

from vmm_adapters.card import EmbeddingRecipe
from vmm_adapters.catalog import BACKENDS
from vmm_adapters.echo import Gate
from vmm_adapters.echo_encoder import write_echo_encoder
from vmm_adapters.errors import DeviceLost
from vmm_adapters.types import Batch
from vmm_server.api.ollama.wire import Options
from vmm_server.api.openai.wire import ChatCompletionRequest, RunnerOptions
from vmm_server.api.placement import PlacementFields, wanted_of
from vmm_server.errors import InvalidRequest
from vmm_server.models.router import Placement
from vmm_server.models.store import Store
from vmm_server.requests import ANYWHERE, Wanted

CPU, GPU, DRAWING = Placement("openvino", "CPU"), Placement("openvino", "GPU.0"), Placement("onnxruntime-genai", "CPU")
HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "echo", "messages": HELLO}
EMBED = {"model": "words", "input": "a text"}
AT_THE_TOP: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "echo", "prompt": "Hello", "max_tokens": 3},
    "/v1/responses": {"model": "echo", "input": "Hello"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/v1/embeddings": EMBED,
    "/v1/rerank": {"model": "words", "query": "a", "documents": ["b"]},
}
"""Routes whose bodies name a placement beside their other fields."""
IN_OPTIONS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/api/chat": {**CHAT, "stream": False},
    "/api/generate": {"model": "echo", "prompt": "Hello", "stream": False},
    "/api/embed": EMBED,
    "/api/embeddings": {"model": "words", "prompt": "a text"},
}
SILENT: dict[str, dict[str, Any]] = {
    "/v1/responses/input_tokens": {"model": "echo", "input": "Hello"},
    "/v1/messages/count_tokens": CHAT,
    "/tokenize": {"model": "echo", "prompt": "Hello"},
    "/v1/tokenize": CHAT,
    "/detokenize": {"model": "echo", "tokens": [1]},
    "/apply-template": CHAT,
    "/api/chat": {"model": "echo", "messages": []},
    "/api/generate": {"model": "echo"},
    "/api/embed": {"model": "words", "input": []},
    "/api/embeddings": {"model": "words", "prompt": ""},
}
"""What loads a model, and answers nothing of it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("places")
    with servers_in(folder) as start:
        server = start(placements=(CPU, GPU, DRAWING))
        write_echo_encoder(folder / "words", dim=8)
        Store(server.parts.settings.store_dir).install(
            replace(
                server.parts.registry.resolve("echo"),
                name="words:latest",
                aliases=(),
                digest="a" * 64,
                weights="",
                folder=folder / "words",
                capabilities=("embedding",),
                context_length=64,
                embedding_length=8,
                embedding=EmbeddingRecipe(),
            )
        )
        yield server


@pytest.fixture
def idle(server: LiveServer) -> LiveServer:
    """Nothing is loaded."""
    for model in server.parts.registry.installed():
        server.run(server.parts.pool.unload(model))
    return server


def placements(server: LiveServer) -> list[Placement]:
    return [loaded.placement for loaded in server.parts.pool.loaded()]


@pytest.mark.parametrize("path", sorted({*AT_THE_TOP, *IN_OPTIONS}))
def test_a_header_says_where_a_request_runs(idle: LiveServer, path: str) -> None:
    body = AT_THE_TOP.get(path) or IN_OPTIONS[path]
    answer = idle.client.post(path, json=body, headers={"X-VMM-Device": "gpu"})
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-vmm-device"], answer.headers["x-vmm-backend"]) == ("GPU.0", "openvino")
    assert placements(idle) == [GPU]


@pytest.mark.parametrize("path", AT_THE_TOP)
def test_so_does_a_field_beside_the_others(idle: LiveServer, path: str) -> None:
    answer = idle.client.post(path, json={**AT_THE_TOP[path], "device": "GPU.0"})
    assert answer.headers["x-vmm-device"] == "GPU.0", answer.text


@pytest.mark.parametrize("path", IN_OPTIONS)
def test_so_does_an_option(idle: LiveServer, path: str) -> None:
    answer = idle.client.post(path, json={**IN_OPTIONS[path], "options": {"device": "GPU.0", "backend": "OpenVINO"}})
    assert answer.headers["x-vmm-device"] == "GPU.0", answer.text


@pytest.mark.parametrize("path", SILENT)
def test_what_only_loads_a_model_loads_it_there(idle: LiveServer, path: str) -> None:
    answer = idle.client.post(path, json=SILENT[path], headers={"x-vmm-device": "GPU.0"})
    assert answer.status_code == 200, answer.text
    assert placements(idle) == [GPU]


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_runs_in_several_places_at_once(idle: LiveServer, stream: bool) -> None:
    for wanted in (CPU, GPU, DRAWING):
        headers = {"x-vmm-device": wanted.device, "x-vmm-backend": wanted.adapter}
        answer = idle.client.post(
            "/v1/chat/completions", json={**CHAT, "stream": stream, "repetition_penalty": 1}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        assert (answer.headers["x-vmm-device"], answer.headers["x-vmm-backend"]) == (wanted.device, wanted.adapter)
    assert {*placements(idle)} == {CPU, GPU, DRAWING}
    rows = idle.client.get("/api/ps").json()["models"]
    assert {(row["backend"], row["device"], row["size_vram"] > 0) for row in rows} == {
        ("openvino", "CPU", False),
        ("openvino", "GPU.0", True),
        ("onnxruntime-genai", "CPU", False),
    }
    assert {row["name"] for row in rows} == {"echo:latest"}
    assert all(row["size_vram"] in (0, row["size"]) for row in rows)

    only = {"model": "echo", "keep_alive": 0, "options": {"device": "GPU"}}
    assert idle.client.post("/api/generate", json=only).json()["done_reason"] == "unload"
    assert {*placements(idle)} == {CPU, DRAWING}
    idle.client.post("/api/generate", json={"model": "echo", "keep_alive": 0})
    assert not placements(idle)


@pytest.mark.parametrize(
    ("headers", "fields", "param", "words"),
    [
        ({"x-vmm-device": ""}, {}, "x-vmm-device", "must not be empty"),
        ({"x-vmm-device": "x" * 101}, {}, "x-vmm-device", "more than 100 characters"),
        ({}, {"device": " "}, "device", "must not be empty"),
        ({}, {"options": {"backend": ""}}, "options.backend", "must not be empty"),
        ({"x-vmm-variant": ""}, {}, "x-vmm-variant", "must not be empty"),
        ({"x-vmm-backend": "vllm"}, {}, "x-vmm-backend", "'vllm' is none of cpu, openvino, onnxruntime-genai"),
        ({}, {"backend": "echo"}, "backend", "'echo' is none of"),
        ({}, {"options": {"backend": "cuda"}}, "options.backend", "'cuda' is none of"),
        ({"x-vmm-device": "CPU"}, {"device": "GPU"}, "device", "'GPU' is asked for, and 'CPU' in x-vmm-device"),
        ({}, {"device": "CPU", "options": {"device": "GPU"}}, "options.device", "and 'CPU' in device"),
        ({"x-vmm-device": "NPU"}, {}, "x-vmm-device", "cannot run on device NPU here; placements (backend/device): "),
        ({}, {"device": "GPU.1"}, "device", "onnxruntime-genai/CPU, openvino/CPU, openvino/GPU.0"),
        ({}, {"backend": "openvino-genai"}, "backend", "cannot run on backend openvino-genai here"),
        ({}, {"device": "GPU", "backend": "openvino-genai"}, "backend", "backend openvino-genai, device GPU"),
        ({"x-vmm-device": "GPU"}, {"backend": "onnxruntime-genai"}, "x-vmm-device", "cannot run on"),
        ({}, {"variant": "int4"}, "variant", "cannot run on variant int4"),
        ({}, {"options": {"variant": "int4"}}, "options.variant", "cannot run on variant int4"),
    ],
)
def test_refused_by_the_name_that_it_was_asked_by(
    idle: LiveServer, headers: dict[str, str], fields: dict[str, Any], param: str, words: str
) -> None:
    answer = idle.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert not placements(idle)


def test_what_cannot_be_is_refused_while_others_load(start_server: StartServer, gate: Gate) -> None:
    server = start_server(placements=(CPU,), load_gate=gate)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(server.client.post, "/v1/chat/completions", json=CHAT)
        gate.wait_entered()
        refused = server.client.post("/v1/chat/completions", json={**CHAT, "device": "NPU"})
        assert refused.status_code == 400
        assert not answer.done()
        gate.open()
        assert answer.result().status_code == 200


def test_each_dialect_has_its_words_for_that(idle: LiveServer) -> None:
    options = {"options": {"device": "NPU"}, "stream": False}
    ollama = idle.client.post("/api/chat", json={**CHAT, **options})
    assert ollama.status_code == 400
    assert ollama.json() == {
        "error": "'echo:latest' cannot run on device NPU here; placements (backend/device): "
        "onnxruntime-genai/CPU, openvino/CPU, openvino/GPU.0",
        "hint": "leave out options.device, or name one of these",
    }
    anthropic = idle.client.post("/v1/messages", json={**CHAT, "max_tokens": 9}, headers={"x-vmm-backend": "tensorrt"})
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (400, "invalid_request_error")


def test_auto_and_original_leave_it_as_it_is(idle: LiveServer) -> None:
    said = {"device": "auto", "backend": "AUTO", "variant": "original"}
    answer = idle.client.post("/v1/chat/completions", json={**CHAT, **said})
    assert answer.status_code == 200, answer.text
    assert "x-vmm-variant" not in answer.headers


def test_a_precision_is_asked_for_by_name(start_server: StartServer) -> None:
    small = replace(CPU, variant="int8")
    server = start_server(placements=(CPU, small))
    answer = server.client.post("/v1/chat/completions", json=CHAT, headers={"x-vmm-variant": "INT8"})
    assert answer.headers["x-vmm-variant"] == "int8"
    assert placements(server) == [small]
    answer = server.client.post("/api/chat", json={**CHAT, "options": {"variant": "original"}})
    assert "x-vmm-variant" not in answer.headers
    assert {*placements(server)} == {CPU, small}
    rows = server.client.get("/api/ps").json()["models"]
    assert {(row["variant"], row["placement"]) for row in rows} == {("", "openvino/CPU"), ("int8", "openvino/CPU/int8")}


def test_what_a_runtime_cannot_do_is_refused_only_where_it_was_asked_for(idle: LiveServer) -> None:
    asked = {**CHAT, "logprobs": True}
    refused = idle.client.post("/v1/chat/completions", json={**asked, "backend": "onnxruntime-genai"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    moved = idle.client.post("/v1/chat/completions", json=asked)  # it is loaded there, and goes elsewhere
    assert (moved.status_code, moved.headers["x-vmm-backend"]) == (200, "openvino")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"])
def test_a_stream_says_where_it_ended_up(start_server: StartServer, path: str) -> None:
    """Its device fails before it has begun there; it begins elsewhere, and its headers are sent after that."""
    failures = [DeviceLost("it fell off the bus")]

    def fail_once(batch: Batch) -> None:
        if failures:
            raise failures.pop()

    server = start_server(placements=(CPU, GPU), gate=fail_once)
    body = {**(AT_THE_TOP.get(path) or IN_OPTIONS[path]), "stream": True}
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert not failures
    assert answer.headers["x-vmm-device"] == "GPU.0"
    assert int(answer.headers["x-vmm-queue-ms"]) >= 0


def create(server: LiveServer, name: str, parent: str, **parameters: str) -> str:
    body = {"model": name, "from": parent, "parameters": parameters, "stream": False}
    server.client.post("/api/create", json=body).raise_for_status()
    return name


def test_a_model_may_say_where_it_runs(idle: LiveServer) -> None:
    graphic = create(idle, "graphic", "echo", device="gpu", backend="openvino")
    answer = idle.client.post("/v1/chat/completions", json={**CHAT, "model": graphic})
    assert answer.headers["x-vmm-device"] == "GPU.0"
    said = idle.client.post("/api/show", json={"model": graphic}).json()
    assert "PARAMETER device gpu\nPARAMETER backend openvino\n" in said["modelfile"]
    forced = idle.client.post("/v1/chat/completions", json={**CHAT, "model": graphic, "device": "CPU"})
    assert forced.headers["x-vmm-device"] == "CPU"
    open_again = create(idle, "open", graphic, device="auto", backend="onnxruntime-genai")
    answer = idle.client.post("/v1/chat/completions", json={**CHAT, "model": open_again, "repetition_penalty": 1})
    assert (answer.headers["x-vmm-device"], answer.headers["x-vmm-backend"]) == ("CPU", "onnxruntime-genai")


def test_a_model_that_says_what_is_not_here_is_no_mistake_of_the_request(idle: LiveServer) -> None:
    body = {**CHAT, "model": create(idle, "neural", "echo", device="NPU")}
    answer = idle.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    assert "cannot run on device NPU here" in answer.json()["error"]["message"]
    forced = idle.client.post("/v1/chat/completions", json=body, headers={"x-vmm-device": "GPU"})
    assert forced.headers["x-vmm-device"] == "GPU.0"


def test_the_document_tells_headers_that_ask_and_headers_that_tell(server: LiveServer) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    asking, telling = set(), set()
    for path, item in paths.items():
        for operation in item.values():
            if {"x-vmm-device", "x-vmm-backend"} <= {one["name"] for one in operation.get("parameters", ())}:
                asking.add(path)
            if "x-vmm-queue-ms" in operation["responses"].get("200", {}).get("headers", {}):
                telling.add(path)
    assert {*AT_THE_TOP, *IN_OPTIONS, *SILENT} <= asking
    assert {*AT_THE_TOP, *IN_OPTIONS} <= telling <= asking


NAMES = st.sampled_from(["CPU", "GPU", "GPU.1", "auto"])


@given(
    header=st.none() | NAMES,
    top=st.none() | NAMES,
    option=st.none() | NAMES,
    backend=st.sampled_from([None, *BACKENDS]),
)
def test_what_is_wanted_is_what_all_places_say(
    header: str | None, top: str | None, option: str | None, backend: str | None
) -> None:
    headers = Headers({} if header is None else {"X-Vmm-Device": header})
    options = RunnerOptions(device=option, backend=backend)
    body = ChatCompletionRequest(model="m", messages=[], device=top, options=options)
    named = {each for each in (header, top, option) if each not in (None, "auto")}
    if len(named) > 1:
        with pytest.raises(InvalidRequest, match="is asked for, and"):
            wanted_of(headers, body)
        return
    wanted = wanted_of(headers, body)
    assert wanted == Wanted(next(iter(named), None), backend)
    if backend is not None:
        assert wanted.params["backend"] == "options.backend"


@given(st.text(), st.text(), st.text())
def test_any_text_is_a_name_or_refused(device: str, backend: str, variant: str) -> None:
    body = PlacementFields(device=device, backend=backend, variant=variant)
    try:
        wanted = wanted_of(Headers({}), body)
    except InvalidRequest:
        return
    assert wanted.backend in (None, *BACKENDS)
    assert wanted.device != ""


def test_two_headers_of_one_name_are_two_wishes() -> None:
    raw = Headers.from_scope({"headers": [(b"x-vmm-device", b"CPU"), (b"x-vmm-device", b"GPU")]})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="'GPU' is asked for, and 'CPU' in x-vmm-device"):
        wanted_of(raw, Options())


def test_nothing_said_is_nothing_wanted() -> None:
    assert wanted_of(Headers({}), Options()) == ANYWHERE
    assert not wanted_of(Headers({}), Options()).params
