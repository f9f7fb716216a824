"""One window in a transcriber: what is asked, what was drawn so far, and whether that is good enough.

Text that repeats itself, or that the model itself finds unlikely, is drawn again at the next temperature (Radford et
al. 2022, 4.5). Of all attempts the likeliest is taken; the more a text repeats itself, the less likely it counts.
People repeat themselves too: their words are better than a wild guess, and a guess is better than a loop.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmm_server.audio.alignment import Attention
from vmm_server.audio.transcript import TranscriptionOptions
from vmm_server.audio.whisper_tokens import WhisperTokens

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """A window of sound and what is known of it."""

    index: int
    """Its number in its transcript."""
    features: Floats
    """`[num_mel_bins, 3000]`."""
    num_frames: int
    """That are sound."""
    context: tuple[int, ...]
    """Tokens of what was said before."""
    language: str | None
    """`None`: to be heard."""
    options: TranscriptionOptions


@dataclass(frozen=True, slots=True)
class WindowText:
    """What was heard in a window."""

    tokens: tuple[int, ...]
    """Text and timestamps; no end."""
    language: str | None
    temperature: float
    avg_logprob: float
    """Per token, timestamps and the end included."""
    text_logprob: float
    """Per token of text; 0 if there is none."""
    compression_ratio: float
    """Of the text's bytes: above 2.4 it repeats itself."""
    no_speech_prob: float
    attention: Attention | None = None
    """If words were asked for and there are any."""


@dataclass(slots=True)
class Attempt:
    """A window's tokens while they are drawn."""

    prompt: tuple[int, ...]
    num_start: int
    """Tokens of the prompt that belong to this window: the last ones."""
    temperature: float
    random: "np.random.Generator"  # numpy imports it, 2 MB, when somebody draws
    sampled: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Of all tokens, timestamps and the end included."""
    text_logprob: float = 0.0
    """Of those that are text."""
    num_text: int = 0
    no_speech_prob: float = 0.0
    is_over: bool = False

    def draw(self, logits: Floats, tokens: WhisperTokens) -> None:
        """Take the next token: `logits` `[vocab]`, those that may not come minus infinity.

        Raises `FloatingPointError` if they are no numbers.
        """
        likeliest = int(logits.argmax())
        most = float(logits[likeliest])
        if not np.isfinite(most):
            raise FloatingPointError("the model's logits are no numbers")
        if self.temperature > 0:
            weights = np.cumsum(np.exp((logits - most) / self.temperature, dtype=np.float64))
            token = int(np.searchsorted(weights, self.random.random() * weights[-1], side="right"))
        else:
            token = likeliest
        logprob = float(logits[token]) - most - float(np.log(np.exp(logits - most).sum()))
        self.logprob += logprob
        if token < tokens.end_of_text:
            self.text_logprob += logprob
            self.num_text += 1
        if token == tokens.end_of_text:
            self.is_over = True
            return
        self.sampled.append(token)
        length = len(self.prompt) + len(self.sampled)
        self.is_over = len(self.sampled) >= tokens.max_new or length >= tokens.max_length


def begin_attempt(request: WindowRequest, index: int, language: str | None, tokens: WhisperTokens) -> Attempt:
    """The attempt at the `index`-th temperature. What is drawn depends on seed, window and attempt alone."""
    options = request.options
    start = tokens.start(language, options.task)
    return Attempt(
        prompt=tokens.prompt(request.context, start),
        num_start=len(start),
        temperature=options.temperatures[index],
        random=np.random.default_rng((options.seed, request.index, index)),
    )


def attempted(attempt: Attempt, language: str | None, tokens: WhisperTokens) -> WindowText:
    """What an attempt that is over came to."""
    sampled = tuple(attempt.sampled)
    return WindowText(
        tokens=sampled,
        language=language,
        temperature=attempt.temperature,
        avg_logprob=attempt.logprob / (len(sampled) + 1),
        text_logprob=attempt.text_logprob / max(1, attempt.num_text),
        compression_ratio=compression_ratio(tokens.decode(sampled)),
        no_speech_prob=attempt.no_speech_prob,
    )


def is_silence(text: WindowText, options: TranscriptionOptions) -> bool:
    """Whether nobody speaks: the model says so, and is not sure of the text either.

    Of two words that it hears in noise it is not, but of the timestamps around them: text is looked at alone as well.
    """
    logprob = min(text.avg_logprob, text.text_logprob)
    return text.no_speech_prob > options.no_speech_threshold and logprob < options.logprob_threshold


def is_good(texts: Sequence[WindowText], options: TranscriptionOptions) -> bool:
    """Whether no other attempt need be made, after those that came to `texts`.

    Silence is told by the first of them: where that was sure of words which repeat themselves, a wild guess at a higher
    temperature proves nothing.
    """
    text = texts[-1]
    if is_silence(text, options):
        return len(texts) == 1
    repeats = text.compression_ratio > options.compression_ratio_threshold
    return not repeats and text.avg_logprob >= options.logprob_threshold


def best(texts: Sequence[WindowText], options: TranscriptionOptions) -> WindowText:
    """Of all attempts; a good one may be less likely than one that repeats itself no more than people do."""
    most = options.compression_ratio_threshold
    return max(texts, key=lambda text: text.avg_logprob - max(0.0, text.compression_ratio - most))


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes it; 0 for no text."""
    written = text.strip().encode()
    return len(written) / len(zlib.compress(written)) if written else 0.0


def probability(logits: Floats, token: int) -> float:
    """Of one of the tokens that `logits` are of."""
    most = logits.max()
    return float(np.exp(logits[token] - most) / np.exp(logits - most).sum())
