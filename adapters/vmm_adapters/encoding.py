"""What every runtime does with an encoder's folder: find the graph, lay inputs out as arrays."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vmm_adapters.errors import RuntimeFailed, UnsupportedModel
from vmm_adapters.types import EncoderInput

FILES = ("model.onnx", "onnx/model.onnx")
"""Where an encoder's folder may have its graph."""
WARM_LENGTHS = (8, 32)
"""Tokens of the inputs that warm the kernels; another shape costs its first call next to nothing."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""What an encoder's graph may ask for; the first one it must."""


def find_graph(folder: Path) -> Path:
    """The folder's ONNX file. Raises `UnsupportedModel`."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UnsupportedModel(f"{folder}: there is no {' or '.join(FILES)}")


def read_pad_id(folder: Path) -> int:
    """What padding is filled with; some graphs count positions by it."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text("utf-8")).get("pad_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    return found if isinstance(found, int) else 0


def pack_inputs(
    inputs: Sequence[EncoderInput], types: Mapping[str, DTypeLike], *, pad_id: int, max_length: int
) -> dict[str, NDArray[Any]]:
    """Arrays `[len(inputs), tokens of the longest]` of every input that `types` names. Raises `RuntimeFailed`."""
    lengths = np.array([len(each.token_ids) for each in inputs])
    longest = int(lengths.max())
    if lengths.min() < 1 or longest > max_length:
        raise RuntimeFailed(f"inputs of {lengths.min()} to {longest} tokens; 1 to {max_length} can be encoded")
    shape = len(inputs), longest
    arrays: dict[str, NDArray[Any]] = {name: np.zeros(shape, dtype) for name, dtype in types.items()}
    arrays["input_ids"].fill(pad_id)
    for row, each in enumerate(inputs):
        arrays["input_ids"][row, : lengths[row]] = each.token_ids
        if each.type_ids and "token_type_ids" in arrays:
            arrays["token_type_ids"][row, : lengths[row]] = each.type_ids
    positions = np.arange(longest)
    if "attention_mask" in arrays:
        arrays["attention_mask"][:] = positions < lengths[:, None]
    if "position_ids" in arrays:
        arrays["position_ids"][:] = positions
    return arrays
