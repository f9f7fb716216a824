"""A model folder on disk → something warm that takes requests: the blocking half of a load, run in a thread."""

import json
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import Tokenizer

from vmm_adapters import catalog
from vmm_adapters.base import CausalLMRunner, TextBackend
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import KVCacheType, RunnerOptions
from vmm_server.engine.drafting import StepCosts
from vmm_server.engine.engine import Engine, EngineOptions
from vmm_server.engine.speculation import measured_costs
from vmm_server.errors import ModelLoadFailed
from vmm_server.models.compiled import compiled_dir, shared_compiled_dir
from vmm_server.models.draft_models import Resolve, load_draft_runner
from vmm_server.models.encoders import load_encoder
from vmm_server.models.ready import Ready, warm
from vmm_server.models.router import Load, Placement
from vmm_server.models.speech import load_speaker
from vmm_server.models.store import InstalledModel
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.models.vad import load_vad
from vmm_server.models.vision import load_classifier, load_clip, load_detector
from vmm_server.models.whisper import load_transcriber
from vmm_server.prompt.chat import ChatTemplate, read_chat_template, read_token_texts
from vmm_server.prompt.formats.base import ChatFormat
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.spelling import Spelling
from vmm_server.prompt.templates import TemplateReader
from vmm_server.prompt.token_bytes import TokenBytes
from vmm_server.settings import Settings

_KV_CACHE_TYPES: Mapping[str, KVCacheType | None] = {"auto": None, "f16": "f16", "q8_0": "u8"}
"""The setting's words → the adapters'."""


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """Everything a request needs of a loaded text model."""

    engine: Engine
    tokenizer: Tokenizer
    token_bytes: TokenBytes
    template: ChatTemplate | None
    """`None`: the model has no chat template, so it cannot chat."""
    format: ChatFormat
    """How it writes its thinking and its tool calls."""
    spell: Spelling
    """How grammars write its special tokens."""
    placement: Placement
    context_length: int
    vocab_size: int
    memory_bytes: int
    templates: TemplateReader = field(default_factory=TemplateReader)
    """Compiles those that requests and created models bring along."""

    @property
    def load(self) -> Load:
        """See `Ready`."""
        return self.engine.load

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.engine.failure

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.engine.aclose()


_ONE_SHOT: Mapping[str, Callable[[InstalledModel, Placement, Settings], Ready]] = {
    "detection": load_detector,
    "classification": load_classifier,
    "image-embedding": load_clip,
    "transcription": load_transcriber,
    "speech": load_speaker,
    "vad": load_vad,
}
"""Capability → what loads a model that has it."""

LoadKey = tuple[Hashable, ...]


def load_key(model: InstalledModel) -> LoadKey:
    """All that a loaded model depends on: those of which it is the same share one in memory.

    What a request brings along with its model (system message, template, defaults, `num_ctx`) is not part of it.
    """
    recipes = (model.embedding, model.vision, model.tool_format, model.reasoning_format)
    return (model.weights, model.adapter, model.folder, model.generates, model.context_length, *recipes)


ModelLoader = Callable[[InstalledModel, Placement, int], Ready]
"""`(model, where, bytes for KV blocks) -> Ready`; blocks, may take seconds, raises `ModelLoadFailed`."""


def load_model(
    model: InstalledModel,
    placement: Placement,
    kv_cache_bytes: int,
    settings: Settings,
    resolve: Resolve | None = None,
) -> Ready:
    """Load a model of any kind on a placement, and warm it up; `resolve` finds the one that drafts for it.

    Raises `ModelLoadFailed`.
    """
    if placement.variant not in model.folders:
        raise ModelLoadFailed(f"{model.name!r} has no variant {placement.variant} any more")
    try:
        if model.generates:
            return _load_text(model, placement, kv_cache_bytes, settings, resolve)
        for capability, load in _ONE_SHOT.items():
            if capability in model.capabilities:
                return load(model, placement, settings)
        return load_encoder(model, placement, settings)
    except AdapterError as error:
        raise ModelLoadFailed(f"cannot load {model.name!r} on {placement}: {error.message}", hint=error.hint) from error
    except MemoryError as error:  # outside a runtime
        hint = "lower memory_budget, or unload another model"
        raise ModelLoadFailed(f"cannot load {model.name!r} on {placement}: out of memory", hint=hint) from error


