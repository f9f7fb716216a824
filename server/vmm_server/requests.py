"""What every dialect converts to: one request for text, whatever the wire looked like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Literal

from vmm_adapters.types import SamplingParams


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How long a model stays loaded after its last request."""

    seconds: float | None
    """0: unload once idle. `None`: for ever."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where a model has to run: what a setting, a model or a request asks for by name; `None` leaves it open."""

    device: str | None = None
    """`CPU`, `GPU` (any of its numbers), `GPU.1`; letters of either case."""
    backend: str | None = None
    """An adapter's name (`vmm_adapters.catalog.BACKENDS`)."""
    variant: str | None = None
    """A precision of the model, by its name; `""` is the model as it was installed."""
    needs_logits: bool = False
    """Only a runtime that leaves the choice of each token to us, and so can do all there is."""
    params: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The request field or header that each came in, where it has another name there; errors name it."""

    def over(self, other: "Wanted") -> "Wanted":
        """This one, and `other` for what it leaves open."""
        if other is ANYWHERE:
            return self
        return Wanted(
            self.device or other.device,
            self.backend or other.backend,
            other.variant if self.variant is None else self.variant,
            self.needs_logits or other.needs_logits,
            {**other.params, **self.params},
        )

    def __str__(self) -> str:
        named = {"backend": self.backend, "device": self.device, "variant": self.variant}
        return ", ".join(f"{name} {value}" for name, value in named.items() if value) or "any device"


ANYWHERE = Wanted()


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: str = '{"type": "object", "properties": {}}'
    """JSON schema of the arguments, as JSON text: property order matters to a model, and is kept."""
    strict: bool = False
    """Arguments follow the schema also where the model decides by itself whether it calls."""
    param: str = field(default="tools", compare=False)
    """The request field it came in; errors name it."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request, and what the answer has to do with them."""

    tools: tuple[Tool, ...]
    """At least one. All are told to the model."""
    required: bool = False
    """The answer is a call and nothing else; its grammar sees to that. Otherwise the model decides."""
    allowed: frozenset[str] | None = None
    """Names that may be called (`tool_choice` naming one, `allowed_tools`); `None`: all."""
    parallel: bool = True
    """One answer may hold several calls."""
    param: str = field(default="tools", compare=False)

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        return tuple(tool for tool in self.tools if self.allowed is None or tool.name in self.allowed)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier answer made."""

    name: str
    arguments: str
    """A JSON object, as text."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class GivenImage:
    """An image as it was sent, not decoded."""

    data: str | IO[bytes]
    """A data URI, bare base64, or a URL where those are fetched; or the file itself, at its start."""
    param: str
    """The request field it came in; errors name it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    """With a `vmm_adapters.types.IMAGE_MARK` where each of the images stands."""
    name: str | None = None
    """Of the speaker; of the function, for a `tool` message."""
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an `assistant` message."""
    tool_call_id: str | None = None
    """The call that a `tool` message answers."""
    images: tuple[GivenImage, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, rendered by the model's chat template."""

    messages: tuple[Message, ...]
    template: str | None = None
    """Replaces the model's own for this request: Jinja, or Go's language (`prompt.templates`)."""
    default_template: str | None = None
    """For a model that has no template; without this one it does not chat."""
    template_variables: Mapping[str, object] = field(default_factory=dict)
    context: tuple[int, ...] = ()
    """Token ids of an earlier exchange, put before the rendered messages (Ollama's `context`)."""
    param: str = "messages"
    """The request field the messages came in; errors name it."""
    tools: ToolUse | None = None
    thinking: bool | str | None = None
    """On, off, or an effort (`low`, `medium`, `high`); `None` leaves it to the template. Only `False` is fine for a
    model that cannot think; anything else but `None` is `UnsupportedCapability` there."""
    thinking_param: str = "reasoning_effort"
    truncate: bool | None = None
    """A conversation that does not fit loses its oldest messages (`prompt.truncation`); else it is refused."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text or token ids that go to the model as they are."""

    text: str | tuple[int, ...]
    add_special_tokens: bool = True
    """Let the tokeniser add what it adds to every text (a BOS token, for most)."""
    param: str = "prompt"
    truncate: bool | None = None
    """A text that does not fit loses tokens after its first `num_keep`; else it is refused."""
    num_keep: int | None = 4
    """`None`: all of it stays."""


@dataclass(frozen=True, slots=True)
class InsertPrompt:
    """Text goes between these two, by a template that takes them, else by the model's tokens (`prompt.insert`)."""

    prefix: str
    suffix: str
    param: str = "suffix"
    template: str | None = None
    """In Go's language; replaces the model's own for this request."""


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
    lenient: bool = False
    """What cannot be enforced is left out, as far as it must be. Otherwise it is refused."""


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
class Composite:
    """A Lark grammar of our own making, with a `start` rule, in which `@name` stands for another constraint.

    How tool calls, thinking and an answer's form come together. Not made from a client's grammar text.
    """

    lark: str
    parts: tuple[tuple[str, Constraint], ...]
    """(name, constraint); names are `[a-z][a-z0-9_]*`."""
    param: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. Made by `api.*.convert`, run by `inference.Inference.generate`."""

    model: str
    """As the client wrote it; replies echo it."""
    prompt: ChatPrompt | TextPrompt | InsertPrompt
    sampling: SamplingParams
    unset: frozenset[str] = frozenset()
    """Names of `SamplingParams` fields the client left out: the model's defaults replace those."""
    keep_alive: KeepAlive | None = None
    """`None`: the server's setting."""
    constraint: Constraint | None = None
    """What every answer that ends by itself looks like, after its thinking. A tool call may stand in its place."""
    num_ctx: int | None = None
    """A context limit below the model's own (Ollama's option)."""
    wanted: Wanted = ANYWHERE
    prediction: str | None = None
    """What much of the answer may say: it comes sooner if it does, and is the same if it does not."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to be made vectors of. Run by `embedding.Embeddings.embed`."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    """Texts, or token ids."""
    params: tuple[str, ...]
    """The request field of each input, for messages."""
    token_encoding: Literal["cl100k_base", "model"] = "cl100k_base"
    """What token ids are of: OpenAI's table, which is what its clients use, or the model's own."""
    dimensions: int | None = None
    """Cut the vectors to so many numbers, and normalise them again."""
    max_tokens: int | None = None
    """With `truncate`: tokens kept of an input; `None` is what the model takes."""
    truncate: bool = False
    """Cut what is too long at its end; else it is refused."""
    prompt_name: str | None = None
    """One of the model's prompts, to be put before each text; `None`: its default one."""
    prompt_param: str = "prompt_name"
    """The request field that names it."""
    normalize: bool | None = None
    """Vectors of length 1, or as long as pooling made them; `None`: as the model's authors have it."""
    keep_alive: KeepAlive | None = None
    wanted: Wanted = ANYWHERE


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """Documents to be scored against a query. Run by `embedding.Embeddings.rerank`."""

    model: str
    query: str
    documents: tuple[str, ...]
    truncate: bool = False
    """Cut documents that are too long at their end; else they are refused."""
    max_tokens_per_document: int | None = None
    """With `truncate`: tokens kept of a document at most."""
    keep_alive: KeepAlive | None = None
    wanted: Wanted = ANYWHERE
