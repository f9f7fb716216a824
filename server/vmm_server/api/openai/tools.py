"""`tools` and `tool_choice`, and the older `functions` and `function_call` → `ToolUse`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from vmm_server.api.body import Wire, invalid_request
from vmm_server.api.openai.wire import (
    ChatCompletionRequest,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    ToolChoice,
    ToolDefinition,
)
from vmm_server.api.tools import make_tool, make_tool_use
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import Tool, ToolUse

Shape = TypeVar("Shape", bound=Wire)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request says of its tools."""

    none: bool = False
    required: bool = False
    allowed: Mapping[str, str] | None = None
    """Names that may be called, each with the request field that says so; `None`: all."""


CHOICES = {"none": Choice(none=True), "auto": Choice(), "required": Choice(required=True)}
"""What the words of `tool_choice` say."""


def tool_use(wire: ChatCompletionRequest) -> ToolUse | None:
    """The tools of a request; `None` where there are none, or none may be called.

    Raises `InvalidRequest`, and `UnsupportedParameter` for tools that are no functions.
    """
    if wire.functions and wire.tools:
        raise InvalidRequest("functions: the older name of tools, which are there too", param="functions")
    choice, older = _tool_choice(wire.tool_choice), _function_call(wire.function_call)
    if not wire.tools:
        check_no_choice(choice, "tool_choice", "tools")
    if not wire.functions:
        check_no_choice(older, "function_call", "functions")
    if wire.tools and not choice.none:
        tools = [_tool(one, f"tools[{index}]") for index, one in enumerate(wire.tools)]
        return _together(tools, choice, parallel=wire.parallel_tool_calls is not False, param="tools")
    if wire.functions and not older.none:
        tools = [_function(one, f"functions[{index}]") for index, one in enumerate(wire.functions)]
        return _together(tools, older, parallel=False, param="functions")
    return None


def _together(tools: list[Tool], choice: Choice, *, parallel: bool, param: str) -> ToolUse:
    return make_tool_use(tools, required=choice.required, allowed=choice.allowed, parallel=parallel, param=param)


def check_no_choice(choice: Choice, field: str, tools: str) -> None:
    """Raise `InvalidRequest` for a choice where there are no tools."""
    if choice.required or choice.allowed is not None:
        raise InvalidRequest(f"{field}: there are no {tools} to choose from", param=field)


def _tool(wire: ToolDefinition, where: str) -> Tool:
    check_type(wire.type, where)
    if wire.function is None:
        raise InvalidRequest(f"{where}.function: field required", param=f"{where}.function")
    return _function(wire.function, f"{where}.function")


def _function(wire: FunctionDefinition, where: str) -> Tool:
    return make_tool(wire.name, wire.description, wire.parameters, strict=bool(wire.strict), where=where)


def _tool_choice(value: object) -> Choice:
    if value is None or isinstance(value, str):
        return _word(value, "tool_choice")
    wire = _parsed(value, ToolChoice, "tool_choice")
    if wire.type != "allowed_tools":
        return Choice(required=True, allowed=_named(wire, "tool_choice"))
    if wire.allowed_tools is None:
        raise InvalidRequest("tool_choice.allowed_tools: field required", param="tool_choice.allowed_tools")
    allowed: dict[str, str] = {}
    for index, tool in enumerate(wire.allowed_tools.tools):
        allowed |= _named(tool, f"tool_choice.allowed_tools.tools[{index}]")
    return Choice(required=wire.allowed_tools.mode == "required", allowed=allowed)


def _function_call(value: object) -> Choice:
    if value is None or isinstance(value, str):
        return _word(value, "function_call")
    return Choice(required=True, allowed={_parsed(value, FunctionName, "function_call").name: "function_call.name"})


def _word(value: str | None, field: str) -> Choice:
    if value is None:
        return CHOICES["auto"]
    words = [word for word in CHOICES if field == "tool_choice" or word != "required"]
    if value not in words:
        raise InvalidRequest(f"{field}: {value[:100]!r} is none of {', '.join(words)}", param=field)
    return CHOICES[value]


def _named(wire: NamedTool, where: str) -> dict[str, str]:
    check_type(wire.type, where)
    if wire.function is None:
        raise InvalidRequest(f"{where}.function: field required", param=f"{where}.function")
    return {wire.function.name: f"{where}.function.name"}


def check_type(kind: str, where: str) -> None:
    """Raise `UnsupportedParameter` for a tool that is no function."""
    if kind != "function":
        param = f"{where}.type"
        raise UnsupportedParameter(f"{param}: {kind[:100]!r} is not supported, only functions are", param=param)


def _parsed(value: object, shape: type[Shape], where: str) -> Shape:
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error, where) from error
