"""Prompts in both forms: tokens, and text with images."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as og

from vmm_adapters.errors import UnsupportedModel, runtime_errors
from vmm_adapters.openvino_genai.model_folder import ModelFolder
from vmm_adapters.types import IMAGE_MARK, SamplingParams, TextRequest

_TAG = "<ov_genai_image_{}>"
"""For all families of models: the runtime writes what the family wants there, as many tokens long as the image is."""
_BRIEF = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
WARM_UP = TextRequest(-1, (), _BRIEF, max_length=4096, text="Hello")
WARM_UP_SEEING = TextRequest(
    -1, (), _BRIEF, 4096, text=IMAGE_MARK + "Hello", images=(np.zeros((224, 224, 3), np.uint8),)
)
"""A request whose answer nobody reads, of a model that sees."""


class Prompts:
    """A model's tokeniser, and what its prompts have to be."""

    def __init__(self, folder: Path, described: ModelFolder) -> None:
        with runtime_errors(f"loading the tokeniser of {folder}", RuntimeError):
            self.tokenizer: Any = og.Tokenizer(folder)
        self._vocab_size = described.vocab_size
        self._sees = described.sees

    def check(self, request: TextRequest, max_length: int) -> int | None:
        """How many tokens the prompt has, which only the runtime knows where there are images.

        Raises `UnsupportedModel` for one that this model cannot be asked with.
        """
        if request.images and not self._sees:
            raise UnsupportedModel("this model does not see: its folder has no part for images")
        if request.text is None and not request.token_ids:
            raise UnsupportedModel("the prompt is empty")
        if request.token_ids and not 0 <= min(request.token_ids) <= max(request.token_ids) < self._vocab_size:
            raise UnsupportedModel(f"a token of the prompt is not one of the model's {self._vocab_size}")
        if request.images:
            return None
        num_tokens: int = self._encode(self.text(request)).get_size() if self._sees else self.tokens(request).get_size()
        if num_tokens >= max_length:
            raise UnsupportedModel(
                f"a prompt of {num_tokens} tokens leaves no room for an answer in {max_length}",
                hint="shorten the prompt, or raise context_length or memory_budget",
            )
        return num_tokens

    def tokens(self, request: TextRequest) -> Any:
        """The prompt as int64 `[1, tokens]`."""
        if request.text is None:
            return ov.Tensor(np.array([request.token_ids], np.int64))
        return self._encode(request.text)

    def text(self, request: TextRequest) -> str:
        """The prompt as text, of a model that sees: its pipeline takes nothing else.

        Tokens are written out. Read again, they may be others where a text can be cut in several ways.
        """
        if request.text is not None:
            return _tagged(request.text)
        with runtime_errors("writing out the tokens of a prompt", RuntimeError):
            text: str = self.tokenizer.decode(list(request.token_ids), skip_special_tokens=False)
        return text

    def _encode(self, text: str) -> Any:
        with runtime_errors("tokenising a prompt", RuntimeError):
            return self.tokenizer.encode(text, add_special_tokens=False).input_ids


def _tagged(text: str) -> str:
    """The text with the runtime's own tags for its images; it must not bring any."""
    if _TAG.split("{")[0] in text:
        raise UnsupportedModel(f"the prompt has a text that stands for an image here: {_TAG.split('{')[0]}…")
    first, *others = text.split(IMAGE_MARK)
    return first + "".join(_TAG.format(index) + other for index, other in enumerate(others))


def image_tensors(request: TextRequest) -> list[Any]:
    """The request's images as the runtime takes them, uint8 `[1, height, width, 3]`."""
    return [ov.Tensor(image[np.newaxis].copy()) for image in request.images]
