"""Which format a model writes, from its card, its chat template or its special tokens."""

from collections.abc import Collection
from types import MappingProxyType

from vmm_server.prompt.formats.base import ChatFormat, ReasoningFormat, ToolFormat
from vmm_server.prompt.formats.gemma import Gemma
from vmm_server.prompt.formats.granite import Granite
from vmm_server.prompt.formats.hermes import Hermes
from vmm_server.prompt.formats.llama3_json import Llama3Json
from vmm_server.prompt.formats.mistral import Mistral
from vmm_server.prompt.formats.phi import Phi
from vmm_server.prompt.formats.pythonic import Pythonic
from vmm_server.prompt.formats.qwen3_coder import Qwen3Coder
from vmm_server.prompt.formats.reasoning import REASONING_FORMATS

TOOL_FORMATS: MappingProxyType[str, ToolFormat] = MappingProxyType(
    {
        format.name: format
        for format in (
            Hermes(),
            Llama3Json(),
            Pythonic(),
            Mistral(),
            Gemma("gemma", "<start_function_call>", "<end_function_call>", "<escape>"),
            Gemma("gemma4", "<|tool_call>", "<tool_call|>", '<|"|>'),
            Phi(),
            Granite(),
            Qwen3Coder(),
        )
    }
)
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
