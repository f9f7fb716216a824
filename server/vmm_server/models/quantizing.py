"""An installed text model → a variant of it in 8 or 4 bits: written aside, compared with the model, then kept or not.

What is compared is perplexity over a text. A variant is refused where it is more than `MAX_RATIO` times the model's:
8 bits cost the default model nothing to speak of (0.06 % over the text that is shipped), 4 bits 7.0 %, and
of all models the smallest lose most. What loses more than a tenth has been damaged.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import Literal

from vmm_adapters import catalog
from vmm_adapters.base import CausalLMRunner
from vmm_adapters.errors import AdapterError, UnsupportedModel
from vmm_adapters.types import RunnerOptions
from vmm_server.errors import InvalidRequest, ModelLoadFailed, ModelNotFound, RequestCancelled, UnsupportedCapability
from vmm_server.models.building import DESCRIPTION_FILE
from vmm_server.models.disk import publish_folder, store_errors
from vmm_server.models.importers.onnx_quantize import Quantized, plan_quantized, write_quantized
from vmm_server.models.importers.onnx_writer import EXTERNAL_FILE, MODEL_FILE
from vmm_server.models.jobs import Report
from vmm_server.models.names import ModelName
from vmm_server.models.perplexity import perplexity, text_windows
from vmm_server.models.placing import ANY_ADAPTER
from vmm_server.models.store import InstalledModel, Store, Variant
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.models.variants import with_variant

Precision = Literal["int8", "int4"]
BITS: dict[Precision, int] = {"int8": 8, "int4": 4}
MAX_RATIO = 1.10
_VERSION = 1
"""To be raised when the same model would be quantised to other weights."""
_KV_BYTES = 256 << 20
"""Enough for a window of the largest models."""
_GENAI = "genai_config.json"

Progress = Callable[[int, int], None]
Score = Callable[[Path, Sequence[Sequence[int]], Progress], tuple[float, int]]
"""`(model folder, windows of tokens, progress) -> (perplexity, tokens scored)`; raises `ModelLoadFailed`."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be made."""

    to: Precision
    text: str | None = None
    """To compare on; `None`: the one that is shipped."""
    force: bool = False
    """Also what is larger than the model, damaged, or cannot be compared."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was made."""

    model: InstalledModel
    variant: Variant
    before: float | None = None
    """The model's perplexity; `None` where it was not compared."""
    after: float | None = None
    num_tokens: int = 0


class Quantizer:
    """Makes variants of the models in a store. Blocking."""

    def __init__(self, store: Store, memory_bytes: int, score: Score) -> None:
        """`memory_bytes` is what a model may take while it is compared."""
        self._store = store
        self._memory_bytes = memory_bytes
        self._score = score

    def quantize(self, name: ModelName, wish: Wish, report: Report, cancelled: Event) -> Made:
        """Make a variant of the model of exactly this name, in place of one that it has of that precision.

        Raises `ModelNotFound`, `InvalidRequest` and its kinds for what is refused, `CorruptFile`, `ModelLoadFailed`,
        `StoreError`, `RequestCancelled`. Nothing is left then.
        """
        manifest = self._store.manifest(name)
        if manifest is None:
            raise ModelNotFound(str(name))
        model = manifest.model
        _check_kind(model)
        self._store.check_files(model)
        if not wish.force and (reason := self._incomparable(model)):
            raise InvalidRequest(f"{model.name} cannot be compared with its variant: {reason}", hint=_FORCE)
        decoder = read_decoder(model)
        plan = plan_quantized(decoder, BITS[wish.to], widen=wish.force)
        _check_plan(model, plan, decoder, wish)
        digest = hashlib.sha256(f"{model.weights} {wish.to} {_VERSION}".encode()).hexdigest()
        with self._store.lease(f"quantize-{digest[:32]}", cancelled=cancelled):
            made = _Making(self._store, model, wish, digest, report, cancelled).run(
                plan, decoder, None if self._incomparable(model) else self._score
            )
            installed = self._store.set_variants(name, lambda now: with_variant(now, model, made.variant))
        return Made(installed, made.variant, made.before, made.after, made.num_tokens)

    def _incomparable(self, model: InstalledModel) -> str | None:
        """Why no perplexity can be had of it here."""
        if model.adapter != ANY_ADAPTER:
            return f"only {model.adapter} runs it, which gives no logits"
        if model.size_bytes > self._memory_bytes:
            return f"it takes {model.size_bytes >> 20} MB, {self._memory_bytes >> 20} MB of memory may be used"
        return None


