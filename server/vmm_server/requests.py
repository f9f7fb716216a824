"""What every dialect converts to: one request for text, whatever the wire looked like."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmm_adapters.types import SamplingParams


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How long a model stays loaded after its last request."""

    seconds: float | None
    """0: unload once idle. `None`: for ever."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, text only."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    name: str | None = None
    thinking: str | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, rendered by the model's chat template."""

    messages: tuple[Message, ...]
    template: str | None = None
    """A Jinja template that replaces the model's own for this request."""
    template_variables: Mapping[str, object] = field(default_factory=dict)
    context: tuple[int, ...] = ()
    """Token ids of an earlier exchange, put before the rendered messages (Ollama's `context`)."""
    param: str = "messages"
    """The request field the messages came in; errors name it."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text or token ids that go to the model as they are."""

    text: str | tuple[int, ...]
    add_special_tokens: bool = True
    """Let the tokeniser add what it adds to every text (a BOS token, for most)."""
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""

    param: str = field(compare=False)
    """The request field a constraint came in; errors name it. So in the four below."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that a schema describes; properties come in the schema's order."""

    schema: str
    """As JSON text."""
    param: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression matches as a whole (syntax of Rust's `regex`, no look-around)."""

    pattern: str
    param: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    choices: tuple[str, ...]
    param: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A context-free grammar: llguidance's Lark, or llama.cpp's GBNF."""

    text: str
    param: str = field(compare=False)


Constraint = JsonObject | JsonSchema | Regex | Choice | Grammar
"""What an answer must look like. Equal ones are compiled once, whatever field they came in."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. Made by `api.*.convert`, run by `inference.Inference.generate`."""

    model: str
    """As the client wrote it; replies echo it."""
    prompt: ChatPrompt | TextPrompt
    sampling: SamplingParams
    unset: frozenset[str] = frozenset()
    """Names of `SamplingParams` fields the client left out: the card's recommendation replaces those."""
    keep_alive: KeepAlive | None = None
    """`None`: the server's setting."""
    constraint: Constraint | None = None
    """What every answer that ends by itself looks like."""
    num_ctx: int | None = None
    """A context limit below the model's own (Ollama's option)."""
