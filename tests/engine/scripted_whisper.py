"""A Whisper that says what it is told to: sessions without a runtime, and sounds that it knows apart.

A sound's loudness says which text it has. The decoder keeps tokens as they are in its keys, so what it is fed can be
checked: it looks at the text of the row's sound, and at all tokens of the row, as an attentive model would.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from vmm_adapters.errors import DeviceLost, RuntimeFailed
from vmm_adapters.types import TensorSpec
from vmm_server.audio.features import WINDOW_SAMPLES, LogMel
from vmm_server.audio.transcript import Samples
from vmm_server.audio.whisper_tokens import WhisperTokens
from vmm_server.engine.transcriber_rows import CARRIED

NUM_MEL_BINS = 4
NUM_WORDS = 30
END, SOT, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS, ENGLISH, GERMAN, TRANSCRIBE, TRANSLATE = range(NUM_WORDS, NUM_WORDS + 9)
LAST_SPECIAL = TRANSLATE + 1
BEGIN = LAST_SPECIAL + 1
VOCAB = BEGIN + 1501
TIMEOUT_S = 60


def tokens_of(*, is_multilingual: bool = False) -> WhisperTokens:
    return WhisperTokens(
        end_of_text=END,
        start_of_transcript=SOT,
        start_of_previous=PREVIOUS,
        no_speech=NO_SPEECH,
        no_timestamps=LAST_SPECIAL,
        languages={"en": ENGLISH, "de": GERMAN} if is_multilingual else {},
        tasks={"transcribe": TRANSCRIBE, "translate": TRANSLATE} if is_multilingual else {},
        suppressed=(),
        text=tuple(f" w{index}".encode() for index in range(NUM_WORDS)),
        max_length=64,
    )


def tokenizer() -> Tokenizer:
    """Words w0 to w29."""
    made = Tokenizer(WordLevel({f"w{index}": index for index in range(NUM_WORDS)}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    return made


def at(time: float) -> int:
    return BEGIN + round(time / 0.02)


KEPT_IN = np.dtype(np.uint16)
"""Keys and values, as a runtime that computes in bf16 has them."""
_NOISE = np.random.default_rng(0).standard_normal(WINDOW_SAMPLES).astype(np.float32)
_NOISE[2 * 16000 :] *= 0.03
_QUIETEST = float(LogMel(NUM_MEL_BINS)(1e-2 * _NOISE).max())


def sound(name: int, seconds: float = 30.0) -> Samples:
    """What the model knows as `name`: each is ten times as strong as the one before it; two seconds of noise, and then
    something quieter."""
    loudness = 1e-2 * 10 ** (name / 2)
    return (loudness * _NOISE[: round(16000 * seconds)]).astype(np.float32)


class Reader:
    """A sound in memory; `fails` is raised instead of its end."""

    def __init__(self, samples: Samples, fails: Exception | None = None) -> None:
        self._samples = samples
        self._fails = fails
        self._next = 0
        self.is_closed = False
        self.duration_s = None

    def read(self, num_samples: int) -> Samples:
        assert not self.is_closed
        if self._fails is not None and self._next + num_samples > len(self._samples):
            raise self._fails
        self._next += num_samples
        return self._samples[self._next - num_samples : self._next]

    def close(self) -> None:
        self.is_closed = True


class Gate:
    """Lets steps pass, or holds them one by one."""

    def __init__(self) -> None:
        self.is_held = False
        self._entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def __call__(self) -> None:
        if self.is_held:
            self._entered.release()
            assert self._permits.acquire(timeout=TIMEOUT_S)

    def wait_for_step(self) -> None:
        """Until a step is held."""
        assert self._entered.acquire(timeout=TIMEOUT_S)

    def let_pass(self, num_steps: int = 1) -> None:
        self._permits.release(num_steps)

    def open(self) -> None:
        self.is_held = False
        self._permits.release(1000)


class ScriptedEncoder:
    """Gives the name of each sound as its only key."""

    device, provider, memory_bytes = "CPU", "script", 0

    def __init__(self) -> None:
        self.inputs = (TensorSpec("input_features", np.dtype(np.float32), (None, NUM_MEL_BINS, 3000)),)
        self.outputs = tuple(TensorSpec(f"cross_{kind}.0", KEPT_IN, (None, 1, 1, 1)) for kind in ("key", "value"))
        self.batches: list[list[int]] = []
        self.is_closed = False

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = np.round(4 * (feeds["input_features"].max(axis=(1, 2)) - _QUIETEST))
        self.batches.append([int(name) for name in names])
        return {spec.name: names.astype(KEPT_IN).reshape(-1, 1, 1, 1) for spec in self.outputs}

    def close(self) -> None:
        self.is_closed = True


class ScriptedDecoder:
    """Says of each sound what `texts` has: tokens behind the start. `raises` are the errors of the next steps.

    `language` is what it hears of every sound.
    """

    device, provider, memory_bytes = "CPU", "script", 0

    def __init__(self, texts: Mapping[int, Sequence[int]], language: int | None) -> None:
        keys = [f"{kind}.0" for kind in ("key", "value")]
        self.inputs = tuple(TensorSpec(f"past_{key}", KEPT_IN, (None, 1, None, 1)) for key in keys)
        self.outputs = (TensorSpec("cross_attention", np.dtype(np.float32), (None, 1, None, 1500)),)
        self.texts = texts
        self.language = language
        self.gate = Gate()
        self.raises: list[Exception] = []
        self.batches: list[list[int]] = []
        """Names of the sounds in each step."""
        self.prompts: list[list[int]] = []
        """Of rows without a past."""
        self.is_closed = False

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert {array.dtype for name, array in feeds.items() if name.startswith(CARRIED)} == {KEPT_IN}
        names = [int(name) for name in feeds["cross_key.0"][:, 0, 0, 0]]
        self.batches.append(names)
        self.gate()
        if self.raises:
            raise self.raises.pop(0)
        ids, mask, past = feeds["input_ids"], feeds["attention_mask"] == 1, feeds["past_key.0"][:, 0, :, 0]
        seen = np.concatenate((past, ids), axis=1)
        assert len({len(each) for each in (names, ids, mask, past, feeds["logit_positions"])}) == 1
        assert mask.shape == seen.shape
        positions = feeds["position_ids"]
        logits = np.zeros((*feeds["logit_positions"].shape, VOCAB), np.float32)
        for row, name in enumerate(names):
            counted = np.maximum(np.cumsum(mask[row]) - 1, 0)[past.shape[1] :]
            assert positions[row].tolist() == counted.tolist()
            assert seen[row, mask[row]][0] in (SOT, PREVIOUS), "a row lost tokens, or has those of another one"
            if not past.shape[1]:
                self.prompts.append([int(token) for token in seen[row, mask[row]]])
            for index, position in enumerate(feeds["logit_positions"][row]):
                upto = past.shape[1] + int(position) + 1
                history = [int(token) for token in seen[row, :upto][mask[row, :upto]]]
                logits[row, index, self._next(name, history)] = 30.0
        attention = np.full((len(names), 1, ids.shape[1], 1500), 1e-3, np.float32)
        for index in range(ids.shape[1]):
            attention[:, :, index, 10 * index : 10 * index + 10] = 1.0
        present = seen.astype(KEPT_IN)[:, None, :, None]
        return {"logits": logits, "present_key.0": present, "present_value.0": present, "cross_attention": attention}

    def close(self) -> None:
        self.is_closed = True

    def _next(self, name: int, history: Sequence[int]) -> int:
        if SOT not in history:
            return END
        said = list(history[len(history) - history[::-1].index(SOT) :])
        if self.language is not None and len(history) == 1:
            return self.language
        while said and END < said[0] < BEGIN:
            said.pop(0)
        text = self.texts.get(name, ())
        return text[len(said)] if len(said) < len(text) else END


LOST = DeviceLost("gone")
FAILED = RuntimeFailed("no memory")
