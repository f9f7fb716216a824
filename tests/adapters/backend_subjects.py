"""Text backends that the contract is held to, each a line in `BACKENDS` and a function that loads a tiny model.

And what a test talks to one with.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.base import TextBackend
from vmm_adapters.catalog import load_text_backend
from vmm_adapters.echo import END, write_echo_model
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import IMAGE_MARK, FinishReason, RunnerOptions, SamplingParams, TextOutput, TextRequest

from .genai_folder import END as END_TOKEN
from .genai_folder import TOKENS, write_genai_folder
from .tiny_decoder import TinyDecoder

GREEDY = SamplingParams(temperature=0, max_tokens=8)
OPTIONS = RunnerOptions(kv_cache_bytes=4 * 1024**2, max_batched_tokens=64, max_sequences=4)
PATIENCE = 5000
"""Steps in which something has to end; those that have nothing to say included."""

ids = count(1)
"""Of requests."""


@dataclass(frozen=True)
class BackendSubject:
    """A backend under test, over a model of 80 tokens or more and a context of 100 or more."""

    load: Callable[[], TextBackend]
    """A new one, not warmed up."""
    eos_token_ids: frozenset[int]
    """The model's own."""
    decode: Callable[[Sequence[int]], str]
    """The text of tokens, without special ones. Only what guidance allows is decoded."""
    lively: SamplingParams
    """Under which the model says many things."""
    sees: tuple[str, str] | None = None
    """Two rendered prompts: one that speaks of two images, the same without them. `None`: the model is blind."""
    is_exact: bool = True
    """Whether the greedy answer is the same to the token in any company. Where not, its first token is."""


def _echo(folder: Path) -> BackendSubject:
    write_echo_model(folder)
    return BackendSubject(
        lambda: load_text_backend("echo-backend", folder, OPTIONS),
        frozenset({END}),
        lambda token_ids: bytes(token_id for token_id in token_ids if token_id != END).decode(),
        SamplingParams(temperature=6.0),
        sees=("<|user|>what is this?<|end|><|assistant|>",) * 2,
    )


def _onnxruntime_genai(folder: Path) -> BackendSubject:
    decoder = TinyDecoder(vocab_size=len(TOKENS), weight_bits=4, float_zero_points=True)
    write_genai_folder(folder, decoder)
    return BackendSubject(
        lambda: load_text_backend("onnxruntime-genai", folder, OPTIONS),
        frozenset({END_TOKEN}),
        lambda token_ids: "".join(TOKENS[token_id] for token_id in token_ids if token_id != END_TOKEN),
        SamplingParams(temperature=1.0),
        is_exact=False,
    )


def _openvino_genai(folder: Path) -> BackendSubject:
    from .tiny_ir import write_text_folder

    return _openvino_subject(write_text_folder(folder))


def _openvino_genai_seeing(folder: Path) -> BackendSubject:
    from .tiny_ir import write_seeing_folder

    prompt = "<s>whatisit?"
    return _openvino_subject(write_seeing_folder(folder), (f"{IMAGE_MARK}or{IMAGE_MARK}{prompt}", prompt))


def _openvino_subject(folder: Path, sees: tuple[str, str] | None = None) -> BackendSubject:
    from .tiny_ir import END, TOKENS

    return BackendSubject(
        lambda: load_text_backend("openvino-genai", folder, OPTIONS),
        frozenset({END}),
        lambda token_ids: "".join(TOKENS[token_id] for token_id in token_ids if token_id != END),
        SamplingParams(temperature=1.0),
        sees=sees,
    )


BACKENDS = [
    pytest.param(_echo, id="echo-backend"),
    pytest.param(_onnxruntime_genai, id="onnxruntime-genai", marks=pytest.mark.runtime),
    pytest.param(_openvino_genai, id="openvino-genai", marks=pytest.mark.runtime),
    pytest.param(_openvino_genai_seeing, id="openvino-genai-seeing", marks=pytest.mark.runtime),
]
"""A function `folder → BackendSubject`; those of real runtimes import them inside and are marked `runtime`."""


@dataclass
class Answer:
    """All outputs of one request, put together."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    error: AdapterError | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def take(self, output: TextOutput) -> None:
        assert not self.is_over, "nothing is said of a request that is over"
        assert not (output.finish_reason and output.error), "a request fails or finishes"
        self.token_ids += output.token_ids
        self.finish_reason, self.error = output.finish_reason, output.error
        for name in ("num_prompt_tokens", "num_cached_tokens"):
            if (value := getattr(output, name)) is not None:
                assert getattr(self, name) in (None, value), "it does not change any more"
                setattr(self, name, value)


class Session:
    """A backend in use: adds, steps, and puts the outputs together."""

    def __init__(self, backend: TextBackend) -> None:
        self.backend = backend
        self.answers: dict[int, Answer] = {}

    def add(self, prompt: Iterable[int], sampling: SamplingParams = GREEDY, **changes: Any) -> Answer:
        token_ids = tuple(prompt)
        changes.setdefault("max_length", self.backend.context_length)
        request = TextRequest(next(ids), token_ids, sampling, **changes)
        self.backend.add(request)
        self.answers[request.id] = Answer([])
        return self.answers[request.id]

    def abort(self, answer: Answer) -> None:
        (request_id,) = [request_id for request_id, other in self.answers.items() if other is answer]
        del self.answers[request_id]
        self.backend.abort(request_id)

    def step(self) -> None:
        for output in self.backend.step():
            assert output.id in self.answers, "said of a request that is not there"
            self.answers[output.id].take(output)

    def step_until(self, *answers: Answer, num_tokens: int) -> None:
        """Until each of them has so many tokens, or is over."""
        for _ in range(PATIENCE):
            if all(answer.is_over or len(answer.token_ids) >= num_tokens for answer in answers):
                return
            self.step()
        raise AssertionError(f"nothing more came in {PATIENCE} steps")

    def finish(self) -> None:
        """Until all are over, and a step more."""
        for _ in range(PATIENCE):
            if all(answer.is_over for answer in self.answers.values()):
                break
            self.step()
        else:
            raise AssertionError(f"something did not end in {PATIENCE} steps")
        self.step()

    def ask(self, prompt: Iterable[int], sampling: SamplingParams = GREEDY, **changes: Any) -> Answer:
        answer = self.add(prompt, sampling, **changes)
        self.finish()
        assert answer.error is None
        return answer
