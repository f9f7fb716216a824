"""Whisper's vocabulary: text, tokens that say what to do, and 1501 timestamps, 20 ms apart.

A window is `<|startofprev|>` and what was said before it, `<|startoftranscript|>`, language and task, and then its own
phrases, each between two timestamps. Models that know English alone have no tokens of language and task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmm_server.audio.transcript import Task

TIMESTAMP_S = 0.02
"""Between two timestamps."""
FRAMES_PER_TIMESTAMP = 2
MAX_INITIAL_TIMESTAMP = 50
"""The first timestamp of a window is one second at most, as openai-whisper has it."""


@dataclass(frozen=True, slots=True)
class WhisperTokens:
    """The ids of a model's tokens that are not text."""

    end_of_text: int
    """The first one that is not text."""
    start_of_transcript: int
    start_of_previous: int
    no_speech: int
    no_timestamps: int
    languages: Mapping[str, int]
    """Code → id; empty for a model that knows English alone."""
    tasks: Mapping[Task, int]
    suppressed: tuple[int, ...]
    """Of text: what is never said, such as a lone bracket or a note."""
    text: tuple[bytes, ...]
    """What each id below `end_of_text` stands for; a character may be split over several."""
    max_length: int = 448
    """Positions of the decoder."""

    @property
    def timestamp_begin(self) -> int:
        """`<|0.00|>`; all that follow are timestamps."""
        return self.no_timestamps + 1

    @property
    def max_context(self) -> int:
        """Tokens that can be put before a window: half of the positions, less `<|startofprev|>`."""
        return self.max_length // 2 - 1

    @property
    def max_new(self) -> int:
        """Tokens that a window may come to: the other half of the positions."""
        return self.max_length // 2

    def start(self, language: str | None, task: Task) -> tuple[int, ...]:
        """What stands before a window's own tokens."""
        if not self.languages:
            return (self.start_of_transcript,)
        if language is None:
            raise ValueError("the language is not known yet")
        return (self.start_of_transcript, self.languages[language], self.tasks[task])

    def prompt(self, context: Sequence[int], start: Sequence[int]) -> tuple[int, ...]:
        """`start` behind as much of the end of `context` as there is room for."""
        if not context:
            return tuple(start)
        return (self.start_of_previous, *context[-self.max_context :], *start)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those that are none are left out, and half characters are replaced."""
        return b"".join(self.text[token] for token in tokens if token < self.end_of_text).decode(errors="replace")
