"""What an importer says about the model folder that it wrote or found."""

from collections.abc import Container
from dataclasses import dataclass

from vmm_adapters.card import EmbeddingRecipe, VisionRecipe
from vmm_server.prompt.formats.detect import find_format
from vmm_server.prompt.insert import can_insert


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A folder that can be run, in the words of `/api/show`."""

    family: str
    """GGUF's architecture name: llama, qwen2, …"""
    parameter_count: int | None
    parameter_size: str
    """As people write it: `135M`, `1.1B`; `unknown` where it cannot be told."""
    quantization: str
    """As GGUF names it (`Q4_1`, `F16`), or what most weights of an ONNX or IR folder are stored as (`int4`)."""
    context_length: int
    """Positions that the folder's files can serve."""
    embedding_length: int | None
    capabilities: tuple[str, ...]
    """In Ollama's words: completion, and tools and thinking as the chat template shows; or embedding, or rerank."""
    has_chat_template: bool
    license: str | None
    """As the file has it, an SPDX identifier as a rule."""
    name: str | None
    adapter: str = "openvino"
    """See `InstalledModel.adapter`."""
    embedding: EmbeddingRecipe | None = None
    """What the folder says of how its encoder makes a vector; `None` where it is no encoder or does not say."""
    vision: VisionRecipe | None = None
    """What the folder says of how pictures are put in and answers are read, of a model that looks at pictures."""


def guess_capabilities(chat_template: str | None, tokens: Container[str] = ()) -> tuple[str, ...]:
    """What a chat template has places for, and what the vocabulary has tokens for."""
    format = find_format(chat_template, ())
    return (
        "completion",
        *(["tools"] if format.tools_in_template else []),
        *(["thinking"] if format.reasoning is not None else []),
        *(["insert"] if can_insert(tokens) else []),
    )


def parameter_size(count: int | None) -> str:
    """134515008 as `135M`, 1_100_000_000 as `1.1B`."""
    if count is None:
        return "unknown"
    if count >= 999_500_000:
        return f"{count / 1e9:.1f}".removesuffix(".0") + "B"
    if count >= 999_500:
        return f"{count / 1e6:.0f}M"
    return f"{count / 1e3:.0f}K"
