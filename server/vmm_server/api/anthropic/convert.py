"""Anthropic's requests → `GenerateRequest`. Pure. What cannot be honoured is refused by name."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import IMAGE_MARK, SamplingParams
from vmm_server.api.anthropic.wire import Block, MessagesBody, PromptFields, Thinking, WireMessage, WireTool
from vmm_server.api.body import invalid_request
from vmm_server.api.tools import make_tool, make_tool_use
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import (
    ChatPrompt,
    Constraint,
    GenerateRequest,
    GivenImage,
    JsonSchema,
    Message,
    Tool,
    ToolCall,
    ToolUse,
)

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""`output_config.effort` in the words that templates know."""
_BLOCKS = TypeAdapter(list[Block])
Value = TypeVar("Value")


def message_request(wire: MessagesBody) -> GenerateRequest:
    """The generation that `/v1/messages` asks for. Raises `InvalidRequest`, `UnsupportedParameter`."""
    for field in ("compaction", "container", "inference_geo", "mcp_servers"):
        _refuse(field, bool(getattr(wire, field)))
    _refuse("thread", wire.thread is not None, hint="send the whole conversation in messages")
    if "" in (wire.stop_sequences or ()):
        raise InvalidRequest("stop_sequences: a stop sequence must not be empty", param="stop_sequences")
    sampling = SamplingParams(
        temperature=1.0 if wire.temperature is None else wire.temperature,
        top_p=1.0 if wire.top_p is None else wire.top_p,
        top_k=wire.top_k or None,
        max_tokens=wire.max_tokens,
        stop=tuple(wire.stop_sequences or ()),
    )
    given = {name for name in ("temperature", "top_p", "top_k") if getattr(wire, name) is not None} | {"max_tokens"}
    if wire.stop_sequences is not None:
        given.add("stop")
    unset = frozenset(SamplingDefaults.model_fields.keys() - given)
    return replace(prompt_request(wire), sampling=sampling, unset=unset)


def prompt_request(wire: PromptFields) -> GenerateRequest:
    """A generation with this prompt: what `/v1/messages/count_tokens` counts.

    Raises `InvalidRequest`, `UnsupportedParameter`.
    """
    if not wire.messages:
        raise InvalidRequest("messages: at least one message is required", param="messages")
    thinking, thinking_param = _thinking(wire)
    prompt = ChatPrompt(_messages(wire), tools=_tool_use(wire), thinking=thinking, thinking_param=thinking_param)
    return GenerateRequest(wire.model, prompt, SamplingParams(), constraint=_constraint(wire))


def shows_thinking(thinking: Thinking | None) -> bool:
    """Whether a reply's thinking blocks have their text."""
    return thinking is None or thinking.display != "omitted"


def _refuse(field: str, asked: bool, hint: str | None = None) -> None:
    if asked:
        raise UnsupportedParameter(f"{field} is not supported", param=field, hint=hint)


def _constraint(wire: PromptFields) -> Constraint | None:
    """The form that the answer is to have."""
    if wire.output_config and wire.output_config.format:
        return JsonSchema(json.dumps(wire.output_config.format.schema_), "output_config.format.schema")
    return JsonSchema(json.dumps(wire.output_format.schema_), "output_format.schema") if wire.output_format else None


def _thinking(wire: PromptFields) -> tuple[bool | str | None, str]:
    """`ChatPrompt.thinking`, and the field it came in."""
    config = wire.thinking
    effort = wire.output_config.effort if wire.output_config else None
    if config is not None:
        if config.type not in ("enabled", "disabled", "adaptive"):
            raise UnsupportedParameter(
                f"thinking.type: {config.type!r} is none of enabled, disabled, adaptive", param="thinking.type"
            )
        if config.type == "enabled" and config.budget_tokens is None:
            raise InvalidRequest("thinking.budget_tokens: field required", param="thinking.budget_tokens")
        if config.type == "disabled":
            return False, "thinking"
    if effort is not None:
        return EFFORTS[effort], "output_config.effort"
    return (True if config is not None and config.type == "enabled" else None), "thinking"


def _tool_use(wire: PromptFields) -> ToolUse | None:
    """The tools that the model is told of; none with `tool_choice` `none`."""
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(wire.tools or ())]
    choice = wire.tool_choice
    kind = choice.type if choice else "auto"
    if not tools:
        if kind in ("any", "tool"):
            raise InvalidRequest(f"tool_choice: {kind!r} needs tools", param="tool_choice")
        return None
    allowed = None
    if choice and kind == "tool":
        if choice.name is None:
            raise InvalidRequest("tool_choice.name: field required", param="tool_choice.name")
        allowed = {choice.name: "tool_choice.name"}
    parallel = not (choice and choice.disable_parallel_tool_use)
    use = make_tool_use(tools, required=kind in ("any", "tool"), allowed=allowed, parallel=parallel)
    return None if kind == "none" else use


def _tool(wire: WireTool, where: str) -> Tool:
    if wire.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"{where}.type: {wire.type!r} is not supported",
            param=f"{where}.type",
            hint="only tools with a name and an input_schema of their own are",
        )
    if wire.input_schema is None:
        raise InvalidRequest(f"{where}.input_schema: field required", param=f"{where}.input_schema")
    _refuse(f"{where}.allowed_callers", "direct" not in (wire.allowed_callers or ["direct"]))
    description = wire.description
    if wire.input_examples:
        examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in wire.input_examples)
        description = f"{description or ''}\nExamples of input:\n{examples}".lstrip()
    return make_tool(
        wire.name,
        description,
        wire.input_schema,
        strict=bool(wire.strict),
        where=where,
        schema_field="input_schema",
    )


