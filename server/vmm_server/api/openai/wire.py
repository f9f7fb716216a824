"""What clients send under `/v1`: OpenAI's fields, and the extra ones that local servers' clients use.

`object` fields have several forms on the wire; `convert` reads them, because its messages can then name the place.
"""

from typing import Annotated, Literal

from pydantic import Field

from vmm_server.api.body import Duration, Integer, RepetitionPenalty, Wire
from vmm_server.api.limits import LogitBias, Messages, StopStrings, StopTokens
from vmm_server.api.placement import PlacementFields

Penalty = Annotated[float, Field(ge=-2, le=2)]
Positive = Annotated[Integer, Field(ge=1)]
MAX_CHOICES = 16
"""Generations of one prompt in a request."""
NumChoices = Annotated[Integer, Field(ge=1, le=MAX_CHOICES)]


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool | None = None


class RunnerOptions(PlacementFields):
    """`options`: those of Ollama's that clients of this route ask for."""

    num_ctx: Positive | None = None


class JsonSchemaFormat(Wire):
    """`response_format.json_schema`. `strict` or not, the answer follows the schema."""

    schema_: Annotated[dict[str, object], Field(alias="schema")]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """`response_format`."""

    type: str
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    """Beside `json_object`, as llama.cpp's clients write it."""


class StructuredOutputs(Wire):
    """`structured_outputs`, vLLM's field: one of the first five."""

    json_: Annotated[dict[str, object] | str | None, Field(alias="json")] = None
    """A schema, or its text."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: object = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class SamplingFields(PlacementFields):
    """Fields that both routes share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Integer | None = None
    stop: StopStrings | None = None
    max_tokens: Positive | None = None
    min_tokens: Annotated[Integer, Field(ge=0)] | None = None
    stop_token_ids: StopTokens | None = None
    ignore_eos: bool | None = None
    n: NumChoices | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, object] | str | None = None
    """This and the three below: what vLLM called `structured_outputs` before."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    keep_alive: Duration = None
    options: RunnerOptions | None = None


class FunctionDefinition(Wire):
    """`tools[].function`, and one element of the older `functions`."""

    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None
    """A JSON schema. None: there are no arguments."""
    strict: bool | None = None


class ToolDefinition(Wire):
    """One element of `tools`."""

    type: str
    function: FunctionDefinition | None = None


class FunctionName(Wire):
    """A function, by its name."""

    name: str


class NamedTool(Wire):
    """A tool, by its name."""

    type: str
    function: FunctionName | None = None


class AllowedTools(Wire):
    """`tool_choice.allowed_tools`."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class ToolChoice(NamedTool):
    """`tool_choice`, where it is an object."""

    allowed_tools: AllowedTools | None = None


class FunctionCall(Wire):
    """What an earlier answer called: `messages[].tool_calls[].function`, or the older `messages[].function_call`."""

    name: str
    arguments: str


class MessageToolCall(Wire):
    """One element of `messages[].tool_calls`."""

    type: str = "function"
    id: str | None = None
    function: FunctionCall | None = None


class ChatMessage(Wire):
    """One element of `messages`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: object = None
    """A string, `null` (assistant only) or an array of parts."""
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    audio: object = None


class ImageURL(Wire):
    """`image_url` of a part."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Ignored: how much of an image a model sees is a matter of the model."""


class ContentPart(Wire):
    """One element of an array `content`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageURL | None = None


class Prediction(Wire):
    """`prediction`: what much of the answer is expected to say."""

    type: Literal["content"]
    content: object
    """A string, or an array of text parts."""


class ChatCompletionRequest(SamplingFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Messages]
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: object = None
    """`none`, `auto`, `required` or a `ToolChoice`."""
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None
    """This and `function_call` (`none`, `auto` or a `FunctionName`): what OpenAI called tools before."""
    function_call: object = None
    prediction: Prediction | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: object = None
    web_search_options: object = None
    moderation: object = None
    chat_template_kwargs: dict[str, object] | None = None


class CompletionRequest(SamplingFields):
    """Body of `POST /v1/completions`."""

    prompt: object = None
    """A string, token ids, or an array of either."""
    logprobs: Annotated[Integer, Field(ge=0, le=5)] | None = None
    max_tokens: Annotated[Integer, Field(ge=0)] | None = None
    best_of: NumChoices | None = None
    echo: bool | None = None
    suffix: str | None = None
