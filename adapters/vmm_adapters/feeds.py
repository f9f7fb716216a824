"""What is checked of a session's inputs before a runtime sees them: its own words for it are of no help."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.types import TensorSpec


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise `RuntimeFailed` naming the first input that is missing, unknown, or of another type or shape."""
    names = [spec.name for spec in inputs]
    if unknown := [name for name in feeds if name not in names]:
        raise RuntimeFailed(f"the model has no input {unknown[0]!r}; it has {', '.join(names)}")
    for spec in inputs:
        if spec.name not in feeds:
            raise RuntimeFailed(f"input {spec.name!r} is missing")
        array = feeds[spec.name]
        if array.dtype != spec.dtype:
            raise RuntimeFailed(f"input {spec.name!r} is {array.dtype}, not {spec.dtype}")
        fits = len(array.shape) == len(spec.shape) and all(
            not isinstance(wanted, int) or wanted == size for wanted, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
            raise RuntimeFailed(f"input {spec.name!r} has the shape {list(array.shape)}, not [{wanted}]")
