"""The echo model behind a real server on a free port."""

import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from tests.api.fake_audio import OnSegment, fake_ear, install_ears
from tests.api.fake_vision import OnPictures, box, fake_seer, install_fakes, picture_served, png_of
from tokenizers import Tokenizer

from vmm_adapters import catalog
from vmm_adapters.card import EmbeddingRecipe, SamplingDefaults
from vmm_adapters.device import DeviceKind
from vmm_adapters.echo import CHAT_TEMPLATE, END, VOCAB_SIZE, EchoRunner, Gate, write_echo_model
from vmm_adapters.echo_encoder import write_echo_encoder
from vmm_adapters.types import Batch, RunnerOptions
from vmm_server.api.openai.batches.examples import DONE
from vmm_server.api.openai.files.examples import CONTENT
from vmm_server.api.openai.files.examples import ID as FILE_ID
from vmm_server.api.openai.responses.examples import ITEM, LIST_INPUT_ITEMS, WHOLE
from vmm_server.api.vmm.examples import MACHINE
from vmm_server.app import App, create_app
from vmm_server.batch_store import Batch as StoredBatch
from vmm_server.engine.engine import Engine, EngineOptions, EngineStats
from vmm_server.file_store import NewFile
from vmm_server.models.encoders import ReadyEncoder, load_encoder
from vmm_server.models.loading import ReadyModel, model_format
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.models.router import Candidate, Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.parts import Parts
from vmm_server.prompt.chat import read_chat_template
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.settings import Settings

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Servers without TLS need none: to read all that the system has takes longer than most tests."""

Result = TypeVar("Result")


def install_echo(store: Store, folder: Path) -> InstalledModel:
    """Write the echo model and install it under `echo:latest`."""
    write_echo_model(folder)
    return store.install(
        InstalledModel(
            name="echo:latest",
            aliases=("parrot:latest",),
            digest="e" * 64,
            size_bytes=1000,
            modified_at=datetime(2026, 11, 21, tzinfo=UTC),
            adapter="echo",
            folder=folder,
            format="onnx",
            family="echo",
            parameter_size="1M",
            quantization="F32",
            context_length=512,
            embedding_length=None,
            capabilities=("completion",),
            license="Apache-2.0",
            title="Echo",
            system=None,
            sampling=SamplingDefaults(temperature=0.0, repetition_penalty=1.1),
            source="file:echo",
        )
    )


@dataclass
class EchoLoader:
    """Loads the echo model, behind a gate if there is one, and echo's encoder."""

    gate: Callable[[Batch], None] | None = None
    load_gate: Gate | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    context_length: int = 512
    num_blocks: int = 64
    on_pictures: OnPictures | None = None
    """Told of all that models see."""
    on_segment: OnSegment | None = None
    """Told of all that models hear."""
    placements: Sequence[Placement] = ()
    """Where models may run, in place of the CPU alone. `onnxruntime-genai` is echo's model that draws by itself."""

    def __call__(self, model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Any:
        if self.load_gate is not None:
            self.load_gate(Batch(()))
        if not model.generates:

            def load_text() -> ReadyEncoder:
                encoder = load_encoder(model, Placement("echo", placement.device), Settings(home=model.folder))
                return replace(encoder, placement=placement)

            ear = fake_ear(model, placement, self.on_segment)
            return ear or fake_seer(model, placement, load_text, self.on_pictures) or load_text()
        runner: Any
        if placement.adapter == "onnxruntime-genai":
            runner = catalog.load_text_backend("echo-backend", model.folder, RunnerOptions())
        else:
            runner = EchoRunner(num_blocks=self.num_blocks, context_length=self.context_length, gate=self.gate)
        tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        engine = Engine(
            runner,
            tokenizer,
            eos_token_ids=frozenset((END,)),
            options=self.options,
            context_length=self.context_length,
        )
        template, spell = read_chat_template(model.folder), Spelling(tokenizer)
        return ReadyModel(
            engine=engine,
            tokenizer=tokenizer,
            token_bytes=TokenBytes(tokenizer),
            template=template,
            format=model_format(model, template, spell),
            spell=spell,
            placement=placement,
            context_length=engine.context_length,
            vocab_size=VOCAB_SIZE,
            memory_bytes=runner.memory_bytes,
        )


class ManyPlaces(Placer):
    """Offers every model the placements of a loader."""

    def __init__(self, settings: Settings, machine: MachineReader, placements: Sequence[Placement]) -> None:
        super().__init__(settings, machine.read)
        self._offered = placements

    async def candidates(self, model: InstalledModel) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(each, DeviceKind.CPU if each.device == "CPU" else DeviceKind.GPU, model.size_bytes)
            for each in self._offered
        )

    def size_bytes(self, model: InstalledModel, placement: Placement) -> int:
        return model.size_bytes


