"""`TextBackend` on openvino-genai's `VLMPipeline` and `LLMPipeline`: one request at a time, on a thread of its own.

One at a time: `ContinuousBatchingPipeline` computes several, but its `step` and `add_request` hold Python's lock while
they compute (2026.4), and the whole server would wait for each prompt and image. `generate` lets go of it.

Prompts come rendered: the runtime applies no chat template and adds no special tokens. Each `IMAGE_MARK` of a text
becomes the runtime's tag for that image, `<ov_genai_image_0>`, `<ov_genai_image_1>`, …, the same for all families of
models; the runtime writes there what the family wants (`<|vision_start|><|image_pad|>…`), as many tokens long as the
image is. Without a single mark the images come before the text. A family's own marker does as well, where there are
marks for all images or for none; a prompt that mixes both is an error, and so is one with such a marker and no image.
Images are RGB of any size: scaling and normalising them is the runtime's part, by `preprocessor_config.json`.

The NPU's graphs have fixed shapes, and are compiled when the model is loaded; a `cache_dir` keeps them.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openvino_genai as og

from vmm_adapters.errors import RuntimeFailed, runtime_errors
from vmm_adapters.openvino_genai.generating import Generating
from vmm_adapters.openvino_genai.generation import LACKS, PASS_THROUGH, generation_config
from vmm_adapters.openvino_genai.model_folder import ModelFolder, read_model_folder
from vmm_adapters.openvino_genai.prompts import WARM_UP, WARM_UP_SEEING, Prompts, image_tensors
from vmm_adapters.types import RunnerOptions, TextOutput, TextRequest

logger = logging.getLogger(__name__)

_KV_VALUE_BYTES = 2
"""Of a number in the KV cache, at most."""
_BLOCK = {"GPU": 16, "CPU": 32}
"""Tokens in a block of the KV cache."""
_NPU_CONTEXT = 4096
"""At most: memory for so many tokens is taken when the model is loaded."""
_NPU_ANSWER = 64
"""Room in the NPU's KV cache beyond the longest prompt; ours are shorter than that, and fit in with their answer."""


class OpenVINOGenAIBackend:
    """Implements `vmm_adapters.base.TextBackend`. Built by `load_backend`."""

    max_sequences = 1

    def __init__(self, folder: Path, options: RunnerOptions) -> None:
        described = read_model_folder(folder)
        is_npu = options.device.startswith("NPU")
        token_bytes = described.kv_values_per_token * _KV_VALUE_BYTES
        length = min(described.context_length, max(1, options.kv_cache_bytes // token_bytes))
        self.context_length = min(length, _NPU_CONTEXT) if is_npu else length
        self.vocab_size = described.vocab_size
        self.device = options.device
        self.memory_bytes = described.weight_bytes + self.context_length * token_bytes
        self.lacks: Mapping[str, str] = LACKS
        self._sees = described.sees
        self._prompts = Prompts(folder, described)
        self._generating: Generating | None = None
        self._pipeline = _load(folder, described, options, self.context_length, self._prompts.tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openvino-genai")

    def add(self, request: TextRequest) -> None:
        """See `TextBackend.add`."""
        pipeline = self._loaded()
        if self._generating is not None:
            raise RuntimeFailed("openvino-genai answers one request at a time")
        max_length = min(request.max_length, self.context_length)
        num_prompt_tokens = self._prompts.check(request, max_length)
        config = generation_config(request, max_length=max_length, num_prompt_tokens=num_prompt_tokens)
        prompt: dict[str, Any] = (
            {"prompt": self._prompts.text(request), "images": image_tensors(request)}
            if self._sees
            else {"inputs": self._prompts.tokens(request)}
        )
        self._generating = Generating(
            request,
            lambda streamer: pipeline.generate(**prompt, generation_config=config, streamer=streamer),
            self._thread,
            num_prompt_tokens=num_prompt_tokens,
        )

    def step(self) -> list[TextOutput]:
        """See `TextBackend.step`."""
        self._loaded()
        output = self._generating.read() if self._generating is not None else None
        if output is None:
            return []
        if output.finish_reason is not None or output.error is not None:
            self._generating = None
        return [output]

    def abort(self, request_id: int) -> None:
        """See `TextBackend.abort`. The next request waits until the runtime has noticed."""
        if self._generating is not None and self._generating.request.id == request_id:
            self._generating.abort()
            self._generating = None

    def warm_up(self) -> None:
        """See `TextBackend.warm_up`."""
        if self._generating is not None:
            return
        self.add(WARM_UP_SEEING if self._sees else WARM_UP)
        while self._generating is not None:
            for output in self.step():
                if output.error is not None:
                    raise output.error

    def close(self) -> None:
        """See `TextBackend.close`."""
        if self._generating is not None:
            self.abort(self._generating.request.id)
        self._thread.shutdown()
        self._pipeline = None

    def _loaded(self) -> Any:
        if self._pipeline is None:
            raise RuntimeFailed("the backend is closed")
        return self._pipeline


def load_backend(folder: Path, options: RunnerOptions) -> OpenVINOGenAIBackend:
    """Load an OpenVINO IR folder, of a model that sees or of one that does not. Raises `AdapterError`."""
    return OpenVINOGenAIBackend(folder, options)


def _load(folder: Path, described: ModelFolder, options: RunnerOptions, length: int, tokenizer: Any) -> Any:
    properties: dict[str, Any] = {}
    if options.device.startswith("NPU"):
        properties.update(MAX_PROMPT_LEN=length, MIN_RESPONSE_LEN=_NPU_ANSWER)
        if options.cache_dir is not None:
            properties["CACHE_DIR"] = str(options.cache_dir)
        if options.kv_cache_type is not None:
            logger.warning("OpenVINO chooses the type of the KV cache on an NPU, not %s", options.kv_cache_type)
    else:
        properties["scheduler_config"] = _scheduler_config(length, options)
        if options.kv_cache_type is not None:
            properties["KV_CACHE_PRECISION"] = options.kv_cache_type
    if options.num_threads is not None and options.device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    with runtime_errors(f"loading on {options.device}", RuntimeError, ValueError):
        if not described.sees:
            return og.LLMPipeline(folder, tokenizer, options.device, **properties)
        pipeline = og.VLMPipeline(folder, options.device, **properties)
        pipeline.get_tokenizer().chat_template = PASS_THROUGH
        return pipeline


def _scheduler_config(length: int, options: RunnerOptions) -> Any:
    """A paged KV cache with room for one whole context; what is left of a former prompt is used again."""
    block_size = _BLOCK["GPU" if options.device.startswith("GPU") else "CPU"]
    config = og.SchedulerConfig()
    config.num_kv_blocks = -(-length // block_size) + 1
    config.max_num_batched_tokens = max(options.max_batched_tokens, block_size)
    config.max_num_seqs = 1
    config.enable_prefix_caching = True
    return config
