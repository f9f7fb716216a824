"""What clients send under `/api`: the fields of Ollama's own routes.

`object` fields have several forms on the wire; `convert` reads them, because its messages can then name the place.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field

from vmm_server.api.body import Duration, Integer, RepetitionPenalty, Wire
from vmm_server.api.limits import Images, Messages, StopStrings
from vmm_server.api.placement import PlacementFields


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Penalty = Annotated[float, Field(ge=-100, le=100)]


class Options(PlacementFields):
    """`options`: all of Ollama's, those of its older versions that meant to change the answer, and where to run."""

    num_ctx: Integer | None = None
    num_keep: Integer | None = None
    """Tokens that stay at the beginning of a raw prompt that is too long; negative: all of them."""
    num_predict: Integer | None = None
    seed: Integer | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: Integer | None = None
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: StopStrings | None = None

    num_batch: Integer | None = None
    """This and the next five say where and how to run, which is VMM's to know; no answer depends on them."""
    num_gpu: Integer | None = None
    main_gpu: Integer | None = None
    use_mmap: bool | None = None
    num_thread: Integer | None = None
    draft_num_predict: Integer | None = None

    mirostat: object = None
    """This and the next two are of older versions, and without effect: `options.ignored_fields` tells."""
    tfs_z: object = None
    penalize_newline: object = None


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
    truncate: bool | None = None
    """`false` refuses what does not fit the context; else its oldest part is left out."""
    shift: bool | None = None
    """Without effect: an answer ends where the context is full."""
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
    images: Annotated[list[str], Images] | None = None


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
    images: Annotated[list[str], Images] | None = None
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

    messages: Annotated[list[ChatMessage], Messages] | None = None
    tools: list[WireTool] | None = None


class EmbedBody(Wire):
    """Body of `POST /api/embed`."""

    model: str = ""
    input: object = None
    """A string or an array of strings."""
    truncate: bool | None = None
    """`false` refuses inputs that are too long; else their end is cut off."""
    dimensions: Annotated[Integer, Field(ge=0)] | None = None
    """Cut each vector to so many numbers and normalise it again; 0: all of them."""
    keep_alive: Duration = None
    options: Options | None = None


class EmbeddingsBody(Wire):
    """Body of `POST /api/embeddings`."""

    model: str = ""
    prompt: str | None = None
    keep_alive: Duration = None
    options: Options | None = None