class LiveServer:
    """A real uvicorn in a thread, serving the echo model on a free port."""

    def __init__(self, app: App, loader: EchoLoader) -> None:
        self.app = app
        self.loader = loader
        self.parts: Parts = app.state.parts
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            app, http="httptools", ws="websockets-sansio", lifespan="on", log_config=None, access_log=False
        )
        self.uvicorn = uvicorn.Server(config)
        self._runner = asyncio.Runner(loop_factory=config.get_loop_factory())
        self._thread = threading.Thread(target=self._serve, name="live-server")
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=NO_CERTIFICATES)

    def start(self) -> None:
        """Returns when it takes requests: connections wait in the socket's backlog until then."""
        self._thread.start()
        self.client.get("/health/live").raise_for_status()

    def stop(self) -> None:
        self.client.close()
        for gate in (self.loader.gate, self.loader.load_gate):
            if isinstance(gate, Gate):
                gate.open()
        self.uvicorn.should_exit = True
        self.join()
        self.listener.close()

    def join(self) -> None:
        """Wait until it has stopped."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._runner.get_loop()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stats(self) -> EngineStats:
        """Of the one model that is loaded."""
        (loaded,) = self.parts.pool.loaded()
        return loaded.ready.engine.stats

    def _serve(self) -> None:
        with self._runner as runner:
            runner.run(self.uvicorn.serve(sockets=[self.listener]))


StartServer = Callable[..., LiveServer]


def echo_app(folder: Path, loader: EchoLoader, **changes: object) -> App:
    settings = Settings.model_validate({"home": folder / "home", "default_model": "", "calibrate": "off", **changes})
    install_echo(Store(settings.store_dir), folder / "echo")
    machine = MachineReader(lambda: MACHINE)
    placer = ManyPlaces(settings, machine, loader.placements) if loader.placements else None
    return create_app(settings, load=loader, machine=machine, placer=placer)


@contextmanager
def servers_in(folder: Path) -> Iterator[StartServer]:
    servers: list[LiveServer] = []

    def start(changes: dict[str, object] | None = None, **options: Any) -> LiveServer:
        loader = EchoLoader(**options)
        server = LiveServer(echo_app(folder, loader, **(changes or {})), loader)
        servers.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def start_server(tmp_path: Path, no_environment: None) -> Iterator[StartServer]:
    """Starts servers that stop when the test ends: `start_server({"max_queue": 0}, gate=gate, num_blocks=8)`."""
    with servers_in(tmp_path) as start:
        yield start


@pytest.fixture
def make_app(tmp_path: Path, no_environment: None) -> Callable[..., App]:
    """The app alone: `make_app({"max_queue": 0}, gate=gate)`."""

    def make(changes: dict[str, object] | None = None, **options: Any) -> App:
        return echo_app(tmp_path, EchoLoader(**options), **(changes or {}))

    return make


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The one server of all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch, servers_in(tmp_path_factory.mktemp("live")) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
            patch.delenv(name)
        yield start()


def install_with_template(server: LiveServer, folder: Path, name: str, template: str, *abilities: str) -> None:
    """An echo model with a template of its own, which knows of tools."""
    write_echo_model(folder / name)
    (folder / name / "chat_template.jinja").write_text(template)
    changes: dict[str, Any] = {"name": f"{name}:latest", "aliases": (), "folder": folder / name}
    changes |= {
        "weights": "",
        "digest": name.encode().hex().ljust(64, "0"),
        "capabilities": ("completion", "tools", *abilities),
    }
    changes |= {"sampling": SamplingDefaults()}
    Store(server.parts.settings.store_dir).install(replace(server.parts.registry.resolve("echo"), **changes))


@pytest.fixture(scope="session")
def clever_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Beside `echo` two models that say the last user message as well, but may call tools in it: `handy`, and `clever`,
    which may also think. Of all tests that leave it as it was.
    """
    folder = tmp_path_factory.mktemp("clever")
    with pytest.MonkeyPatch.context() as patch, servers_in(folder) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_"))]:
            patch.delenv(name)
        server = start()
        told = "{{ tool.function.name }}: {{ tool.function.description }}"
        tools = "{% for tool in tools or [] %}<|system|>" + told + "<|end|>{% endfor %}"
        install_with_template(server, folder, "handy", tools + CHAT_TEMPLATE)
        install_with_template(
            server, folder, "clever", "{% if false %}<think></think>{% endif %}" + tools + CHAT_TEMPLATE, "thinking"
        )
        yield server


@pytest.fixture(scope="session")
def encoder_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Has echo's encoders besides: `words` embeds, `asks` has prompts, `pairs` is a cross-encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    with pytest.MonkeyPatch.context() as patch, servers_in(folder) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_", "TIKTOKEN_"))]:
            patch.delenv(name)
        server = start()
        echo, store = server.parts.registry.resolve("echo"), Store(server.parts.settings.store_dir)
        prompts = EmbeddingRecipe(prompts={"query": "Q: ", "document": "D: "}, default_prompt="document")
        for index, (name, dim, recipe) in enumerate(
            [("words", 32, EmbeddingRecipe()), ("asks", 32, prompts), ("pairs", 1, None)]
        ):
            write_echo_encoder(folder / name, dim=dim)
            changes: dict[str, Any] = {
                "name": f"{name}:latest",
                "aliases": (),
                "digest": f"{index:064}",
                "weights": "",
                "folder": folder / name,
                "capabilities": ("embedding",) if recipe else ("rerank",),
                "context_length": 64,
                "embedding_length": dim if recipe else None,
                "embedding": recipe,
            }
            store.install(replace(echo, **changes))
        yield server


