"""A request for a response → `GenerateRequest`. Pure. What cannot be honoured is refused by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmm_adapters.types import SamplingParams
from vmm_server.api.openai.convert import generate_request, thinking
from vmm_server.api.openai.responses.tools import tool_use
from vmm_server.api.openai.responses.wire import CountRequest, PromptFields, Reasoning, ResponseRequest, TextFormat
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, Constraint, GenerateRequest, JsonObject, JsonSchema, Message

LOGPROBS = "message.output_text.logprobs"
INCLUDES = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""Values of `include`. Thinking is there in the clear anyway, and what the others name cannot be in an answer."""

MOVED: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Fields of other routes, and what they are called on this one."""


def response_request(wire: ResponseRequest, messages: Sequence[Message]) -> GenerateRequest:
    """The generation that a request asks for, of a whole conversation.

    Raises `InvalidRequest`, `UnsupportedParameter`.
    """
    request = generate_request(wire, _prompt(wire, messages), wire.max_output_tokens, _logprobs(wire))
    form = _form(wire.text.format) if wire.text and wire.text.format else None
    if form is None:
        return request
    if request.constraint is not None:
        other = request.constraint.param
        raise InvalidRequest(f"{other}: an answer has one form, and text.format is there too", param=other)
    return replace(request, constraint=form)


def count_request(wire: CountRequest, messages: Sequence[Message]) -> GenerateRequest:
    """A request whose prompt is counted and never run. Raises as `response_request`."""
    return GenerateRequest(wire.model, _prompt(wire, messages), SamplingParams())


def refuse_unsupported(wire: PromptFields) -> None:
    """Raise `InvalidRequest` or `UnsupportedParameter` for the first field that asks for what is not to be had."""
    _refuse_prompt_fields(wire)
    if isinstance(wire, ResponseRequest):
        _refuse_response_fields(wire)
    if isinstance(wire, CountRequest):
        _refuse("personality", wire.personality is not None)


def wants_summary(reasoning: Reasoning | None) -> bool:
    """The thinking goes by the name of a summary, which is where clients that ask for one look."""
    return reasoning is not None and (reasoning.summary or reasoning.generate_summary) is not None


def _prompt(wire: PromptFields, messages: Sequence[Message]) -> ChatPrompt:
    return ChatPrompt(
        tuple(messages),
        template_variables=wire.chat_template_kwargs or {},
        param="input",
        tools=tool_use(wire),
        thinking=thinking(wire.reasoning.effort if wire.reasoning else None, "reasoning.effort"),
        thinking_param="reasoning.effort",
        truncate=wire.truncation == "auto",
    )


def _logprobs(wire: ResponseRequest) -> int | None:
    asked = wire.top_logprobs or LOGPROBS in (wire.include or ())
    return (wire.top_logprobs or 0) if asked else None


def _form(wire: TextFormat) -> Constraint | None:
    match wire.type:
        case "text":
            return None
        case "json_object":
            return JsonObject("text.format")
        case "json_schema":
            for field, value in (("name", wire.name), ("schema", wire.schema_)):
                if value is None:
                    raise InvalidRequest(f"text.format.{field}: field required", param=f"text.format.{field}")
            return JsonSchema(json.dumps(wire.schema_), "text.format.schema")
        case other:
            param = "text.format.type"
            raise UnsupportedParameter(
                f"{param}: {other[:100]!r} is none of text, json_object, json_schema", param=param
            )


def _refuse(param: str, asked: bool, reason: str = "is not supported", hint: str | None = None) -> None:
    if asked:
        raise UnsupportedParameter(f"{param} {reason}", param=param, hint=hint)


def _refuse_prompt_fields(wire: PromptFields) -> None:
    _refuse("conversation", wire.conversation is not None, hint="previous_response_id goes on with a conversation")
    if wire.text is not None and wire.text.verbosity not in (None, "medium"):
        _refuse("text.verbosity", True, "can be medium, the default, only")
    if wire.reasoning is not None:
        summary = wire.reasoning.summary or wire.reasoning.generate_summary
        _refuse("reasoning.summary", summary == "concise", "concise is not supported: nothing here shortens thinking")
        _refuse("reasoning.context", wire.reasoning.context not in (None, "auto"))
        _refuse("reasoning.mode", wire.reasoning.mode not in (None, "standard"))


def _refuse_response_fields(wire: ResponseRequest) -> None:
    for field, name in MOVED.items():
        _refuse(field, getattr(wire, field) is not None, f"is called {name} on this route")
    _refuse("background", bool(wire.background))
    _refuse("prompt", wire.prompt is not None)
    _refuse("moderation", wire.moderation is not None)
    _refuse("context_management", bool(wire.context_management))
    _refuse("n", wire.n not in (None, 1), "can be 1 only on this route")
    prewarms = wire.prompt_cache_options is not None and wire.prompt_cache_options.prewarm
    _refuse("prompt_cache_options.prewarm", bool(prewarms))
    obfuscated = wire.stream_options is not None and wire.stream_options.include_obfuscation
    _refuse("stream_options.include_obfuscation", bool(obfuscated))
    for index, value in enumerate(wire.include or ()):
        if value not in INCLUDES:
            param = f"include[{index}]"
            raise InvalidRequest(f"{param}: {value[:100]!r} is none of {', '.join(INCLUDES)}", param=param)
