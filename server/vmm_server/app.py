"""`create_app(settings)`: the only place that wires things."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import repeat
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send

from vmm_server.admission import Admission
from vmm_server.api.aliases import with_aliases
from vmm_server.api.anthropic.messages import MessagesController
from vmm_server.api.door import Door
from vmm_server.api.errors import message_of, respond
from vmm_server.api.gate import Gate, check_exposure
from vmm_server.api.head import head_as_get
from vmm_server.api.ollama.blobs import BlobsController
from vmm_server.api.ollama.chat import ChatController as OllamaChatController
from vmm_server.api.ollama.embed import EmbedController
from vmm_server.api.ollama.generate import GenerateController
from vmm_server.api.ollama.manage import ManageController
from vmm_server.api.ollama.models import ModelsController as OllamaModelsController
from vmm_server.api.openai.audio.speech import SpeechController
from vmm_server.api.openai.audio.transcriptions import TranscriptionsController
from vmm_server.api.openai.batches.routes import BatchesController
from vmm_server.api.openai.chat import ChatController
from vmm_server.api.openai.completions import CompletionController
from vmm_server.api.openai.embeddings import EmbeddingsController
from vmm_server.api.openai.files.routes import FilesController
from vmm_server.api.openai.models import ModelsController
from vmm_server.api.openai.responses.create import ResponsesController
from vmm_server.api.openai.responses.kept import KeptResponsesController
from vmm_server.api.openai.tokens.routes import TOKEN_ROUTES
from vmm_server.api.ops import HealthController, MetricsController, Readiness, about_server
from vmm_server.api.origins import Guard
from vmm_server.api.request_log import RequestLog, noting_route
from vmm_server.api.requester import Requester
from vmm_server.api.rerank import RerankController
from vmm_server.api.schema import SchemaController
from vmm_server.api.stream_socket import stream_socket
from vmm_server.api.vision.routes import VisionController
from vmm_server.api.vision.stream import vision_stream
from vmm_server.api.vmm.calibration import CalibrationController
from vmm_server.api.vmm.dashboard import DashboardController
from vmm_server.api.vmm.devices import DevicesController
from vmm_server.api.vmm.events import events_socket
from vmm_server.api.vmm.releases import ReleasesController
from vmm_server.api.vmm.reload import ReloadController
from vmm_server.api.vmm.status import StatusController
from vmm_server.audio.files import AudioLimits
from vmm_server.batch_owners import BatchOwners
from vmm_server.batch_store import JobStore, open_database
from vmm_server.batches import Batches
from vmm_server.cl100k import read_cl100k
from vmm_server.database import Database
from vmm_server.embedding import Embeddings
from vmm_server.errors import ShuttingDown, VMMError
from vmm_server.file_store import FileStore
from vmm_server.inference import Inference
from vmm_server.keys import KeyRing
from vmm_server.media.fetching import Fetcher
from vmm_server.media.images import LIMITS
from vmm_server.media.reading import ImageReader
from vmm_server.metrics.collector import Metrics
from vmm_server.metrics.events import ModelEvents
from vmm_server.metrics.live import LiveFigures
from vmm_server.metrics.models import CountedLoads, Departures
from vmm_server.models.calibration import Calibrator
from vmm_server.models.create import Creator
from vmm_server.models.facts import FactsReader
from vmm_server.models.in_use import FilesInUse
from vmm_server.models.leases import LoadedModel
from vmm_server.models.loading import ModelLoader, load_model
from vmm_server.models.machine import MachineReader, read_boot_id
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.pull import Puller
from vmm_server.models.push import Pusher
from vmm_server.models.ready import Ready
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.residents import Why
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.observed import to_all
from vmm_server.one_shot import OneShot
from vmm_server.reloading import Reloader
from vmm_server.request_note import charge_observed, note_observed
from vmm_server.response_store import ResponseStore
from vmm_server.seeing import Vision
from vmm_server.settings import Changes, LiveSettings, Settings
from vmm_server.speaking import Speech
from vmm_server.tracing import Tracer, make_tracer
from vmm_server.transcription import Transcriptions

logger = logging.getLogger(__name__)

OPENAI = [
    ChatController,
    CompletionController,
    EmbeddingsController,
    TranscriptionsController,
    SpeechController,
    ResponsesController,
    KeptResponsesController,
    FilesController,
    BatchesController,
    ModelsController,
]
OLLAMA = [
    OllamaChatController,
    GenerateController,
    EmbedController,
    OllamaModelsController,
    ManageController,
    BlobsController,
]
VMM = [
    DevicesController,
    CalibrationController,
    StatusController,
    ReloadController,
    ReleasesController,
    DashboardController,
]
WEBSOCKETS: Mapping[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": LIMITS.max_bytes,
    "ws_per_message_deflate": False,  # pictures are compressed already
}
"""How uvicorn has to be told to serve WebSockets."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that lives as long as the app. Handlers get these by name; the CLI finds them in `app.state.parts`."""

    live_settings: LiveSettings
    reloader: Reloader
    door: Door
    keys: KeyRing
    admission: Admission
    store: Store
    registry: Registry
    facts: FactsReader
    puller: Puller
    creator: Creator
    pusher: Pusher
    machine: MachineReader
    placer: Placer
    pool: ModelPool
    calibrator: Calibrator
    inference: Inference
    one_shot: OneShot
    embeddings: Embeddings
    transcriptions: Transcriptions
    fetcher: Fetcher
    image_reader: ImageReader
    vision: Vision
    speech: Speech
    response_store: ResponseStore
    batch_database: Database
    file_store: FileStore
    job_store: JobStore
    batches: Batches
    readiness: Readiness
    metrics: Metrics
    live_figures: LiveFigures
    tracer: Tracer

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return self.live_settings.now


