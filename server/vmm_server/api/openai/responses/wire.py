"""What clients send to `/v1/responses`.

The first half of `ResponseRequest` is what makes the prompt: counting its tokens takes no more. `object` fields have
several forms on the wire, or are there to be refused by name.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from vmm_server.api.body import Integer, Wire
from vmm_server.api.openai.wire import FunctionDefinition, SamplingFields
from vmm_server.api.openai.wire import StreamOptions as CommonStreamOptions
from vmm_server.api.placement import PlacementFields

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Identifier = Annotated[str, StringConstraints(max_length=512)]


class Part(Wire):
    """One element of a message's `content`, a call's `output`, or a reasoning item's `summary` or `content`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    """Of an image: repeated, and without effect."""


class InputItem(Wire):
    """One element of `input`; which fields it has to have is a matter of its `type`."""

    type: str | None = None
    """Left out: a message, or an `item_reference` when there is nothing but an id."""
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: object = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: object = None
    summary: list[Part] | None = None


class FunctionTool(FunctionDefinition):
    """One element of `tools`: flat, and strict unless it says otherwise."""

    name: str = ""
    type: str


class NamedTool(Wire):
    """A tool, by its name."""

    type: str
    name: str | None = None


class ToolChoice(NamedTool):
    """`tool_choice`, where it is an object."""

    mode: Literal["auto", "required"] | None = None
    tools: list[NamedTool] | None = None


class Reasoning(Wire):
    """`reasoning`."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of `summary`."""
    context: str | None = None
    mode: str | None = None


class TextFormat(Wire):
    """`text.format`."""

    type: str
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Text(Wire):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(CommonStreamOptions):
    """`stream_options`."""

    include_obfuscation: bool | None = None


class PromptCacheOptions(Wire):
    """`prompt_cache_options`: the one that would change the answer."""

    prewarm: bool | None = None


class PromptFields(PlacementFields):
    """What the prompt is made of. `model` stands in the request that has these."""

    input: object = None
    """A string or an array of items."""
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: object = None
    """`none`, `auto`, `required` or a `ToolChoice`."""
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: object = None
    chat_template_kwargs: dict[str, object] | None = None


class CountRequest(PromptFields):
    """Body of `POST /v1/responses/input_tokens`."""

    model: str
    personality: str | None = None


class ResponseRequest(PromptFields, SamplingFields):
    """Body of `POST /v1/responses`."""

    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    user: Identifier | None = None
    safety_identifier: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    max_tool_calls: Annotated[Integer, Field(ge=1)] | None = None
    background: bool | None = None
    prompt: object = None
    moderation: object = None
    context_management: object = None
    messages: object = None
    """This and the two below: what other routes call `input`, `max_output_tokens` and `reasoning.effort`."""
    max_completion_tokens: object = None
    reasoning_effort: object = None
