"""The tools of a request, whatever the dialect, checked. Pure."""

import json
import re
from collections.abc import Mapping, Sequence

from vmm_server.errors import InvalidRequest
from vmm_server.requests import Tool, ToolUse

MAX_TOOLS = 512
"""In one request. OpenAI takes 128, which agents with several MCP servers run into."""
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
"""OpenAI's names have 64 characters and no dot, Anthropic's 128; those of the Model Context Protocol have dots too."""


def make_tool(
    name: str,
    description: str | None,
    parameters: Mapping[str, object] | None,
    *,
    strict: bool = False,
    where: str,
    schema_field: str = "parameters",
) -> Tool:
    """The tool whose fields stand in `where` (`tools[0].function`).

    Raises `InvalidRequest` naming the field: a name that nobody takes, a schema that is no object's.
    """
    if not _NAME.fullmatch(name):
        param = f"{where}.name"
        raise InvalidRequest(f"{param}: must be 1 to 128 of the characters a-z, A-Z, 0-9, _, - and .", param=param)
    param = f"{where}.{schema_field}"
    schema = dict(parameters or {"properties": {}})
    if "type" not in schema:
        schema = {"type": "object", **schema}
    if schema["type"] != "object":
        raise InvalidRequest(f'{param}.type: must be "object"', param=f"{param}.type")
    if not isinstance(schema.get("properties", {}), dict):
        raise InvalidRequest(f"{param}.properties: must be an object", param=f"{param}.properties")
    return Tool(name, description, json.dumps(schema, ensure_ascii=False), strict, param)


def make_tool_use(
    tools: Sequence[Tool],
    *,
    required: bool = False,
    allowed: Mapping[str, str] | None = None,
    parallel: bool = True,
    param: str = "tools",
) -> ToolUse:
    """The tools together. `allowed` has the request field of each name that may be called; `None`: all may.

    The one tool that has to be called is called once: a small model would go on with the same call.

    Raises `InvalidRequest` for too many, two of one name, and a name that is none of theirs.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{param}: {len(tools)} tools, the limit is {MAX_TOOLS}", param=param)
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise InvalidRequest(f"{param}: two tools have the name {tool.name!r}", param=param)
        names.add(tool.name)
    for name, field in (allowed or {}).items():
        if name not in names:
            raise InvalidRequest(f"{field}: {name!r} is none of {param}", param=field)
    once = required and allowed is not None and len(allowed) == 1
    return ToolUse(
        tuple(tools), required, None if allowed is None else frozenset(allowed), parallel and not once, param
    )
