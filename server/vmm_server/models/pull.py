"""Pulls as streams of events: one job a model however many want it. What a stopped one fetched stays for a resume."""

import threading
from collections.abc import AsyncGenerator

from vmm_server.models.building import Importer
from vmm_server.models.importers import describe_folder, detect_format
from vmm_server.models.importers.efficientnet import import_efficientnet
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.safetensors_folder import check_safetensors, import_safetensors, quantizing
from vmm_server.models.importers.vision_folder import import_onnx_file
from vmm_server.models.importers.whisper import import_whisper
from vmm_server.models.installer import Installer
from vmm_server.models.jobs import Jobs, PullEvent, Report
from vmm_server.models.plan import make_plan
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy, make_client
from vmm_server.models.store import Store

__all__ = ["IMPORTER", "PullEvent", "Puller"]

IMPORTER_VERSION = "1"
"""To be raised when a converter writes other files for the same source."""
IMPORTER = Importer(
    detect_format,
    describe_folder,
    converters={
        "ctranslate2": import_whisper,
        "gguf": import_gguf,
        "onnx-file": import_onnx_file,
        "pickled": import_efficientnet,
        "safetensors": import_safetensors,
    },
    check_config=check_safetensors,
    version=IMPORTER_VERSION,
    quantizers={"safetensors": quantizing},
    promised=frozenset(("pickled",)),
)


class Puller:
    """Pulls models into a store. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        *,
        importer: Importer = IMPORTER,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._importer = importer
        self._retry = retry or RetryPolicy()
        self._jobs = Jobs()

    def pull(self, reference: str, *, name: str | None = None, variant: str | None = None) -> AsyncGenerator[PullEvent]:
        """Pull a card's name or a source's URI; events until `success`. Joins a pull already under way.

        With a `variant` that its card lists, that as well.

        Raises `InvalidRequest`, `InvalidModelName` and `ModelNotFound` at once; while reading, `SourceError`,
        `ImportFailed` and their kinds, `StoreError`.
        """
        plan = make_plan(reference, name, self._registry, self._retry, variant)

        def work(report: Report, cancelled: threading.Event) -> None:
            with make_client() as client:
                Installer(plan, self._store, self._importer, client, report, cancelled).run()

        return self._jobs.follow(plan.key, f"pull {plan.source.uri}", work)

    async def aclose(self) -> None:
        """Stop all pulls; what they fetched stays for a resume."""
        await self._jobs.aclose()
