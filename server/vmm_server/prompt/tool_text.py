"""Tools where a template has no place for them: told to the model in words, calls and results written into the turns.

Models learned their syntax for calls in prompts of this kind: an introduction, the functions as JSON, how a call is
written. The words are ours; the syntax is the family's, so that its parser reads what comes back.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from vmm_server.prompt.formats.base import ToolFormat
from vmm_server.prompt.formats.hermes import Hermes
from vmm_server.prompt.turns import tool_schemas
from vmm_server.requests import Message, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class _Syntax:
    example: str
    write: Callable[[Sequence[ToolCall]], str]


def _in_tags(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"<tool_call>\n{_as_object(call, 'arguments')}\n</tool_call>" for call in calls)


def _in_python(calls: Sequence[ToolCall]) -> str:
    return f"[{', '.join(map(_as_python, calls))}]"


def _as_object(call: ToolCall, key: str) -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "{key}": {call.arguments}}}'


def _as_python(call: ToolCall) -> str:
    value: Any = json.loads(call.arguments)
    if not isinstance(value, dict):
        value = {}
    return f"{call.name}({', '.join(f'{name}={argument!r}' for name, argument in value.items())})"


_SYNTAXES = MappingProxyType(
    {
        "hermes": _Syntax('<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call>', _in_tags),
        "pythonic": _Syntax("[name(argument=value, …)]", _in_python),
        "llama3_json": _Syntax(
            '{"name": "…", "parameters": {…}}',
            lambda calls: "; ".join(_as_object(call, "parameters") for call in calls),
        ),
    }
)


def textual_format(format: ToolFormat) -> ToolFormat:
    """The format to teach in words: the family's own, or Hermes', which most models have seen."""
    return format if format.name in _SYNTAXES else Hermes()


def with_tools_as_text(
    messages: Sequence[Message], tools: Sequence[Tool], format: ToolFormat, *, takes_system: bool
) -> list[Message]:
    """The conversation in plain system, user and assistant turns. `format` is a `textual_format`.

    The tools are told at the end of the system message, or at the beginning of the first user message where the
    template takes no system message. A result comes as part of a user turn, so that the roles go on alternating.
    """
    told = list(_with_results_as_text(with_calls_as_text(messages, format)))
    if not tools:
        return told
    role = "system" if takes_system else "user"
    words = _introduction(tools, format)
    if told and told[0].role == role:
        content = told[0].content
        both = (content, words) if takes_system else (words, content)
        return [replace(told[0], content="\n\n".join(filter(None, both))), *told[1:]]
    return [Message(role, words), *told]


def with_calls_as_text(messages: Sequence[Message], format: ToolFormat) -> Iterator[Message]:
    """The calls of earlier answers, written as the model would write them."""
    write = _SYNTAXES[format.name if format.name in _SYNTAXES else "hermes"].write
    for message in messages:
        if message.tool_calls:
            content = "\n".join(filter(None, (message.content, write(message.tool_calls))))
            message = replace(message, content=content, tool_calls=())
        yield message


def _with_results_as_text(messages: Iterator[Message]) -> Iterator[Message]:
    """Results that follow each other, and what the user says next, are one turn."""
    waiting: list[str] = []
    for message in messages:
        if message.role == "tool":
            waiting.append(f"<tool_response>\n{message.content}\n</tool_response>")
            continue
        if waiting and message.role == "user":
            message = replace(message, content="\n".join((*waiting, message.content)))
        elif waiting:
            yield Message("user", "\n".join(waiting))
        waiting = []
        yield message
    if waiting:
        yield Message("user", "\n".join(waiting))


def _introduction(tools: Sequence[Tool], format: ToolFormat) -> str:
    functions = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in tool_schemas(tools))
    return (
        "You can call functions. Each line describes one as JSON, with a schema of its arguments:\n"
        f"<tools>\n{functions}\n</tools>\n\n"
        "When a function helps with what the user asks, answer with a call of it and nothing else, written so:\n"
        f"{_SYNTAXES[format.name].example}\n"
        "Its result comes in the next message, in <tool_response>. When no function helps, answer in plain words."
    )
