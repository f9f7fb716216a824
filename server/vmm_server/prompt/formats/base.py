"""How a family of models writes what is not plain text: its thinking, and its tool calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vmm_server.requests import Composite, Tool, ToolUse

Spell = Callable[[str], str]
"""A literal text as Lark: `<[id]>` for a special token of the model, a quoted string for anything else."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Thinking stands between two texts, at the beginning of an answer."""

    start: str
    """`<think>`. The model writes it, or the template has written it at the end of the prompt."""
    end: str
    answer: tuple[str, str] | None = None
    """What the model writes around the text that follows, which is not shown either."""


@dataclass(frozen=True, slots=True)
class Text:
    """Content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its name is known."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next characters of the last call's arguments, a JSON object as text."""

    text: str


Part = Text | CallStart | Arguments


class ToolParser(Protocol):
    """Reads one answer as it comes. What could be the beginning of a call is held back.

    However the text was cut into pieces, the parts joined are the same. What looks like a call and is none (broken
    JSON, an unknown name) comes out as the text it was: nothing is lost.
    """

    def push(self, text: str) -> Sequence[Part]:
        """What has become certain."""
        ...

    def finish(self) -> Sequence[Part]:
        """What was held back, when nothing follows."""
        ...


class ToolFormat(Protocol):
    """One family's way to write tool calls."""

    name: str
    """As cards spell it: `hermes`, `llama3_json`, `pythonic`, `mistral`, …"""
    special_tokens: tuple[str, ...]
    """Texts of special tokens that begin, part or end calls: the detokeniser must show them to the parser."""

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer. `tools` are those that may be called."""
        ...

    def grammar(self, use: ToolUse, spell: Spell) -> Composite:
        """One or several calls of `use.callable` (one, unless `use.parallel`), and nothing else.

        The first item of its rule `start`, which is its first line, is what `start` says.
        """
        ...

    def start(self, spell: Spell) -> str:
        """How a call begins, as Lark: what a free text may not hold if a strict call is to follow it."""
        ...


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How one model writes."""

    tools: ToolFormat
    reasoning: ReasoningFormat | None
    """`None`: it does not think."""
    tools_in_template: bool
    """The template tells the model of its tools. Otherwise the system message has to (`prompt.chat`)."""
