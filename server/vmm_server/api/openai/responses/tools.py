"""`tools` and `tool_choice` as this route has them, flat → `ToolUse`. Pure."""

from collections.abc import Collection
from dataclasses import replace

from pydantic import ValidationError

from vmm_server.api.body import invalid_request
from vmm_server.api.openai.responses.wire import FunctionTool, NamedTool, PromptFields, ToolChoice
from vmm_server.api.openai.tools import CHOICES, Choice, check_no_choice, check_type
from vmm_server.api.tools import make_tool, make_tool_use
from vmm_server.errors import InvalidRequest
from vmm_server.requests import ChatPrompt, GenerateRequest, Tool, ToolUse


def tool_use(wire: PromptFields) -> ToolUse | None:
    """The tools of a request; `None` where there are none, or none may be called.

    Raises `InvalidRequest`, and `UnsupportedParameter` for tools that OpenAI's servers run themselves.
    """
    tools = [_tool(one, f"tools[{index}]") for index, one in enumerate(wire.tools or ())]
    choice = _tool_choice(wire.tool_choice)
    if not tools:
        check_no_choice(choice, "tool_choice", "tools")
    if not tools or choice.none:
        return None
    parallel = wire.parallel_tool_calls is not False
    return make_tool_use(tools, required=choice.required, allowed=choice.allowed, parallel=parallel)


def is_strict(wire: FunctionTool) -> bool:
    """Unlike on the chat route, tools are strict unless they say otherwise."""
    return wire.strict is not False


def hopeful_tools(wire: PromptFields) -> dict[str, str]:
    """Tools that left `strict` out: strict if that can be, else not, as OpenAI has it. Names by the schema's field."""
    tools = enumerate(wire.tools or ())
    return {f"tools[{index}].parameters": tool.name for index, tool in tools if tool.strict is None}


def with_loose_tools(request: GenerateRequest, names: Collection[str]) -> GenerateRequest:
    """The request with these tools not strict."""
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt) or prompt.tools is None:
        return request
    tools = tuple(replace(tool, strict=tool.strict and tool.name not in names) for tool in prompt.tools.tools)
    return replace(request, prompt=replace(prompt, tools=replace(prompt.tools, tools=tools)))


def _tool(wire: FunctionTool, where: str) -> Tool:
    check_type(wire.type, where)
    if not wire.name:
        message = f"{where}.name: field required; on this route it stands beside the type, in no function"
        raise InvalidRequest(message, param=f"{where}.name")
    return make_tool(wire.name, wire.description, wire.parameters, strict=is_strict(wire), where=where)


def _tool_choice(value: object) -> Choice:
    if value is None:
        return CHOICES["auto"]
    if isinstance(value, str):
        if value not in CHOICES:
            raise InvalidRequest(f"tool_choice: {value[:100]!r} is none of {', '.join(CHOICES)}", param="tool_choice")
        return CHOICES[value]
    try:
        wire = ToolChoice.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error, "tool_choice") from error
    if wire.type != "allowed_tools":
        return Choice(required=True, allowed=_named(wire, "tool_choice"))
    for field in ("mode", "tools"):
        if not getattr(wire, field):
            raise InvalidRequest(f"tool_choice.{field}: field required", param=f"tool_choice.{field}")
    allowed: dict[str, str] = {}
    for index, tool in enumerate(wire.tools or ()):
        allowed |= _named(tool, f"tool_choice.tools[{index}]")
    return Choice(required=wire.mode == "required", allowed=allowed)


def _named(wire: NamedTool, where: str) -> dict[str, str]:
    check_type(wire.type, where)
    if wire.name is None:
        raise InvalidRequest(f"{where}.name: field required", param=f"{where}.name")
    return {wire.name: f"{where}.name"}