def _messages(wire: PromptFields) -> tuple[Message, ...]:
    """All turns, `system` first; turns of one role that follow each other are one, as templates want them."""
    turns: list[Message] = []
    if system := _text(wire.system, "system"):
        turns.append(Message("system", system))
    called: dict[str, str] = {}
    for index, message in enumerate(wire.messages):
        for turn in _turns(message, f"messages[{index}].content", called):
            called |= {call.id: call.name for call in turn.tool_calls if call.id}
            turns.append(turn)
    joined = [turn for role, group in groupby(turns, attrgetter("role")) for turn in _joined(role, list(group))]
    if joined[-1].tool_calls:
        raise InvalidRequest(
            "messages: the last one calls tools; a user message with their tool_result blocks has to follow",
            param="messages",
        )
    return tuple(joined)


def _joined(role: str, turns: Sequence[Message]) -> Sequence[Message]:
    """Turns of one role as one; results of tools stay what they are."""
    if role == "tool" or len(turns) == 1:
        return turns
    thinking = _lines([turn.thinking or "" for turn in turns]) or None
    calls = tuple(call for turn in turns for call in turn.tool_calls)
    content = _lines([turn.content for turn in turns])
    images = tuple(image for turn in turns for image in turn.images)
    return [Message(role, content, thinking=thinking, tool_calls=calls, images=images)]


def _lines(texts: Sequence[str]) -> str:
    return "\n".join(text for text in texts if text)


def _turns(wire: WireMessage, where: str, called: dict[str, str]) -> Iterator[Message]:
    """A message of Anthropic's is one or more of ours: each tool result is one."""
    if isinstance(wire.content, str):
        yield Message(wire.role, wire.content)
        return
    blocks = _blocks(wire.content, where)
    if not blocks and wire.role != "assistant":  # an answer may have been empty
        raise InvalidRequest(f"{where}: at least one block is required", param=where)
    if wire.role == "assistant":
        yield _assistant(blocks, where)
    elif wire.role == "system":
        yield Message("system", _text(wire.content, where))
    else:
        for index, block in enumerate(blocks):
            place = f"{where}[{index}]"
            if block.type == "tool_result":
                yield _tool_result(block, place, called)
            elif block.type == "image":
                yield Message("user", IMAGE_MARK, images=(_image(block, place),))
            else:
                yield Message("user", _text_of(block, place))


def _assistant(blocks: Sequence[Block], where: str) -> Message:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if block.type == "thinking":
            thoughts.append(_required(block.thinking, f"{place}.thinking"))
        elif block.type == "tool_use":
            name, call_id = _required(block.name, f"{place}.name"), _required(block.id, f"{place}.id")
            arguments = json.dumps(_required(block.input, f"{place}.input"), ensure_ascii=False)
            calls.append(ToolCall(name, arguments, call_id))
        elif block.type != "redacted_thinking":  # encrypted: nobody but Anthropic can read it
            texts.append(_text_of(block, place))
    return Message("assistant", _lines(texts), thinking=_lines(thoughts) or None, tool_calls=tuple(calls))


def _tool_result(block: Block, where: str, called: dict[str, str]) -> Message:
    call_id = _required(block.tool_use_id, f"{where}.tool_use_id")
    if call_id not in called:
        param = f"{where}.tool_use_id"
        raise InvalidRequest(f"{param}: no tool_use block before it has the id {call_id!r}", param=param)
    text = _text(block.content, f"{where}.content")
    return Message("tool", f"Error: {text}" if block.is_error else text, name=called[call_id], tool_call_id=call_id)


def _text(content: object, where: str) -> str:
    """A string, or text blocks, whose texts become lines."""
    if content is None or isinstance(content, str):
        return content or ""
    return _lines([_text_of(block, f"{where}[{index}]") for index, block in enumerate(_blocks(content, where))])


def _image(block: Block, where: str) -> GivenImage:
    source = _required(block.source, f"{where}.source")
    if source.type == "url":
        return GivenImage(_required(source.url, f"{where}.source.url"), f"{where}.source.url")
    if source.type != "base64":
        param = f"{where}.source.type"
        raise UnsupportedParameter(f"{param}: {source.type[:100]!r} is neither base64 nor url", param=param)
    return GivenImage(_required(source.data, f"{where}.source.data"), f"{where}.source.data")


def _text_of(block: Block, where: str) -> str:
    if block.type != "text":
        raise UnsupportedParameter(f"{where}: {block.type} blocks are not supported here", param=where)
    return _required(block.text, f"{where}.text")


def _blocks(content: object, where: str) -> list[Block]:
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: must be a string or an array of blocks", param=where)
    try:
        return _BLOCKS.validate_python(content)
    except ValidationError as error:
        raise invalid_request(error, where) from error


def _required(value: Value | None, param: str) -> Value:
    if value is None:
        raise InvalidRequest(f"{param}: field required", param=param)
    return value
