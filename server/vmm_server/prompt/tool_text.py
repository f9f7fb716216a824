"""Tools where a template has no place for them: told to the model in words, calls and results written into the turns.

Models learned their syntax for calls in prompts of this kind: an introduction, the functions as JSON, how a call is
written. The words are ours; the syntax is the family's, so that its parser reads what comes back.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from vmm_server.prompt.formats.base import ToolFormat
from vmm_server.prompt.formats.hermes import Hermes
from vmm_server.prompt.turns import tool_schemas
from vmm_server.requests import Message, Tool, ToolCall


def _in_tags(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"<tool_call>\n{_as_object(call)}\n</tool_call>" for call in calls)


def _in_python(calls: Sequence[ToolCall]) -> str:
    return f"[{', '.join(map(_as_python, calls))}]"


def _in_array(calls: Sequence[ToolCall]) -> str:
    return f"[{', '.join(map(_as_object, calls))}]"


def _bare(calls: Sequence[ToolCall]) -> str:
    return "; ".join(_as_object(call, "parameters") for call in calls)


def _as_object(call: ToolCall, key: str = "arguments") -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "{key}": {call.arguments}}}'


def _as_python(call: ToolCall) -> str:
    try:
        members = json.loads(call.arguments).items()
    except (ValueError, AttributeError, RecursionError):  # what a model wrote, or was cut off from writing
        return f"{call.name}({call.arguments})"
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in members)})"


_WRITERS: Mapping[str, Callable[[Sequence[ToolCall]], str]] = MappingProxyType(
    {
        "hermes": _in_tags,
        "pythonic": _in_python,
        "llama3_json": _bare,
        "mistral": lambda calls: f"[TOOL_CALLS]{_in_array(calls)}",
        "granite": lambda calls: f"<|tool_call|>{_in_array(calls)}",
        "phi": lambda calls: f"<|tool_call|>{_in_array(calls)}<|/tool_call|>",
    }
)
_EXAMPLES = MappingProxyType(
    {
        "hermes": '<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call>',
        "pythonic": "[name(argument=value, …)]",
        "llama3_json": '{"name": "…", "parameters": {…}}',
    }
)
"""What can be taught in words; the others need tokens that a model knows or does not."""


def textual_format(format: ToolFormat) -> ToolFormat:
    """The format to teach in words: the family's own, or Hermes', which most models have seen."""
    return format if format.name in _EXAMPLES else Hermes()


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
    write = _WRITERS.get(format.name, _in_tags)
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
        f"{_EXAMPLES[format.name]}\n"
        "Its result comes in the next message, in <tool_response>. When no function helps, answer in plain words."
    )
