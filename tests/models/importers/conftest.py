"""Tiny GGUF files of every family, random blocks of every quantised type."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from vmm_server.models.importers import ImportedModel
from vmm_server.models.importers.gguf import import_gguf

DATA = Path(__file__).resolve().parents[2] / "data"
SCALE_BYTES = {
    GGMLQuantizationType.Q4_0: (0,),
    GGMLQuantizationType.Q4_1: (0, 2),
    GGMLQuantizationType.Q5_0: (0,),
    GGMLQuantizationType.Q5_1: (0, 2),
    GGMLQuantizationType.Q8_0: (0,),
    GGMLQuantizationType.IQ4_NL: (0,),
    GGMLQuantizationType.IQ4_XS: (0,),
    GGMLQuantizationType.Q2_K: (80, 82),
    GGMLQuantizationType.Q3_K: (108,),
    GGMLQuantizationType.Q4_K: (0, 2),
    GGMLQuantizationType.Q5_K: (0, 2),
    GGMLQuantizationType.Q6_K: (208,),
}
"""Where each type's float16 numbers are in a block."""

Blocks = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def convert(tmp_path: Path, write_tiny: Callable[..., Path]) -> Callable[..., tuple[Path, ImportedModel]]:
    """`convert("llama", **write_tiny's arguments)`: write a tiny file and import it; (folder, description)."""

    def run(name: str, **changes: object) -> tuple[Path, ImportedModel]:
        source, folder = write_tiny(name, **changes), tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return folder, import_gguf(source, folder)

    return run


@pytest.fixture(scope="session")
def reference_logits() -> Mapping[str, NDArray[np.float32]]:
    """What transformers says for each tiny model, float32 `[2, 20, vocabulary]`."""
    with np.load(DATA / "gguf_reference" / "logits.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def random_blocks() -> Blocks:
    """`random_blocks(type, count, seed)`: raw uint8 `[count, block bytes]` with scales of both signs and some zeros."""

    def make(kind: GGMLQuantizationType, count: int, seed: int = 0, scale: float = 0.02) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 256, (count, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        for start in SCALE_BYTES[kind]:
            numbers = (rng.standard_normal(count) * scale).astype(np.float16)
            numbers[rng.random(count) < 0.1] = 0
            blocks[:, start : start + 2] = numbers.view(np.uint8).reshape(-1, 2)
        return blocks

    return make
