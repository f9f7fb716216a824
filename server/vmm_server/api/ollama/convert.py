"""Ollama's requests → `GenerateRequest`. Pure. What cannot be honoured is refused by name."""

import json
from collections.abc import Sequence
from dataclasses import replace

from vmm_adapters.types import IMAGE_MARK
from vmm_server.api.ollama.options import context_limit, kept_tokens, sampling_params, unset_params
from vmm_server.api.ollama.schemas import closed
from vmm_server.api.ollama.wire import ChatBody, ChatMessage, GenerateBody, GenerationFields, Options, WireTool
from vmm_server.api.tools import make_tool, make_tool_use
from vmm_server.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from vmm_server.requests import (
    ChatPrompt,
    Constraint,
    GenerateRequest,
    GivenImage,
    InsertPrompt,
    JsonObject,
    JsonSchema,
    Message,
    TextPrompt,
    Tool,
    ToolCall,
    ToolUse,
)

MAX_TOP_LOGPROBS = 20
THINK_LEVELS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
"""Ollama's words for an effort, and the ones that templates know."""
COMPLETION = "{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}"
"""The template of a model that has none, which goes on with what it is given."""
ROLES = ("system", "user", "assistant", "tool")


def generate_request(body: GenerateBody, *, thinks: bool = False) -> GenerateRequest:
    """The generation that `/api/generate` asks for. `thinks`: the model can, and is to unless the body says otherwise.

    Raises `InvalidRequest`, `UnsupportedParameter`.
    """
    _check_shared(body)
    if body.raw or body.suffix:
        _refuse("images", bool(body.images), f"leave out {'raw' if body.raw else 'suffix'}")
        return _request(body, _bare_prompt(body))
    system = (Message("system", body.system),) if body.system else ()
    prompt = ChatPrompt(
        (*system, _with_images(Message("user", body.prompt or ""), body.images, "images")),
        template=body.template or None,
        default_template=COMPLETION,
        context=tuple(body.context or ()),
        param="prompt",
        thinking=_thinking(body, thinks),
        thinking_param="think",
        truncate=body.truncate is not False,
    )
    return _request(body, prompt)


def _bare_prompt(body: GenerateBody) -> TextPrompt | InsertPrompt:
    """A prompt that goes past the chat: as it is, or with a gap to fill."""
    mode = "raw mode" if body.raw else "suffix"
    if body.raw and (body.template or body.system or body.context):
        raise InvalidRequest("raw mode does not support template, system, or context", param="raw")
    if body.system or body.context:
        raise InvalidRequest("suffix does not support system or context", param="suffix")
    _refuse("suffix", bool(body.raw and body.suffix), "leave out raw")
    _refuse("think", bool(body.think), f"with {mode} the answer is the model's text, thinking and all")
    if body.suffix:
        return InsertPrompt(body.prompt or "", body.suffix, template=body.template or None)
    num_keep = kept_tokens(body.options or Options())
    return TextPrompt(body.prompt or "", truncate=body.truncate is not False, num_keep=num_keep)


def chat_request(body: ChatBody, *, thinks: bool = False) -> GenerateRequest:
    """The generation that `/api/chat` asks for. `thinks`: the model can, and is to unless the body says otherwise.

    Raises `InvalidRequest`, `UnsupportedParameter`.
    """
    _check_shared(body)
    messages = tuple(_message(message, index) for index, message in enumerate(body.messages or ()))
    if messages and messages[-1].tool_calls:
        raise InvalidRequest("messages: the last one calls tools; their results have to follow", param="messages")
    prompt = ChatPrompt(
        messages,
        tools=_tool_use(body.tools or ()),
        thinking=_thinking(body, thinks),
        thinking_param="think",
        truncate=body.truncate is not False,
    )
    return _request(body, prompt)


def check_generate_model(body: GenerateBody) -> None:
    """Raise what Ollama raises for a blank model on this route."""
    if not body.model:
        raise ModelNotFound("", hint="name one in model")


def check_chat_model(body: ChatBody) -> None:
    """Raise what Ollama raises for a blank model on this route."""
    if not body.model:
        raise InvalidRequest("model is required", param="model")


def _check_shared(body: GenerationFields) -> None:
    known = isinstance(body.think, str) and body.think in THINK_LEVELS
    if not (body.think is None or isinstance(body.think, bool) or known):
        raise InvalidRequest(f"think: must be true, false or one of {', '.join(THINK_LEVELS)}", param="think")
    if not 0 <= (body.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")


def _refuse(field: str, asked: bool, hint: str | None = None) -> None:
    if asked:
        raise UnsupportedParameter(f"{field} is not supported", param=field, hint=hint)


def _with_images(message: Message, images: Sequence[str] | None, where: str) -> Message:
    """The message with its images before its text, where Ollama puts them."""
    if not images:
        return message
    given = tuple(GivenImage(image, f"{where}[{index}]") for index, image in enumerate(images))
    return replace(message, content=IMAGE_MARK * len(given) + message.content, images=given)


def _thinking(body: GenerationFields, thinks: bool) -> bool | str | None:
    """A model that can think does unless told not to."""
    if isinstance(body.think, str):
        return THINK_LEVELS[body.think]
    return bool(body.think) if body.think is not None else thinks or None


def _tool_use(tools: Sequence[WireTool]) -> ToolUse | None:
    return make_tool_use([_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]) if tools else None


def _tool(wire: WireTool, where: str) -> Tool:
    if wire.type not in (None, "", "function"):
        raise UnsupportedParameter(f"{where}.type: {wire.type!r} is not supported", param=f"{where}.type")
    function, unset = wire.function, (None, "")  # as Go's clients send `properties` and `type` that were not set
    parameters = {name: value for name, value in (function.parameters or {}).items() if value not in unset}
    return make_tool(function.name, function.description, parameters, where=f"{where}.function")


def _message(wire: ChatMessage, index: int) -> Message:
    where = f"messages[{index}]"
    if wire.role not in ROLES:
        raise InvalidRequest(f"{where}.role: must be one of {', '.join(ROLES)}", param=f"{where}.role")
    if wire.images and wire.role != "user":
        raise InvalidRequest(f"{where}.images: only a user shows images", param=f"{where}.images")
    calls = tuple(
        ToolCall(call.function.name, json.dumps(call.function.arguments or {}, ensure_ascii=False), call.id)
        for call in wire.tool_calls or ()
    )
    if calls and wire.role != "assistant":
        raise InvalidRequest(f"{where}.tool_calls: only an assistant calls tools", param=f"{where}.tool_calls")
    message = Message(
        wire.role,
        wire.content or "",
        name=wire.tool_name,
        thinking=wire.thinking,
        tool_calls=calls,
        tool_call_id=wire.tool_call_id,
    )
    return _with_images(message, wire.images, f"{where}.images")


def _request(body: GenerationFields, prompt: TextPrompt | ChatPrompt | InsertPrompt) -> GenerateRequest:
    options = body.options or Options()
    return GenerateRequest(
        model=body.model,
        prompt=prompt,
        sampling=sampling_params(options, num_logprobs=(body.top_logprobs or 0) if body.logprobs else None),
        unset=unset_params(options),
        keep_alive=body.keep_alive,
        constraint=_constraint(body.format),
        num_ctx=context_limit(options),
    )


def _constraint(wanted: object) -> Constraint | None:
    """`format`: empty, `"json"` or a schema."""
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return JsonObject("format")
    if isinstance(wanted, dict):
        return JsonSchema(json.dumps(closed(wanted)), "format")
    text = json.dumps(wanted)[:100]
    raise InvalidRequest(f'format: {text} is neither "json" nor a JSON schema', param="format")
