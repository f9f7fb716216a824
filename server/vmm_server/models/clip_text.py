"""The text half of CLIP and SigLIP, as an `Encoder` over a session: token ids in, rows as they leave the graph.

CLIP takes texts of any length, with a mask where its graph has one; what is behind a text's end changes nothing, since
it looks back only. SigLIP looks at all of its 64 tokens, so its texts are always padded to them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vmm_adapters.base import Session
from vmm_adapters.card import VisionRecipe
from vmm_adapters.errors import RuntimeFailed, UnsupportedModel
from vmm_adapters.types import EncoderInput, TensorSpec

_INPUTS = ("input_ids", "attention_mask")
_WARM_LENGTHS = (8, 32)


class TextGraph:
    """Implements `vmm_adapters.base.Encoder` for one `Session`."""

    def __init__(self, session: Session, output: str, *, max_length: int, length: int | None, pad_id: int) -> None:
        """`length`: what all texts are padded to; `None`: the longest of a batch. Raises `UnsupportedModel` for a
        graph that takes something else, `AdapterError`."""
        self._session = session
        self._output = output
        self._ports = {spec.name: spec for spec in session.inputs}
        _check_inputs(self._ports)
        fixed_batch, fixed_length = (size if isinstance(size, int) else None for size in self._ports["input_ids"].shape)
        self._fixed_batch = fixed_batch
        self._length = fixed_length or length
        self._pad_id = pad_id
        self.max_length = min(max_length, self._length or max_length)
        self.device = session.device
        self.memory_bytes = session.memory_bytes
        self.dim = self._run([EncoderInput([pad_id])]).shape[1]

    def padded_length(self, text: EncoderInput) -> int:
        """The tokens that are computed for it, when it is alone."""
        return self._length or len(text.token_ids)

    def encode(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """See `Encoder.encode`."""
        step = self._fixed_batch or max(1, len(inputs))
        rows = [self._run(inputs[start : start + step]) for start in range(0, len(inputs), step)]
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)

    def warm_up(self) -> None:
        """See `Encoder.warm_up`."""
        for count, length in enumerate(_WARM_LENGTHS, 1):
            self.encode([EncoderInput([self._pad_id] * min(length, self.max_length))] * count)

    def close(self) -> None:
        """See `Encoder.close`."""
        self._session.close()

    def _run(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        lengths = np.array([len(each.token_ids) for each in inputs])
        longest = self._length or int(lengths.max())
        if lengths.min() < 1 or lengths.max() > longest:
            raise RuntimeFailed(f"texts of {lengths.min()} to {lengths.max()} tokens; 1 to {longest} can be encoded")
        batch = self._fixed_batch or len(inputs)
        token_ids = np.full((batch, longest), self._pad_id, self._ports["input_ids"].dtype)
        for row, each in enumerate(inputs):
            token_ids[row, : lengths[row]] = each.token_ids
        feeds: dict[str, NDArray[Any]] = {"input_ids": token_ids}
        if (mask := self._ports.get("attention_mask")) is not None:
            attended = np.zeros(token_ids.shape, mask.dtype)
            attended[: len(inputs)] = np.arange(longest) < lengths[:, None]
            feeds["attention_mask"] = attended
        found = self._session.run(feeds)[self._output]
        if found.ndim != 2 or len(found) != batch:
            raise RuntimeFailed(f"{self._output} has the shape {list(found.shape)} for {batch} texts")
        return np.asarray(found[: len(inputs)], np.float32)


def choose_output(outputs: Sequence[TensorSpec], names: Sequence[str]) -> str:
    """The first of `names` that is there with one row a text or picture. Raises `UnsupportedModel`."""
    for name in names:
        if any(spec.name == name and len(spec.shape) == 2 for spec in outputs):
            return name
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    raise UnsupportedModel(f"the graph gives {shapes}; one of {', '.join(names)} [batch, dim] is expected")


def find_pad_id(tokenizer: Tokenizer, recipe: VisionRecipe) -> int:
    """What texts are filled up with: its recipe's, the tokeniser's own, or 0."""
    if recipe.pad_token_id is not None:
        return recipe.pad_token_id
    return int((tokenizer.padding or {}).get("pad_id", 0))


def _check_inputs(ports: dict[str, TensorSpec]) -> None:
    fits = "input_ids" in ports and ports.keys() <= {*_INPUTS}
    if not fits or any(len(spec.shape) != 2 or spec.dtype.kind != "i" for spec in ports.values()):
        shapes = ", ".join(f"{name} {list(spec.shape)} {spec.dtype}" for name, spec in ports.items())
        raise UnsupportedModel(f"the graph takes {shapes}; texts are input_ids and attention_mask, int [batch, length]")
