"""A folder of a model that speaks → something warm that takes text: the blocking half of a load."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmm_adapters import catalog
from vmm_adapters.base import Phonemizer, Session
from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import SessionOptions
from vmm_server.audio.encoding import Samples
from vmm_server.audio.kokoro import LANGUAGES, UNSPOKEN, to_phonemes
from vmm_server.audio.sentences import split_sentences
from vmm_server.engine.batch_queue import BatchLimits
from vmm_server.engine.batcher import Batcher, BatcherOptions, BatcherStats
from vmm_server.errors import InvalidRequest, ModelLoadFailed, UnsupportedParameter
from vmm_server.models.compiled import compiled_dir
from vmm_server.models.importers.encoder_folder import find_graph
from vmm_server.models.importers.kokoro import (
    MAX_TOKENS,
    PAD,
    STYLE_BYTES,
    STYLE_LENGTH,
    KokoroInputs,
    read_inputs,
    read_letters,
    read_voices,
)
from vmm_server.models.router import Load, NoLoad, Placement
from vmm_server.models.store import InstalledModel
from vmm_server.settings import Settings

SAMPLE_RATE = 24_000
"""Of all that Kokoro says, in Hz."""
_PHONEMIZER = "espeak"
_NUM_TRIED = 50
"""Letters of a sentence that means nothing."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is spoken at once: a sentence, or a part of one that is very long."""

    token_ids: tuple[int, ...]
    """Of its letters, without padding: 1 to `MAX_TOKENS`."""
    style: NDArray[np.float32]
    """`[256]`."""
    speed: float


@dataclass(frozen=True, slots=True)
class ReadySpeaker:
    """Everything a request needs of a loaded model that speaks."""

    batcher: Batcher[Utterance, Samples]
    """One utterance at a time; those of several requests take turns."""
    phonemize: Phonemizer
    letters: Mapping[str, int]
    voices: Mapping[str, Path]
    placement: Placement
    memory_bytes: int
    context_length: int = MAX_TOKENS
    sample_rate: int = SAMPLE_RATE

    @property
    def load(self) -> Load:
        """See `Ready`."""
        stats = self.stats
        return NoLoad(stats.num_running, stats.num_waiting)

    @property
    def stats(self) -> BatcherStats:
        """See `Sampled`."""
        return self.batcher.stats

    @property
    def failure(self) -> str | None:
        """See `Ready`."""
        return self.batcher.failure

    async def aclose(self) -> None:
        """See `Ready`."""
        await self.batcher.aclose()

    async def try_once(self) -> None:
        """See `Sampled`."""
        await self.say(nonsense(self.letters))

    def utterances(self, text: str, voice: str, speed: float) -> list[Utterance]:
        """A text in the order in which it is spoken. Blocks.

        Raises `InvalidRequest` for a voice that is not here, and for a text of which nothing can be spoken.
        """
        name = find_voice(voice, self.voices)
        language = _language(name)
        found: list[Utterance] = []
        for sentence in split_sentences(text):
            phonemes = to_phonemes(sentence, language, self.phonemize)
            for letters in split_long([each for each in phonemes if each in self.letters]):
                token_ids = tuple(self.letters[each] for each in letters)
                found.append(Utterance(token_ids, read_style(self.voices[name], len(token_ids)), speed))
        if not found:
            raise InvalidRequest("input: nothing in it can be spoken", param="input", hint="send words or numbers")
        return found

    async def say(self, utterance: Utterance) -> tuple[Samples, float]:
        """Its samples, and the seconds that it waited for others. Raises as `Batcher.call` does."""
        computed = await self.batcher.timed_call([utterance])
        return computed.results[0], computed.queued_s


def load_speaker(model: InstalledModel, placement: Placement, settings: Settings) -> ReadySpeaker:
    """Load it on a placement, and speak once. Raises `ModelLoadFailed`, `AdapterError`."""
    phonemize = catalog.load_phonemizer(_PHONEMIZER)
    graph = find_graph(model.folders[placement.variant])
    if graph is None:
        raise ModelLoadFailed(f"{model.name!r} has no graph any more", hint=f"vmm pull {model.name}")
    inputs = read_inputs(graph)
    options = SessionOptions(
        device=placement.device,
        num_threads=settings.num_threads,
        cache_dir=compiled_dir(settings.cache_dir, model, placement.variant),
        allow_fallback=False,  # the pool goes on to the next placement, and says which one it is
    )
    session = catalog.load_session(placement.adapter, graph, options)
    return warm_speaker(model, placement, settings, session, inputs, phonemize)


