"""The parts of a server, and how they are wired to each other."""

from dataclasses import dataclass
from functools import partial

from vmm_server.admission import Admission
from vmm_server.api.door import Door
from vmm_server.api.ops import Readiness, about_server
from vmm_server.audio.files import AudioLimits
from vmm_server.batch_owners import BatchOwners
from vmm_server.batch_store import JobStore, open_database
from vmm_server.batches import Batches
from vmm_server.cl100k import read_cl100k
from vmm_server.database import Database
from vmm_server.embedding import Embeddings
from vmm_server.file_store import FileStore
from vmm_server.inference import Inference
from vmm_server.keys import KeyRing
from vmm_server.media.fetching import Fetcher
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
from vmm_server.settings import LiveSettings, Settings
from vmm_server.speaking import Speech
from vmm_server.tracing import Tracer, make_tracer
from vmm_server.transcription import Transcriptions


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
    return Parts(
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
