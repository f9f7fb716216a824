"""Plain values that cross the line between server and adapters. No runtime is imported here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.errors import AdapterError


class FinishReason(StrEnum):
    """Why a generation ended, in OpenAI's words plus two of ours."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """`STOP`, of an answer that calls tools; no engine says it."""
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. A value of `None` means the step is left out.

    Order of application (vLLM's): repetition, presence and frequency penalties, `logit_bias`, temperature,
    `top_k`, `typical_p`, `top_p`, `min_p`, draw. `temperature == 0` is greedy and skips everything after the bias.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    """Mass of the tokens kept whose surprise is nearest to the expected one (arxiv.org/abs/2202.00666); 1 keeps all."""
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    """Last tokens (prompt included) the repetition penalty looks at; `None` is all (Ollama: repeat_last_n)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    """Generated tokens at most; `None` is whatever the context length leaves, 0 only computes the prompt."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """`None`: none. 0: of the chosen token. n: also of the n most likely ones."""
    prompt_logprobs: int | None = None
    """The same for each prompt token but the first, which nothing comes before."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities (natural log, of the raw softmax) at the position of one token."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence's share of a step: `token_ids` are computed and stored at positions `start`, `start+1`, …"""

    token_ids: Sequence[int]
    start: int
    """Tokens already in the KV blocks, i.e. the position of the first new one."""
    block_table: Sequence[int]
    """Block ids in order; position p lives in `block_table[p // block_size]`. Covers `start + len(token_ids)`."""
    num_logits: int = 1
    """Logits are wanted for this many of the last new positions (0 in the middle of a prompt)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: any mix of prompt chunks and single decode tokens, at most one chunk a sequence."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """New tokens in the step."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)

    @property
    def num_logits(self) -> int:
        """Rows that `CausalLMRunner.execute` returns."""
        return sum(chunk.num_logits for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Guidance:
    """What an answer has to match, for a runtime that draws tokens itself."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    """A JSON schema, a regular expression (Rust's `regex`) or llguidance's Lark."""


IMAGE_MARK = "\ue000image\ue001"
"""Stands for an image in a text. Private-use characters: nobody's text has them by chance, and no template."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One answer, asked of a `TextBackend`."""

    id: int
    """Unique among the unfinished ones."""
    token_ids: tuple[int, ...]
    """The prompt, with its special tokens. Empty where `text` and `images` stand for it."""
    sampling: SamplingParams
    """Stop strings are not the backend's: what reads its tokens aborts."""
    max_length: int
    """Tokens of the prompt and the answer together."""
    eos_token_ids: frozenset[int] = frozenset()
    """Empty: no token ends the answer (`ignore_eos`)."""
    guidance: Guidance | None = None
    text: str | None = None
    """The rendered prompt, of a model that sees: an `IMAGE_MARK` where each image stands."""
    images: tuple[NDArray[np.uint8], ...] = ()
    """RGB `[height, width, 3]`, in the order of their marks."""


@dataclass(frozen=True, slots=True)
class TextOutput:
    """What a step of a `TextBackend` gave for one request."""

    id: int
    token_ids: tuple[int, ...] = ()
    """Drawn since the last output; the one that ends the answer among them."""
    finish_reason: FinishReason | None = None
    """`STOP` or `LENGTH` with the last output; the backend has then forgotten the request."""
    num_prompt_tokens: int | None = None
    """Of a prompt that the backend tokenised itself; known with the first token, or with the last."""
    num_cached_tokens: int | None = None
    """Of the prompt, not computed again. Known with the first token, or with the last."""
    error: AdapterError | None = None
    """This request failed and is forgotten; the others go on."""


KVCacheType = Literal["f16", "u8"]
"""What keys and values are kept in: halves, or bytes with a scale for each row of numbers."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """What the pool decides for one load."""

    device: str = "CPU"
    """A device name as the runtime spells it (`CPU`, `GPU.0`)."""
    kv_cache_bytes: int = 512 * 1024**2
    """Memory for KV blocks; the runner turns it into `num_blocks`."""
    kv_cache_type: KVCacheType | None = None
    """`None` leaves the choice to the adapter. One whose runtime has a type of its own says so in its log."""
    num_threads: int | None = None
    """Compute threads; `None` leaves the choice to the runtime."""
    max_batched_tokens: int = 512
    """The most new tokens one step will hold."""
    max_sequences: int = 64
    """The most sequences one step will hold."""
    cache_dir: Path | None = None
    """Where compiled models may be kept between starts; `None` keeps nothing."""
    shared_cache_dir: Path | None = None
    """The same, for what serves every model: compiled kernels."""
    allow_fallback: bool = True
    """Whether the CPU may take what the device cannot; `device` of what is loaded says what happened."""


class Pooling(StrEnum):
    """How the hidden states of a text's tokens become one vector, in sentence-transformers' words."""

    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST_TOKEN = "lasttoken"


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One text, or a pair of texts, for an encoder."""

    token_ids: Sequence[int]
    """With the special tokens."""
    type_ids: Sequence[int] = ()
    """Which text of a pair each token belongs to; empty is 0 for all."""


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """What is decided for one load of an encoder."""

    max_length: int
    """The most tokens an input will have."""
    pooling: Pooling | None = None
    """`None`: the model's output is one row a text already."""
    normalize: bool = False
    """Whether rows are divided by their L2 norm."""
    device: str = "CPU"
    """A device name as the runtime spells it."""
    num_threads: int | None = None
    """Compute threads; `None` leaves the choice to the runtime."""
    cache_dir: Path | None = None
    """Where compiled engines may be kept between starts; `None` keeps nothing."""


Precision = Literal["f32", "f16", "bf16"]
"""What a runtime may compute in. OpenVINO's words; others know the first two. A processor without bf16 takes f32."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a one-shot model."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...]
    """A name, or `None`, is a size that may differ from call to call."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What is decided for one load of a one-shot model."""

    device: str = "CPU"
    """A device's name (`vmm_adapters.device`)."""
    precision: Precision | None = None
    """What it may be computed in where the device has a choice; `None`: f32 on a CPU, f16 anywhere else."""
    num_threads: int | None = None
    """Compute threads; `None` leaves the choice to the runtime."""
    cache_dir: Path | None = None
    """Where compiled engines may be kept between starts; `None` keeps nothing."""
    allow_fallback: bool = True
    """Whether the CPU may take what the device cannot; `device` of the session says what happened."""
    carried: tuple[str, ...] = ()
    """Beginnings of the names of inputs and outputs that only go from one run into another: what they are stored in is
    the runtime's choice, and `TensorSpec` says it. Zeros are zero bytes; two sessions loaded alike choose alike."""

    @property
    def computed_in(self) -> Precision:
        """`precision`, or the device's own."""
        return self.precision or ("f32" if self.device.upper().startswith("CPU") else "f16")


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""How pixels become fewer or more, in Pillow's words."""


@dataclass(frozen=True, slots=True)
class Resize:
    """A picture that becomes part of a model's input: resized, cut out, each byte `byte * factor - shift`."""

    size: tuple[int, int]
    """The picture's width and height."""
    full_size: tuple[int, int]
    """Those it would have, resized whole."""
    area: tuple[int, int, int, int]
    """Left, top, right and bottom of what is wanted of that; not empty."""
    interpolation: Interpolation
    factors: tuple[float, ...]
    """Of red, green and blue, as `shifts`."""
    shifts: tuple[float, ...]
