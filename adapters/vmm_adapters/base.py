"""The contract a runtime is bound to. Implementations are found through `catalog`, never imported by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.types import (
    Batch,
    EncoderInput,
    EncoderOptions,
    Resize,
    RunnerOptions,
    SessionOptions,
    TensorSpec,
    TextOutput,
    TextRequest,
)


class CausalLMRunner(Protocol):
    """One decoder with paged KV blocks, scheduled by us. Used from one thread at a time.

    A runner holds no request state: everything about a sequence is in the `Chunk`s and the blocks.
    Block contents survive until overwritten, so blocks may be shared between sequences and reused later.
    """

    block_size: int
    """Positions in a KV block."""
    num_blocks: int
    """Blocks there are; ids are 0 .. num_blocks-1, all usable."""
    vocab_size: int
    """Columns of the logits."""
    context_length: int
    """Positions the model was made for."""
    device: str
    """Where it runs, in words: `CPU`, `GPU.0`."""
    memory_bytes: int
    """Weights and KV blocks, as allocated."""

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """Compute the batch's new tokens, store their keys and values, and return logits.

        Returns float32 `[batch.num_logits, vocab_size]`, rows in the order of the chunks and, in a chunk, of
        its positions. The array is valid until the next call. Raises `AdapterError`; the blocks the batch
        would have written are then undefined, all others are intact.
        """
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks `(source, target)`, in order, in every layer."""
        ...

    def warm_up(self) -> None:
        """Run the shapes that will be served once, so that no request pays for a kernel's first use."""
        ...

    def close(self) -> None:
        """Give the memory back. Idempotent; no other method may be called afterwards."""
        ...


class RunnerFactory(Protocol):
    """What `catalog` names: loads a folder into a runner. May take seconds; raises `AdapterError`."""

    def __call__(self, folder: Path, options: RunnerOptions) -> CausalLMRunner: ...


class TextBackend(Protocol):
    """A text model that schedules itself: requests in, tokens out. Used from one thread at a time.

    Whoever uses it gives it `max_sequences` requests at most and calls `step` while any is unfinished.
    """

    max_sequences: int
    """Requests that it computes at the same time."""
    vocab_size: int
    """Token ids are below it."""
    context_length: int
    """Tokens of a prompt and its answer."""
    device: str
    """Where it runs, in words: `CPU`, `CUDA.0`."""
    memory_bytes: int
    """Weights and KV cache, as allocated or as best known."""
    lacks: Mapping[str, str]
    """Fields of `SamplingParams`, or `guidance`, that it cannot honour → why, for the error. A request that sets one
    of them (to other than its default) is never given to it."""

    def add(self, request: TextRequest) -> None:
        """Take a request. Raises `AdapterError` when it cannot ever be answered; nothing is then kept of it."""
        ...

    def step(self) -> Sequence[TextOutput]:
        """Compute for milliseconds and say what came of it; may be nothing.

        Raises `AdapterError` when the runtime failed: every request it had is then lost.
        """
        ...

    def abort(self, request_id: int) -> None:
        """Forget a request; nothing is said of it any more. One that is not there (any more) is no error."""
        ...

    def warm_up(self) -> None:
        """Run once, so that no request pays for what the first run prepares."""
        ...

    def close(self) -> None:
        """Give the memory back. Idempotent; no other method may be called afterwards."""
        ...


class TextBackendFactory(Protocol):
    """What `catalog` names: loads a folder into a backend. May take seconds; raises `AdapterError`."""

    def __call__(self, folder: Path, options: RunnerOptions) -> TextBackend: ...


class Encoder(Protocol):
    """One shot: token ids of texts in, one row of numbers a text out. Used from one thread at a time.

    The row is the text's vector, pooled and normalised as `EncoderOptions` says, or a cross-encoder's logits, as they
    leave the model. It depends on its text alone, not on what else is in the call (to rounding).
    """

    dim: int
    """Columns of the rows."""
    max_length: int
    """Tokens an input may have."""
    device: str
    """Where it runs, in words: `CPU`, `GPU.0`."""
    memory_bytes: int
    """Weights, as allocated."""

    def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """float32 `[len(inputs), dim]`, rows in the inputs' order; the array is the caller's. Raises `AdapterError`.

        Inputs have 1 to `max_length` tokens. All are padded to the longest: the caller sorts them by length.
        """
        ...

    def warm_up(self) -> None:
        """Run once, so that no request pays for what the first run prepares."""
        ...

    def close(self) -> None:
        """Give the memory back. Idempotent; no other method may be called afterwards."""
        ...


class EncoderFactory(Protocol):
    """What `catalog` names: loads a folder into an encoder. May take seconds; raises `AdapterError`."""

    def __call__(self, folder: Path, options: EncoderOptions) -> Encoder: ...


class Session(Protocol):
    """A one-shot model as it is: named arrays in, named arrays out. Used from one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    """Where it runs, in words: `CPU`, `CUDA.0`; the CPU, where the device asked for could not take it."""
    provider: str
    """What computes there: `OpenVINO`, or an execution provider of ONNX Runtime."""
    memory_bytes: int
    """Weights, as stored."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name; the arrays are the caller's.

        Raises `RuntimeFailed` for an input that is missing, unknown, or of another type or shape than `inputs` says.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Idempotent; no other method may be called afterwards."""
        ...


class SessionFactory(Protocol):
    """What `catalog` names: loads an ONNX file, or an OpenVINO `.xml`. May take seconds; raises `AdapterError`."""

    def __call__(self, path: Path, options: SessionOptions) -> Session: ...


class Phonemizer(Protocol):
    """Says how a text is pronounced. Safe from any thread; blocks for milliseconds a page."""

    def __call__(self, text: str, language: str, /) -> str:
        """Phonemes of a sentence or less, in the phonemizer's own spelling; `language` as `en-us`, `fr`.

        Raises `RuntimeFailed` for a language that it does not know.
        """
        ...


Rows = Callable[[int, int], Iterable[NDArray[np.uint8]]]
"""Rows `first..end` of a picture, in order and in pieces of some of them: `[rows, width, 4]`, red, green, blue and a
byte that is nothing."""


class Resampler(Protocol):
    """Resizes pictures to the same bits as Pillow. Safe from any thread; blocks for a millisecond."""

    def takes(self, resize: Resize) -> bool:
        """Whether it can do that one."""
        ...

    def __call__(self, rows: Rows, resize: Resize, out: NDArray[np.float32]) -> None:
        """Write what is wanted to `out`, float32 `[3, rows, columns]`, numbers of a row side by side."""
        ...


class ResamplerFactory(Protocol):
    """What `catalog` names; the folder keeps what is compiled. May take a second; raises `AdapterError`."""

    def __call__(self, cache_dir: Path | None) -> Resampler: ...
