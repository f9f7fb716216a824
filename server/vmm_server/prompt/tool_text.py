"""Tools for a model whose template has no place for them: told in words, calls and results written into the turns."""

from collections.abc import Sequence

from vmm_server.prompt.formats.base import ToolFormat
from vmm_server.requests import Message, ToolUse


def with_tools_as_text(messages: Sequence[Message], use: ToolUse | None, format: ToolFormat) -> tuple[Message, ...]:
    """The same conversation in plain turns."""
    return tuple(messages)
