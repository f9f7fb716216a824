"""Which format a model writes, from its card, its chat template or its special tokens."""

import re
from collections.abc import Collection
from datetime import datetime
from types import MappingProxyType

from vmm_server.errors import InvalidRequest
from vmm_server.prompt.chat import ChatTemplate
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
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_PROBE = "vmm_probe_tool"


def find_format(
    template: str | None,
    special_tokens: Collection[str],
    *,
    tool_format: str | None = None,
    reasoning_format: str | None = None,
) -> ChatFormat:
    """How a model writes: its card's words first, then what its template shows, then the tokens it has."""
    shown = _COMMENT.sub("", template or "")
    names = [tool_format] if tool_format is not None else []
    names += [name for name, text in _IN_TEMPLATE if text in shown]
    names += [name for name, text in _AMONG_TOKENS if text in special_tokens]
    if reasoning_format is not None:
        reasoning: ReasoningFormat | None = REASONING_FORMATS[reasoning_format]
    else:  # tokens tell only where nothing else does: models that do not think share them with those that do
        texts = special_tokens if template is None else shown
        reasoning = next((one for one in REASONING_FORMATS.values() if _is_shown(one, texts)), None)
    return ChatFormat(TOOL_FORMATS[names[0] if names else "hermes"], reasoning, _tells_of_tools(template))


def _is_shown(format: ReasoningFormat, texts: Collection[str]) -> bool:
    has_markers = format.start in texts or format.end in texts
    return has_markers and (format.answer is None or format.answer[0] in texts)


def _tells_of_tools(template: str | None) -> bool:
    """Does a tool's name come out? Templates read `tools` in many ways, and some only to refuse them."""
    if template is None or "tools" not in template:
        return False
    try:
        prompt = ChatTemplate(template, bos_token="<s>", eos_token="</s>").render(
            [Message("user", "x")], tools=[Tool(_PROBE, "x")], now=datetime.min, variables={}
        )
    except InvalidRequest:
        return False
    return _PROBE in prompt
