"""How models mark their thinking."""

from types import MappingProxyType

from vmm_server.prompt.formats.base import ReasoningFormat

REASONING_FORMATS = MappingProxyType(
    {
        # Granite 3.3, by its template; 3.2 is the other one
        "granite_tags": ReasoningFormat("<think>", "</think>", answer=("<response>", "</response>")),
        # DeepSeek R1 and its distillations, Qwen 3, QwQ, SmolLM 3, Phi-4-reasoning, …
        "think": ReasoningFormat("<think>", "</think>"),
        "magistral": ReasoningFormat("[THINK]", "[/THINK]"),
        "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
        "gemma4": ReasoningFormat("<|channel>thought", "<channel|>"),
        "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    }
)
"""By the name that cards use."""
