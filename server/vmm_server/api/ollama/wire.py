"""What clients send under `/api`: the fields of Ollama's own routes.

`object` fields have several forms on the wire; `convert` reads them, because its messages can then name the place.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field

from vmm_server.api.body import Duration, Integer, RepetitionPenalty, Strings, Wire


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Penalty = Annotated[float, Field(ge=-100, le=100)]


class Options(Wire):
    """`options`: those that change the answer. Ollama's others say where and how to run, which is VMM's to know."""

    num_ctx: Integer | None = None
    num_predict: Integer | None = None
    seed: Integer | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_last_n: Integer | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Strings | None = None


class GenerationFields(Wire):
    """Fields that `/api/generate` and `/api/chat` share."""

    model: str = ""
    stream: bool | None = None
    format: object = None
    """`"json"` or a JSON schema."""
    keep_alive: Duration = None
    options: Options | None = None
    think: object = None
    """`true`, `false` or a level."""
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    debug_render_only: Annotated[bool | None, Field(alias="_debug_render_only")] = None


class GenerateBody(GenerationFields):
    """Body of `POST /api/generate`."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[Integer] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class CalledFunction(Wire):
    """`function` of an element of `tool_calls`."""

    name: str
    arguments: dict[str, object] | None = None


class WireToolCall(Wire):
    """One element of `tool_calls`."""

    id: str | None = None
    function: CalledFunction


class ChatMessage(Wire):
    """One element of `messages`."""

    role: Annotated[str, BeforeValidator(_lower)]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class WireFunction(Wire):
    """`function` of an element of `tools`."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema."""


class WireTool(Wire):
    """One element of `tools`."""

    type: str | None = None
    function: WireFunction


class ChatBody(GenerationFields):
    """Body of `POST /api/chat`."""

    messages: list[ChatMessage] | None = None
    tools: list[WireTool] | None = None


class NamedModel(Wire):
    """Bodies that name a model, under either of two keys."""

    model: str | None = None
    name: str | None = None

    @property
    def reference(self) -> str:
        """What was asked for; empty when neither key was sent."""
        return self.model or self.name or ""


class ShowBody(NamedModel):
    """Body of `POST /api/show`."""

    verbose: bool | None = None


class PullBody(NamedModel):
    """Body of `POST /api/pull`. `insecure` is accepted and does nothing: each source has its own transport."""

    stream: bool | None = None