class App(Litestar):
    """The ASGI app; every request, found or not, is logged and passes the guard, the door and the gate."""

    def __init__(self, log: RequestLog, guard: Guard, door: Door, gate: Gate, **config: Any) -> None:
        super().__init__(**config)
        self._log = log
        self._guard = guard
        self._door = door
        self._gate = gate

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        """One connection, as ASGI has it."""
        route = partial(noting_route, super().__call__)
        answer = partial(self._guard, partial(self._door, partial(self._gate, route)))
        await self._log(partial(head_as_get, partial(with_aliases, answer)), scope, receive, send)

    async def inside(self, scope: Any, receive: Any, send: Any) -> None:
        """A connection of this server with itself: logged, and past all that stands around the routes."""
        await self._log(partial(noting_route, super().__call__), scope, receive, send)


def create_app(
    settings: Settings,
    *,
    load: ModelLoader | None = None,
    machine: MachineReader | None = None,
    placer: Placer | None = None,
    read: Callable[[], Settings] | None = None,
    preloads: bool = True,
) -> App:
    """Build the app. `load` stands in for `load_model`, `machine` for the one it runs on, `placer` for what it offers.

    `read` reads the settings again, for a reload. Without `preloads` whoever calls this loads the default model, and
    tells `Readiness`. Raises `SettingsError` before anything listens.
    """
    live = LiveSettings(settings, read)
    parts = build_parts(live, load, machine, placer)
    check_exposure(settings, parts.keys)
    guard = Guard(settings, machine_name=socket.gethostname())
    parts.reloader.on_change(lambda _: guard.use(live.now))
    requester = Requester(lambda *connection: app.inside(*connection))
    app = App(
        RequestLog(parts.metrics.requests, parts.tracer),
        guard,
        parts.door,
        Gate(parts.keys, parts.admission),
        route_handlers=[
            Router("/", route_handlers=OPENAI, tags=["OpenAI"]),
            Router("/", route_handlers=OLLAMA, tags=["Ollama"]),
            Router("/", route_handlers=[MessagesController], tags=["Anthropic"]),
            Router("/", route_handlers=[VisionController, vision_stream], tags=["Vision"]),
            Router("/", route_handlers=[RerankController, *TOKEN_ROUTES], tags=["Text"]),
            Router("/", route_handlers=[*VMM, events_socket, stream_socket], tags=["VMM"]),
            Router("/", route_handlers=[HealthController, MetricsController], tags=["Health"]),
            SchemaController,
        ],
        dependencies={
            **{part.name: _provide(getattr(parts, part.name)) for part in fields(parts)},
            "settings": Provide(lambda: live.now, sync_to_thread=False),
            "requester": _provide(requester),
        },
        exception_handlers={Exception: respond},
        lifespan=[lambda _: _lifespan(parts, requester, preloads)],
        state=State({"parts": parts}),
        openapi_config=None,
        request_max_body_size=settings.max_body_size,
        logging_config=None,
    )
    return app


