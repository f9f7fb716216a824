"""`create_app(settings)`: the routes, and what stands around them. `parts` wires all else, `lifecycle` runs it."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.plugins import PluginProtocol
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send

from vmm_server.api.aliases import with_aliases
from vmm_server.api.anthropic.messages import MessagesController
from vmm_server.api.door import Door
from vmm_server.api.errors import respond
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
from vmm_server.api.ops import HealthController, MetricsController
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
from vmm_server.lifecycle import apply, lifespan
from vmm_server.media.images import LIMITS
from vmm_server.models.loading import ModelLoader
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.parts import build_parts
from vmm_server.settings import LiveSettings, Settings

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


class Group(Router):
    """Routes that are described together, of one app: Litestar would copy each of them, in case that others follow."""

    def __deepcopy__(self, memo: object) -> "Group":
        return self


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

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        """None: routes take requests and return plain data. Litestar's own for pydantic, both versions, and attrs are
        4 MB."""
        return plugins


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
    parts.reloader.on_change(partial(apply, parts, set()))
    requester = Requester(lambda *connection: app.inside(*connection))
    app = App(
        RequestLog(parts.metrics.requests, parts.tracer),
        guard,
        parts.door,
        Gate(parts.keys, parts.admission),
        route_handlers=[
            Group("/", route_handlers=OPENAI, tags=["OpenAI"]),
            Group("/", route_handlers=OLLAMA, tags=["Ollama"]),
            Group("/", route_handlers=[MessagesController], tags=["Anthropic"]),
            Group("/", route_handlers=[VisionController, vision_stream], tags=["Vision"]),
            Group("/", route_handlers=[RerankController, *TOKEN_ROUTES], tags=["Text"]),
            Group("/", route_handlers=[*VMM, events_socket, stream_socket], tags=["VMM"]),
            Group("/", route_handlers=[HealthController, MetricsController], tags=["Health"]),
            SchemaController,
        ],
        dependencies={
            **{part.name: _provide(getattr(parts, part.name)) for part in fields(parts)},
            "settings": _Provided(lambda: live.now, sync_to_thread=False),
            "requester": _provide(requester),
        },
        exception_handlers={Exception: respond},
        lifespan=[lambda _: lifespan(parts, requester, preloads)],
        state=State({"parts": parts}),
        openapi_config=None,
        request_max_body_size=settings.max_body_size,
        logging_config=None,
    )
    return app


class _Provided(Provide):
    """What routes ask for. Litestar compares each with all others, for every route: it is equal to itself alone."""

    __eq__ = object.__eq__


def _provide(part: object) -> Provide:
    def get() -> object:
        return part

    return _Provided(get, sync_to_thread=False)
