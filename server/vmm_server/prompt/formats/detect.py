"""Which format a model writes, from its card, its chat template or its special tokens."""

from collections.abc import Collection
from types import MappingProxyType

from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat, ToolFormat
from vmm_server.prompt.formats.hermes import Hermes
from vmm_server.prompt.formats.reasoning import REASONING_FORMATS

TOOL_FORMATS: MappingProxyType[str, ToolFormat] = MappingProxyType({"hermes": Hermes()})
"""By the name that cards use."""


def find_format(
    template: str | None,
    special_tokens: Collection[str],
    *,
    tool_format: str | None = None,
    reasoning_format: str | None = None,
) -> ChatFormat:
    """How a model writes: its card's words first, then what its template shows, then the tokens it has."""
    template = template or ""
    return ChatFormat(
        TOOL_FORMATS[tool_format or "hermes"],
        _reasoning_format(template, reasoning_format),
        "tools" in template,
    )


def _reasoning_format(template: str, name: str | None) -> ReasoningFormat | None:
    if name is not None:
        return REASONING_FORMATS[name]
    return next((format for format in REASONING_FORMATS.values() if format.end in template), None)