def build_parts(
    source: Settings | LiveSettings,
    load: ModelLoader | None = None,
    machine: MachineReader | None = None,
    placer: Placer | None = None,
) -> Parts:
    """The parts, wired to each other."""
    live = source if isinstance(source, LiveSettings) else LiveSettings(source)
    settings = live.now
    store = Store(settings.store_dir)
    registry = Registry(store, read_cards(settings.card_dirs))

    def load_as_set(model: InstalledModel, placement: Placement, kv_cache_bytes: int) -> Ready:
        return load_model(model, placement, kv_cache_bytes, settings=live.now, resolve=registry.resolve)

    files = FilesInUse(store, load or load_as_set)
    model_events = ModelEvents()
    loads, departures = CountedLoads(files.load, model_events.tell), Departures(model_events.tell)

    def left(loaded: LoadedModel, why: Why) -> None:
        departures.left(loaded, why)
        files.left(loaded)

    machine = machine or MachineReader(kept=settings.cache_dir / "machine.json", boot=read_boot_id())
    placer = placer or Placer(live, machine.read)
    pool = ModelPool(live, loads, placer, left=left, is_installed=files.is_installed)
    calibrator = Calibrator(pool, placer)
    admission = Admission(max_pending=settings.max_pending)
    metrics = Metrics(pool, loads, departures, calibrator, admission)
    readiness = Readiness(f"loading {settings.default_model}" if settings.default_model else None)
    fetcher = Fetcher(settings.image_urls)
    observe = to_all(metrics.observe, note_observed)
    inference = Inference(registry, pool, fetcher=fetcher, observe=observe, log_prompts=settings.log_prompts)
    one_shot = OneShot(registry, pool, observe=to_all(observe, charge_observed))
    embeddings = Embeddings(one_shot, read_table=partial(read_cl100k, settings.tiktoken_dir))
    image_reader = ImageReader(fetcher, max_waiting=settings.max_queue)
    kept = ResponseStore(settings.response_store_path, max_bytes=settings.response_store_size)
    puller = Puller(store, registry)
    keys = KeyRing(settings.keys_path)
    batch_database = open_database(settings.batch_store_path)
    file_store = FileStore(batch_database, settings.files_dir, max_bytes=settings.file_store_size)
    job_store = JobStore(batch_database, max_bytes=settings.file_store_size)
    parts = Parts(
        live_settings=live,
        reloader=Reloader(live, registry, keys),
        door=Door(),
        keys=keys,
        admission=admission,
        store=store,
        registry=registry,
        facts=FactsReader(store),
        puller=puller,
        creator=Creator(store, registry, puller),
        pusher=Pusher(store, registry),
        machine=machine,
        placer=placer,
        pool=pool,
        calibrator=calibrator,
        inference=inference,
        one_shot=one_shot,
        embeddings=embeddings,
        transcriptions=Transcriptions(one_shot, AudioLimits(settings.max_audio_bytes, settings.max_audio_seconds)),
        fetcher=fetcher,
        image_reader=image_reader,
        vision=Vision(one_shot, image_reader),
        speech=Speech(one_shot),
        response_store=kept,
        batch_database=batch_database,
        file_store=file_store,
        job_store=job_store,
        batches=Batches(
            job_store,
            file_store,
            caller_of=BatchOwners(keys, admission),
            num_slots=settings.max_sequences,
            lock_path=settings.batch_store_path.with_suffix(".running"),
        ),
        readiness=readiness,
        metrics=metrics,
        live_figures=LiveFigures(metrics.look, model_events, partial(about_server, readiness, inference)),
        tracer=make_tracer(settings.otlp_endpoint),
    )
    parts.reloader.on_change(partial(_apply, parts, set()))
    return parts