@pytest.fixture(scope="session")
def audio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Has the models of `fake_audio` besides. Of all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch, servers_in(tmp_path_factory.mktemp("audio")) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_", "TIKTOKEN_"))]:
            patch.delenv(name)
        server = start({"max_audio_seconds": 60, "max_audio_bytes": 3_000_000})
        install_ears(server.parts.store, server.parts.registry.resolve("echo"))
        yield server


@pytest.fixture(scope="session")
def vision_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Has the models of `fake_vision` besides. Of all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch, servers_in(tmp_path_factory.mktemp("vision")) as start:
        for name in [name for name in os.environ if name.startswith(("VMM_", "OLLAMA_", "TIKTOKEN_"))]:
            patch.delenv(name)
        server = start()
        install_fakes(server.parts.store, server.parts.registry.resolve("echo"))
        yield server


@pytest.fixture
def red_box_url() -> Iterator[str]:
    """Where a picture is, on this machine."""
    with picture_served(png_of(box())) as url:
        yield url


@pytest.fixture
def coder(start_server: StartServer, tmp_path: Path) -> LiveServer:
    """A server whose `coder` knows StarCoder's tokens, and fills every gap with the alphabet."""
    server = start_server()
    folder = tmp_path / "coder"
    write_echo_model(folder)
    text = (folder / "tokenizer.json").read_text()
    renamed = {"<|system|>": "<fim_prefix>", "<|tool|>": "<fim_suffix>", "<|user|>": "<fim_middle>"}
    for echos, starcoders in renamed.items():
        text = text.replace(json.dumps(echos), json.dumps(starcoders))
    (folder / "tokenizer.json").write_text(text)
    echo = server.parts.registry.resolve("echo")
    model = replace(echo, name="coder:latest", aliases=(), digest="c" * 64, weights="", folder=folder)
    Store(server.parts.settings.store_dir).install(model)
    return server


@pytest.fixture
def gate() -> Gate:
    """Holds the echo model before each of its steps."""
    return Gate()


EXAMPLE_CARD = """id = "smollm2:135m"
title = "SmolLM2"
license = "MIT"
origin = "a test"
family = "llama"
parameter_size = "135M"
quantization = "Q4_1"
context_length = 512
[source]
uri = "file:{folder}"
"""


@pytest.fixture
def install_examples() -> Callable[[LiveServer], None]:
    """Installs the echo models under the names that the OpenAPI document's examples use, and the response they show."""

    def install(server: LiveServer) -> None:
        store = Store(server.parts.settings.store_dir)
        echo = server.parts.registry.resolve("echo")
        store.install(replace(echo, name="smollm2:135m", aliases=(), family="llama"))
        folder = echo.folder.with_name("encoder")
        write_echo_encoder(folder)
        names: dict[str, Any] = {
            "name": "all-minilm:latest",
            "aliases": (),
            "digest": "a" * 64,
            "weights": "",
            "folder": folder,
        }
        store.install(replace(echo, **names, capabilities=("embedding",), context_length=64))
        install_ears(store, echo)
        install_fakes(store, echo, detector="yolox:nano", classifier="efficientnet:lite0", clip="clip:vit-b32")
        responses, given = server.parts.response_store, LIST_INPUT_ITEMS[0].answer["data"]
        server.run(responses.delete(WHOLE["id"], ""))
        server.run(responses.put(WHOLE, "", given=given, output=[ITEM]))
        server.run(install_batch_examples(server.parts))

    return install


async def install_batch_examples(parts: Parts) -> None:
    """The file and the batch that the OpenAPI document shows."""

    async def content() -> AsyncIterator[bytes]:
        yield CONTENT.encode()

    await parts.file_store.put(NewFile("", "questions.jsonl", "batch", 3600, id=FILE_ID), content())
    if (await parts.job_store.page("", after=None, limit=1))[0]:
        return
    same: dict[str, Any] = {
        name: DONE[name]
        for name in (
            *("created_at", "expires_at", "in_progress_at", "finalizing_at", "completed_at"),
            *("id", "status", "endpoint", "model", "completion_window", "output_file_id"),
        )
    }
    batch = StoredBatch(
        tenant="",
        input_file_id=FILE_ID,
        metadata=json.dumps(DONE["metadata"]).encode(),
        output_expires_after_s=None,
        num_lines=1,
        num_completed=1,
        **same,
    )
    await parts.job_store.add(batch, max_live=1)


@pytest.fixture
def example_server(
    start_server: StartServer, install_examples: Callable[[LiveServer], None], tmp_path: Path
) -> LiveServer:
    """Has the models that the OpenAPI document's examples name; to pull one downloads nothing."""
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "smollm2.toml").write_text(EXAMPLE_CARD.format(folder=tmp_path / "echo"))
    server = start_server({"card_dirs": (cards,)}, context_length=2048, num_blocks=256)
    install_examples(server)
    return server
