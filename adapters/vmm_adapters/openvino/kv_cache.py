"""KV blocks as tensors. The plugin decides type and layout; everything here is read off the compiled inputs.

The CPU plugin keeps u8 with its scales inside (`key_cache [blocks, kv_heads, 32 + 8, head_size]`, `value_cache
[blocks, kv_heads, 32, head_size + 8]`), the GPU plugin f16 (`[blocks, kv_heads, head_size, 16]` and `[blocks,
kv_heads, 16, head_size]`). Common to both: blocks are dimension 0 and positions dimension 2 of `value_cache`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import openvino as ov

from vmm_adapters.errors import OutOfMemory, RuntimeFailed, UnsupportedModel


@dataclass(frozen=True)
class BlockLayout:
    """What one KV block is, in every layer."""

    block_size: int
    """Positions in a block."""
    inputs: tuple[tuple[str, Any, tuple[int, ...]], ...]
    """(input name, element type, shape of one block) of every key and value cache."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return sum(_num_bytes(dtype, shape) for _, dtype, shape in self.inputs)


def read_layout(compiled: Any) -> BlockLayout:
    """Read the layout off a compiled model's inputs."""
    found: list[tuple[str, Any, tuple[int, ...]]] = []
    for port in compiled.inputs:
        name = port.get_any_name()
        if not name.startswith(("key_cache.", "value_cache.")):
            continue
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic or any(shape[axis].is_dynamic for axis in range(1, len(shape))):
            raise UnsupportedModel(f"{name}: the device leaves the block's shape open: {shape}")
        found.append((name, port.get_element_type(), tuple(shape[axis].get_length() for axis in range(1, len(shape)))))
    block_sizes = {shape[1] for name, _, shape in found if name.startswith("value_cache.")}
    if len(block_sizes) != 1:
        raise UnsupportedModel(f"the layers' KV blocks have {sorted(block_sizes)} positions; one size is needed")
    return BlockLayout(block_sizes.pop(), tuple(found))


def count_blocks(layout: BlockLayout, kv_cache_bytes: int, *, num_sequences: int, context_length: int) -> int:
    """Blocks that fit the budget, but no more than that many full sequences need. Raises `OutOfMemory`."""
    useful = num_sequences * -(-context_length // layout.block_size)
    count = min(kv_cache_bytes // layout.block_bytes, useful)
    if count < 1:
        raise OutOfMemory(
            f"kv_cache_bytes={kv_cache_bytes} holds no KV block; one takes {layout.block_bytes} bytes",
            hint="raise memory_budget",
        )
    return count


class KVCache:
    """The tensors of all layers."""

    def __init__(
        self, core: Any, device: str, layout: BlockLayout, num_blocks: int, homes: Mapping[str, str] | None = None
    ) -> None:
        """`homes` has each tensor's device, where devices share the model."""
        self.num_bytes = layout.block_bytes * num_blocks
        self._num_blocks = num_blocks
        self._arrays: list[Any] = []
        self._remote: list[Any] = []
        self.tensors: dict[str, Any] = {}
        for name, dtype, shape in layout.inputs:
            home = device if homes is None else homes[name]
            context = None if home.startswith("CPU") else core.get_default_context(home)
            whole = ov.Shape([num_blocks, *shape])
            if context is None:
                # Pages of np.zeros become resident when a block is first written, not before.
                array = np.zeros((num_blocks, _num_bytes(dtype, shape)), np.uint8)
                self._arrays.append(array)
                self.tensors[name] = ov.Tensor(array, whole, dtype)
            else:
                self.tensors[name] = context.create_tensor(dtype, whole, {})
                self._remote.append(self.tensors[name])

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks `(source, target)`, in order, in every layer."""
        for pair in pairs:
            if not all(0 <= block < self._num_blocks for block in pair):
                raise RuntimeFailed(f"copy of blocks {pair}: ids are 0 .. {self._num_blocks - 1}")
        for source, target in pairs:
            for array in self._arrays:
                array[target] = array[source]
            for tensor in self._remote:
                _block_of(tensor, source).copy_to(_block_of(tensor, target))


def _block_of(tensor: Any, block: int) -> Any:
    shape = list(tensor.get_shape())
    return ov.RemoteTensor(
        tensor, ov.Coordinate([block, *[0] * (len(shape) - 1)]), ov.Coordinate([block + 1, *shape[1:]])
    )


def _num_bytes(dtype: Any, shape: tuple[int, ...]) -> int:
    return -(-prod(shape) * int(dtype.bitwidth) // 8)
