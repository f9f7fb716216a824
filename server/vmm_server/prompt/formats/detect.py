"""Which format a model writes, from its card, its chat template or its special tokens."""

import re
from collections.abc import Collection
from datetime import datetime
from types import MappingProxyType

from vmm_server.errors import InvalidRequest
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
from vmm_server.prompt.templates import Template, read_template
from vmm_server.requests import Message, Tool

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

_IN_TEMPLATE = (
    ("gemma", "<start_function_call>"),
    ("gemma4", "<|tool_call>"),
    ("mistral", "[TOOL_CALLS]"),
    ("qwen3_coder", "<parameter="),
    ("phi", "<|tool|>"),
    ("granite", "<|tool_call|>"),
    ("pythonic", "<|tool_call_start|>"),
    ("pythonic", "func_name1("),
    ("hermes", "<tool_call>"),
    ("llama3_json", "<|python_tag|>"),
    ("llama3_json", '"parameters": '),
)
"""What a template writes, or tells the model to write. The first that is found counts."""

_AMONG_TOKENS = (
    ("gemma", "<start_function_call>"),
    ("gemma4", "<|tool_call>"),
    ("mistral", "[TOOL_CALLS]"),
    ("phi", "<|/tool_call|>"),
    ("granite", "<|tool_call|>"),
    ("pythonic", "<|tool_call_start|>"),
    ("llama3_json", "<|python_tag|>"),
)
_COMMENT = re.compile(r"\{#.*?#\}|\{\{(?:-\s)?/\*.*?\*/", re.DOTALL)
_PROBE = "vmm_probe_tool"
_PROBED_AT = datetime(2000, 1, 2)


def find_format(
    template: Template | str | None,
    special_tokens: Collection[str],
    *,
    tool_format: str | None = None,
    reasoning_format: str | None = None,
    otherwise: ChatFormat | None = None,
) -> ChatFormat:
    """How a model writes: its card's words first, then what its template shows, then the tokens it has.

    `otherwise` says how it writes under another template; it counts where nothing tells under this one.
    """
    source = template if isinstance(template, str | None) else template.source
    shown = _COMMENT.sub("", source or "")
    names = [tool_format] if tool_format is not None else []
    names += [name for name, text in _IN_TEMPLATE if text in shown]
    names += [name for name, text in _AMONG_TOKENS if text in special_tokens]
    tools = TOOL_FORMATS[names[0]] if names else TOOL_FORMATS["hermes"] if otherwise is None else otherwise.tools
    if reasoning_format is not None:
        reasoning: ReasoningFormat | None = REASONING_FORMATS[reasoning_format]
    else:  # tokens tell only where nothing else does: models that do not think share them with those that do
        texts = special_tokens if source is None else shown
        reasoning = next((one for one in REASONING_FORMATS.values() if _is_shown(one, texts)), None)
    if reasoning is None and otherwise is not None:
        reasoning = otherwise.reasoning
    return ChatFormat(tools, reasoning, _tells_of_tools(template))


def _is_shown(format: ReasoningFormat, texts: Collection[str]) -> bool:
    has_markers = format.start in texts or format.end in texts
    return has_markers and (format.answer is None or format.answer[0] in texts)


def _tells_of_tools(template: Template | str | None) -> bool:
    """Does a tool's name come out? Templates read `tools` in many ways, and some only to refuse them."""
    source = template if isinstance(template, str | None) else template.source
    if template is None or source is None or "tools" not in source.lower():
        return False
    try:
        if isinstance(template, str):
            template = read_template(template, bos_token="<s>", eos_token="</s>")
        prompt = template.render([Message("user", "x")], tools=[Tool(_PROBE, "x")], now=_PROBED_AT, variables={})
    except InvalidRequest:
        return False
    return _PROBE in prompt