def _apply(parts: Parts, loading: set[asyncio.Task[Any]], changes: Changes) -> None:
    """Hand on what a reload has changed to those who do not read it from `live_settings`."""
    settings = parts.settings
    parts.admission.max_pending = settings.max_pending
    parts.fetcher.allowed = settings.image_urls
    parts.transcriptions.limits = AudioLimits(settings.max_audio_bytes, settings.max_audio_seconds)
    if "default_model" in changes.at_once and settings.default_model:
        task = asyncio.create_task(
            parts.inference.load(settings.default_model, None), name="loading the new default model"
        )
        loading.add(task)
        task.add_done_callback(_log_failure)
        task.add_done_callback(loading.discard)


def _provide(part: object) -> Provide:
    def get() -> object:
        return part

    return Provide(get, sync_to_thread=False)


@asynccontextmanager
async def _lifespan(parts: Parts, requester: Requester, preloads: bool) -> AsyncIterator[None]:
    """Load the default model, measure and unload idle ones, compute batches; at the end let what runs finish, then
    unload everything."""
    background: list[asyncio.Task[None]] = [
        asyncio.create_task(parts.pool.run(), name="unloading idle models"),
        asyncio.create_task(parts.batches.run(requester.post), name="computing batches"),
    ]
    if preloads:
        background.append(asyncio.create_task(preload(parts), name="loading the default model"))
    if parts.settings.calibrate == "auto":
        background.append(asyncio.create_task(parts.calibrator.run(), name="measuring models"))
    for task in background:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        stopping_at = asyncio.get_running_loop().time()
        await stop_serving(parts)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await parts.image_reader.aclose()
        parts.machine.close()
        await parts.response_store.aclose()
        await parts.batch_database.aclose()
        left_s = parts.settings.shutdown_timeout_s - (asyncio.get_running_loop().time() - stopping_at)
        await parts.tracer.aclose(max(1.0, left_s))


async def stop_serving(parts: Parts) -> None:
    """Take no new requests, and wait for those that run; after `shutdown_timeout_s` each gets an error that says so.
    A second call does nothing."""
    if parts.door.is_closed:
        return
    timeout_s = parts.settings.shutdown_timeout_s
    parts.calibrator.stop()
    parts.door.close()
    drained = await asyncio.gather(
        *(part.drain(timeout_s) for part in (parts.inference, parts.one_shot, parts.batches)),
        parts.door.emptied(timeout_s),
    )
    if not all(drained):
        logger.warning("ending requests that still ran after %g s", timeout_s)
    await parts.creator.aclose()
    await parts.puller.aclose()
    await parts.pool.aclose()
    await parts.door.dismiss()


async def preload(parts: Parts, pauses: Iterable[float] | None = None) -> None:
    """Have the default model in memory; `/health/ready` waits for it. At once done when it is there already.

    A load that fails is tried again after each of the `pauses`, in seconds: no request will do it where nothing is
    sent to a server that is not ready.
    """
    name, readiness = parts.settings.default_model, parts.readiness
    if not name:
        return
    for pause_s in _pauses() if pauses is None else pauses:
        try:
            await parts.inference.load(name, None)
        except ShuttingDown:
            return
        except VMMError as error:
            if readiness.waiting_for != message_of(error):  # once is enough
                _log_error("loading the default model", error)
            readiness.waiting_for = message_of(error)
        except Exception as error:
            readiness.waiting_for = message_of(error)
            raise
        else:
            readiness.started()
            return
        await asyncio.sleep(pause_s)


def _pauses() -> Iterator[float]:
    yield from (1.0, 5.0, 15.0)
    yield from repeat(60.0)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log_error(task.get_name(), error)


def _log_error(work: str, error: BaseException) -> None:
    cause = error.__cause__ if isinstance(error, VMMError) else error
    logger.error("%s failed: %s", work, message_of(error), exc_info=cause)