def warm_speaker(
    model: InstalledModel,
    placement: Placement,
    settings: Settings,
    session: Session,
    inputs: KokoroInputs,
    phonemize: Phonemizer,
) -> ReadySpeaker:
    """Speak once with a session, which is closed if it cannot, and make it ready for requests."""
    folder = model.folders[placement.variant]

    def compute(utterances: Sequence[Utterance]) -> list[Samples]:
        return [synthesize(session, inputs, letters[PAD], each) for each in utterances]

    try:
        letters = read_letters(folder)
        compute([nonsense(letters)])
    except BaseException:
        session.close()
        raise
    return ReadySpeaker(
        batcher=Batcher(
            compute,
            size=lambda each: len(each.token_ids),
            close=session.close,
            options=BatcherOptions(BatchLimits(max_items=1), max_calls=settings.max_sequences + settings.max_queue),
            name=f"vmm-speaker {model.name}",
        ),
        phonemize=phonemize,
        letters=letters,
        voices=read_voices(folder),
        placement=placement,
        memory_bytes=session.memory_bytes,
    )


def synthesize(session: Session, inputs: KokoroInputs, pad: int, utterance: Utterance) -> Samples:
    """Samples `[n]` of one utterance. Raises `RuntimeFailed`, also for samples that are no numbers."""
    outputs = session.run(
        {
            inputs.token_ids: np.array([[pad, *utterance.token_ids, pad]], np.int64),
            inputs.style: utterance.style[None],
            inputs.speed: np.array([utterance.speed], np.float32),
        }
    )
    samples = next(iter(outputs.values())).astype(np.float32, copy=False).ravel()
    if not np.isfinite(samples).all():
        raise RuntimeFailed("the model spoke NaN or infinite samples", hint="try another device, or pull it again")
    return samples


def nonsense(letters: Mapping[str, int]) -> Utterance:
    """A sentence of the usual length that nobody wants to hear."""
    token_ids = tuple(sorted(letters.values()))
    many = token_ids * (_NUM_TRIED // len(token_ids) + 1)
    return Utterance(many[:_NUM_TRIED], np.zeros(STYLE_LENGTH, np.float32), 1.0)


def read_style(voice: Path, num_letters: int) -> NDArray[np.float32]:
    """A voice's style `[256]` for so many letters, or for the most that it knows."""
    row = min(num_letters, voice.stat().st_size // STYLE_BYTES) - 1
    return np.fromfile(voice, "<f4", count=STYLE_LENGTH, offset=row * STYLE_BYTES).astype(np.float32, copy=False)


def find_voice(asked: str, voices: Mapping[str, Path]) -> str:
    """A voice's whole name: `af_nova` for itself, or for `nova` where no other is called so.

    OpenAI's alloy, echo, fable, nova and onyx find their namesakes in Kokoro that way. Raises `InvalidRequest`.
    """
    if asked in voices:
        return asked
    namesakes = [name for name in voices if name.partition("_")[2] == asked and asked]
    if len(namesakes) == 1:
        return namesakes[0]
    reason = f"may be {' or '.join(namesakes)}" if namesakes else "is no voice of this model"
    raise InvalidRequest(f"voice: {asked[:100]!r} {reason}", param="voice", hint=f"one of {', '.join(voices)}")


def _language(voice: str) -> str:
    """eSpeak NG's name of what a voice speaks; American English where its name does not say."""
    letter = voice[0] if voice[1:3] in ("f_", "m_") else "a"
    if letter in UNSPOKEN:
        raise UnsupportedParameter(
            f"voice: {voice} speaks {UNSPOKEN[letter]}, whose phonemes cannot be told here", param="voice"
        )
    return LANGUAGES.get(letter, LANGUAGES["a"])


def split_long(letters: Sequence[str]) -> list[Sequence[str]]:
    """Pieces that the model can read at once, cut at the last space that fits, if there is one."""
    pieces: list[Sequence[str]] = []
    while len(letters) > MAX_TOKENS:
        cut = next((index for index in range(MAX_TOKENS, 0, -1) if letters[index] == " "), MAX_TOKENS)
        pieces.append(letters[:cut])
        letters = letters[cut + 1 :] if letters[cut] == " " else letters[cut:]
    return [*pieces, letters] if letters else pieces
