"""What clients send to `/v1/messages`, as Anthropic's API has it.

`object` fields have several forms on the wire; `convert` reads them, because its messages can then name the place.
Fields on how Anthropic runs or bills a request (`cache_control`, `metadata`, `service_tier`, `speed`) change no answer
here, and are not read.
"""

from typing import Annotated, Literal

from pydantic import Field

from vmm_server.api.body import Integer, Wire
from vmm_server.api.limits import Messages, StopSequences
from vmm_server.api.placement import PlacementFields

TokenCount = Annotated[Integer, Field(ge=0)]


class Source(Wire):
    """`source` of an `image` block."""

    type: str
    media_type: str | None = None
    """Ignored: the bytes tell."""
    data: str | None = None
    url: str | None = None


class Block(Wire):
    """One element of `content` or `system`; which fields it has to have is a matter of its `type`."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, object] | None = None
    tool_use_id: str | None = None
    content: object = None
    """Of a `tool_result`: a string or blocks."""
    is_error: bool | None = None
    source: Source | None = None


class WireMessage(Wire):
    """One element of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: object
    """A string or an array of blocks."""


class WireTool(Wire):
    """One element of `tools`."""

    type: str | None = None
    name: str = ""
    description: str | None = None
    input_schema: dict[str, object] | None = None
    strict: bool | None = None
    input_examples: list[dict[str, object]] | None = None
    allowed_callers: list[str] | None = None


class ToolChoice(Wire):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Wire):
    """`thinking`."""

    type: str
    budget_tokens: TokenCount | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Wire):
    """`output_config.format`."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, object], Field(alias="schema")]


class OutputConfig(Wire):
    """`output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class PromptFields(PlacementFields):
    """What decides on the prompt: the body of `POST /v1/messages/count_tokens`."""

    model: str
    messages: Annotated[list[WireMessage], Messages]
    system: object = None
    """A string or text blocks."""
    tools: list[WireTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """What betas called `output_config.format`."""


class MessagesBody(PromptFields):
    """Body of `POST /v1/messages`."""

    max_tokens: TokenCount
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TokenCount | None = None
    stop_sequences: StopSequences | None = None
    compaction: object = None
    container: object = None
    inference_geo: object = None
    mcp_servers: object = None
    thread: object = None