class _Making:
    """One variant being made. Use once."""

    def __init__(
        self, store: Store, model: InstalledModel, wish: Wish, digest: str, report: Report, cancelled: Event
    ) -> None:
        self._store = store
        self._model = model
        self._wish = wish
        self._digest = digest
        self._report = report
        self._cancelled = cancelled

    def run(self, plan: Quantized, decoder: Path, score: Score | None) -> Made:
        model, to = self._model, self._wish.to
        windows = text_windows(read_tokenizer(model), self._wish.text or default_text(), model.context_length)
        folder = self._store.models_dir / f"{self._digest[:40]}-{to}"
        aside = folder.with_name(f"{folder.name}.partial")
        before = after = ratio = None
        num_tokens = 0
        if score is not None:
            before, num_tokens = score(model.folder, windows, self._progress("measuring the model"))
        with store_errors("write the variant", folder):
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir()
            try:
                self._store.ensure_free(plan.writer.size_bytes, f"{model.name} in {to}")
                write_quantized(plan, aside, self._progress(f"quantizing to {to}"))
                _copy_rest(model.folder, aside, {decoder.name, *plan.data_files})
                if score is not None and before is not None:
                    after, _ = score(aside, windows, self._progress(f"measuring {to}"))
                    ratio = after / before
                    self._check_ratio(before, after)
                if not folder.exists():
                    publish_folder(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        variant = Variant(to, folder, size_bytes, self._digest, "onnx", to, "", ratio)
        return Made(model, variant, before, after, num_tokens)

    def _check_ratio(self, before: float, after: float) -> None:
        if self._wish.force or after <= MAX_RATIO * before:
            return
        raise InvalidRequest(
            f"{self._model.name} in {self._wish.to} has a perplexity of {after:.2f}, {before:.2f} as installed: "
            f"{change_of(before, after)}, and +{MAX_RATIO - 1:.0%} is the limit",
            param="to",
            hint=_FORCE if self._wish.to == "int8" else f"--to int8 loses less; {_FORCE}",
        )

    def _progress(self, status: str) -> Progress:
        def progress(completed: int, total: int) -> None:
            if self._cancelled.is_set():
                raise RequestCancelled
            self._report(status, total=total, completed=completed)

        self._report(status)
        return progress


_FORCE = "--force makes it all the same"


def _check_kind(model: InstalledModel) -> None:
    if not model.generates:
        raise UnsupportedCapability(model.name, "vmm quantize: only of text models can be told what they lose")
    if model.format == "openvino":
        raise InvalidRequest(
            f"{model.name} is OpenVINO IR; only ONNX decoders are quantised",
            param="model",
            hint="pull it in ONNX or GGUF",
        )


def read_decoder(model: InstalledModel) -> Path:
    """The ONNX file of a model's decoder. Raises `InvalidRequest` for a folder without."""
    name = MODEL_FILE
    with suppress(FileNotFoundError):
        config = json.loads((model.folder / _GENAI).read_text("utf-8"))
        name = config.get("model", {}).get("decoder", {}).get("filename", MODEL_FILE)
    if not (decoder := model.folder / name).is_file():
        raise InvalidRequest(f"{model.name} has no {name} that could be quantised", param="model")
    return decoder


def _check_plan(model: InstalledModel, plan: Quantized, decoder: Path, wish: Wish) -> None:
    """Raise `InvalidRequest` where nothing changes, or what comes out is no smaller."""
    stored = f"{model.name} has {plan.bits_before} bits a weight already ({model.quantization})"
    if not plan.num_matrices:
        may_widen = not wish.force and plan.bits_before < BITS[wish.to]
        hint = f"{_FORCE}, larger and no better" if may_widen else "pull it in F16, and quantise that"
        raise InvalidRequest(f"{stored}: {wish.to} makes nothing smaller", param="to", hint=hint)
    size_bytes = sum((decoder.parent / name).stat().st_size for name in plan.data_files) + decoder.stat().st_size
    if plan.writer.size_bytes >= size_bytes and not wish.force:
        raise InvalidRequest(f"{stored}: in {wish.to} it would be no smaller", param="to", hint=_FORCE)


def _copy_rest(source: Path, target: Path, left_out: set[str]) -> None:
    """Tokeniser, templates and configs; the decoder has another name there."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in {*left_out, DESCRIPTION_FILE, MODEL_FILE, EXTERNAL_FILE}:
            shutil.copyfile(path, target / path.name)
    config_path = target / _GENAI
    if config_path.is_file():
        config = json.loads(config_path.read_text("utf-8"))
        config["model"]["decoder"]["filename"] = MODEL_FILE
        config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")


def default_text() -> str:
    """About 2,500 words to compare on: chapters 1 and 2 of William Morris' News from Nowhere (1890).

    It is in the public domain; Project Gutenberg's text 3261, its lines joined to paragraphs.
    """
    return files("vmm_server.models").joinpath("texts/news_from_nowhere.txt").read_text("utf-8")


def change_of(before: float, after: float) -> str:
    """`+8.7 %`."""
    return f"{100 * (after / before - 1):+.1f} %"


def score_on_cpu(
    folder: Path, windows: Sequence[Sequence[int]], progress: Progress, *, shared_cache_dir: Path | None = None
) -> tuple[float, int]:
    """See `Score`: with OpenVINO or, where it cannot run the model, our own kernels, which `shared_cache_dir` keeps."""
    options = RunnerOptions(kv_cache_bytes=_KV_BYTES, shared_cache_dir=shared_cache_dir)
    try:
        with closing(_load_scored(folder, options)) as runner:
            return perplexity(runner, windows, progress)
    except AdapterError as error:
        raise ModelLoadFailed(f"cannot run {folder}: {error.message}", hint=error.hint) from error


def _load_scored(folder: Path, options: RunnerOptions) -> CausalLMRunner:
    try:
        return catalog.load_causal_lm("openvino", folder, options)
    except UnsupportedModel:
        return catalog.load_causal_lm("cpu", folder, options)
