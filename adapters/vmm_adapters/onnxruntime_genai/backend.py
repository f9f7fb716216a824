"""`TextBackend` on onnxruntime-genai: a thread of its own, to which the runtime is bound, and what loads a model."""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnxruntime_genai as og

from vmm_adapters.errors import AdapterError, RuntimeFailed, RuntimeMissing, UnsupportedModel, runtime_errors
from vmm_adapters.onnxruntime.plugins import register_plugins
from vmm_adapters.onnxruntime_genai.fast_form import data_files, read_graph
from vmm_adapters.onnxruntime_genai.form_cache import fast_folder
from vmm_adapters.onnxruntime_genai.lane import Lane
from vmm_adapters.onnxruntime_genai.model_folder import ModelFolder, read_model_folder
from vmm_adapters.onnxruntime_genai.providers import CPU, Candidate, candidates
from vmm_adapters.onnxruntime_genai.sampling import LACKS, NO_GUIDANCE, NO_SEEDS
from vmm_adapters.onnxruntime_genai.scheduler import Limits, Scheduler
from vmm_adapters.types import RunnerOptions, TextOutput, TextRequest

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_KV_BYTES = {
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.INT8: 1,
    onnx.TensorProto.UINT8: 1,
}


class GenAIBackend:
    """Implements `vmm_adapters.base.TextBackend`. Built by `load_backend`."""

    def __init__(self, folder: Path, options: RunnerOptions) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-genai")
        self._scheduler: Scheduler | None = None
        self._files = ExitStack()
        try:
            self._on_thread(lambda: self._load(folder, options))
        except BaseException:
            self._files.close()
            self._thread.shutdown()
            raise

    def add(self, request: TextRequest) -> None:
        """See `TextBackend.add`."""
        scheduler = self._loaded()
        if request.images or not request.token_ids:
            raise UnsupportedModel("this model is asked with the tokens of a prompt, not with text and images")
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self.vocab_size:
            raise UnsupportedModel(f"a token of the prompt is not one of the model's {self.vocab_size}")
        length = min(request.max_length, self.context_length)
        if len(request.token_ids) >= length and request.sampling.max_tokens != 0:
            raise UnsupportedModel(
                f"a prompt of {len(request.token_ids)} tokens leaves no room for an answer in {length}",
                hint="shorten the prompt, or raise context_length or memory_budget",
            )
        self._on_thread(lambda: scheduler.add(request))

    def step(self) -> list[TextOutput]:
        """See `TextBackend.step`."""
        return self._on_thread(self._loaded().step)

    def abort(self, request_id: int) -> None:
        """See `TextBackend.abort`."""
        scheduler = self._loaded()
        self._on_thread(lambda: scheduler.abort(request_id))

    def warm_up(self) -> None:
        """See `TextBackend.warm_up`."""
        self._on_thread(self._loaded().warm_up)

    def close(self) -> None:
        """See `TextBackend.close`."""
        if self._scheduler is not None:
            self._on_thread(self._close)
            self._thread.shutdown()
            self._files.close()

    def _close(self) -> None:
        """On the thread that made the engines, where they have to end."""
        if self._scheduler is not None:
            self._scheduler.close()
        self._scheduler = None

    def _loaded(self) -> Scheduler:
        if self._scheduler is None:
            raise RuntimeFailed("the backend is closed")
        return self._scheduler

    def _on_thread(self, call: Callable[[], _T]) -> _T:
        return self._thread.submit(call).result()

    def _load(self, folder: Path, options: RunnerOptions) -> None:
        if not hasattr(og, "TurnOptions"):
            raise RuntimeMissing(
                f"onnxruntime-genai {og.__version__} has no engine that this adapter can use",
                hint="pip install 'onnxruntime-genai>=0.18'",
            )
        described = read_model_folder(folder)
        graph = read_graph(described.decoder)
        weight_bytes = _weight_bytes(described.decoder, graph)
        token_bytes = described.kv_values_per_token * _kv_bytes(graph)
        # guidance makes the runtime read the tokeniser out of the same folder, later
        fast = self._files.enter_context(fast_folder(folder, described.decoder, graph, options.cache_dir))
        del graph
        model, candidate = _load_model(fast, described, options)
        with runtime_errors("asking for the model's limits", RuntimeError):
            max_batch_size = Lane(model).max_batch_size
        grows = candidate.provider is CPU and not described.is_paged
        can_cut = candidate.provider.continues and described.has_tokenizer and not described.is_paged
        max_tokens = max(1, options.kv_cache_bytes // token_bytes)
        self.vocab_size = described.vocab_size
        self.context_length = min(described.context_length, max_tokens)
        self.max_sequences = max(1, min(options.max_sequences, max_batch_size))
        self.device = candidate.device
        self.memory_bytes = weight_bytes + max_tokens * token_bytes
        self.lacks: Mapping[str, str] = {
            **LACKS,
            **({} if described.is_paged else {"seed": NO_SEEDS}),
            **({} if described.has_tokenizer else {"guidance": NO_GUIDANCE}),
        }
        self._scheduler = Scheduler(
            lambda: Lane(model),
            Limits(
                context_length=self.context_length,
                vocab_size=self.vocab_size,
                model_ends=described.end_token_ids,
                max_sequences=self.max_sequences,
                max_tokens=max_tokens,
                is_paged=described.is_paged,
                grows=grows,
                continues=candidate.provider.continues,
                piece=options.max_batched_tokens if can_cut else None,
            ),
        )


def load_backend(folder: Path, options: RunnerOptions) -> GenAIBackend:
    """Load a folder of onnxruntime-genai. Raises `AdapterError`."""
    return GenAIBackend(folder, options)


def _load_model(folder: Path, described: ModelFolder, options: RunnerOptions) -> tuple[Any, Candidate]:
    """The model on the first provider of the device's chain that takes it."""
    failures: list[AdapterError] = []
    tried = candidates(options.device, allow_fallback=options.allow_fallback)
    if tried[0].provider is not CPU:
        register_plugins(og)
    for candidate in tried:
        try:
            return _load_on(candidate, folder, described, options), candidate
        except AdapterError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise RuntimeFailed("; ".join(error.message for error in failures), hint=failures[-1].hint)


def _load_on(candidate: Candidate, folder: Path, described: ModelFolder, options: RunnerOptions) -> Any:
    provider = candidate.provider
    if options.kv_cache_type is not None:
        logger.warning("the KV cache is of the type that the model's file says, not %s", options.kv_cache_type)
    with runtime_errors(f"loading on {candidate.device} with {provider.name}", RuntimeError, ValueError):
        config = og.Config(str(folder))
        config.clear_providers()
        if provider is not CPU:
            config.append_provider(provider.name)
            for name, value in candidate.options.items():
                config.set_provider_option(provider.name, name, value)
        config.overlay(json.dumps(_overlay(provider is CPU, described, options)))
        model = og.Model(config)
        if provider.device_type not in (None, model.device_type):
            raise RuntimeFailed(f"{provider.name} left the model on {model.device_type}")
    return model


def _overlay(on_cpu: bool, described: ModelFolder, options: RunnerOptions) -> dict[str, object]:
    """What a config says of one answer is each request's own here; the engine refuses some of it."""
    search: dict[str, object] = {"min_length": 0, "num_beams": 1, "no_repeat_ngram_size": 0}
    overlay: dict[str, object] = {"search": search}
    if on_cpu and not described.is_paged:
        search["past_present_share_buffer"] = False
    if on_cpu and options.num_threads is not None:
        overlay["model"] = {"decoder": {"session_options": {"intra_op_num_threads": options.num_threads}}}
    return overlay


def _weight_bytes(decoder: Path, graph: onnx.ModelProto) -> int:
    try:
        return sum(path.stat().st_size for path in (decoder, *(decoder.parent / name for name in data_files(graph))))
    except OSError as error:
        raise UnsupportedModel(f"{decoder}: its data is not there: {error}") from error


def _kv_bytes(graph: onnx.ModelProto) -> int:
    """Of one number in the KV cache: the type of its inputs."""
    types = (value.type.tensor_type.elem_type for value in graph.graph.input if value.name.startswith("past"))
    return _KV_BYTES.get(next(types, onnx.TensorProto.FLOAT), 4)
