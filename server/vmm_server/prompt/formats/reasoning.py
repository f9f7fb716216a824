"""How models mark their thinking."""

from types import MappingProxyType

from vmm_server.prompt.formats.base import ReasoningFormat

REASONING_FORMATS = MappingProxyType(
    {
        # DeepSeek R1 and its distillations, Qwen 3, QwQ, SmolLM 3, Phi-4-reasoning, Granite 3.3, …
        "think": ReasoningFormat("<think>", "</think>"),
        "magistral": ReasoningFormat("[THINK]", "[/THINK]"),
        "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
        "gemma4": ReasoningFormat("<|channel>thought", "<channel|>"),
        "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    }
)
"""By the name that cards use."""