def _load_text(
    model: InstalledModel, placement: Placement, kv_cache_bytes: int, settings: Settings, resolve: Resolve | None
) -> ReadyModel:
    tokenizer = read_tokenizer(model)
    template = read_chat_template(model.folder)
    spell = Spelling(tokenizer)
    eos_token_ids = _read_eos_token_ids(model.folder)
    options = RunnerOptions(
        device=placement.device,
        kv_cache_bytes=kv_cache_bytes,
        kv_cache_type=_KV_CACHE_TYPES[settings.kv_cache_type],
        num_threads=settings.num_threads,
        max_batched_tokens=settings.max_batched_tokens,
        max_sequences=settings.max_sequences,
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
        shared_cache_dir=shared_compiled_dir(settings.cache_dir),
        allow_fallback=False,  # the pool goes on to the next placement, and says which one it is
    )
    draft_runner = load_draft_runner(model, tokenizer, placement, options, settings, resolve)
    draft_bytes = 0 if draft_runner is None else draft_runner.memory_bytes
    options = replace(options, kv_cache_bytes=options.kv_cache_bytes - draft_bytes)
    try:
        runner, step_costs = _load_runner(placement, model.folders[placement.variant], options, settings)
    except BaseException:
        if draft_runner is not None:
            draft_runner.close()
        raise
    limit = min(runner.context_length, model.context_length, settings.context_length or runner.context_length)
    engine = Engine(
        runner,
        tokenizer,
        eos_token_ids=eos_token_ids,
        options=EngineOptions(
            max_batched_tokens=settings.max_batched_tokens,
            max_sequences=settings.max_sequences,
            max_queue=settings.max_queue,
            speculation=settings.speculation == "auto",
        ),
        context_length=limit,
        draft_runner=draft_runner,
        step_costs=step_costs,
    )
    return ReadyModel(
        engine=engine,
        tokenizer=tokenizer,
        token_bytes=TokenBytes(tokenizer),
        template=template,
        format=model_format(model, template, spell),
        spell=spell,
        placement=placement,
        context_length=limit,
        vocab_size=runner.vocab_size,
        memory_bytes=runner.memory_bytes + draft_bytes,
        templates=TemplateReader(**read_token_texts(model.folder)),
    )


def _load_runner(
    placement: Placement, folder: Path, options: RunnerOptions, settings: Settings
) -> tuple[CausalLMRunner | TextBackend, StepCosts | None]:
    """Loaded and warm; and what its steps take, if anybody wants to know."""
    if placement.adapter not in catalog.CAUSAL_LM:
        backend = catalog.load_text_backend(placement.adapter, folder, options)
        warm(backend)
        return backend, None
    runner = catalog.load_causal_lm(placement.adapter, folder, options)
    warm(runner)
    if settings.speculation == "off":
        return runner, None
    try:
        return runner, measured_costs(runner, time.perf_counter)
    except BaseException:
        runner.close()
        raise


def model_format(model: InstalledModel, template: ChatTemplate | None, spell: Spelling) -> ChatFormat:
    """How the model writes: its card's words, else what its template and its tokens show."""
    return find_format(
        None if template is None else template.source,
        spell.special_tokens,
        tool_format=model.tool_format,
        reasoning_format=model.reasoning_format,
    )


def _read_eos_token_ids(folder: Path) -> frozenset[int]:
    """From `genai_config.json` (onnxruntime-genai), else `generation_config.json` or `config.json` (transformers)."""
    for name in ("genai_config.json", "generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text())
            config = config.get("model", config) if name == "genai_config.json" else config
            found = config.get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelLoadFailed(f"{path}: {error}") from error
        if isinstance(found, int):
            return frozenset((found,))
        if isinstance(found, list) and all(isinstance(token, int) for token in found):
            return frozenset(found)
    return frozenset()
