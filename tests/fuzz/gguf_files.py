"""GGUF files: whole ones in pieces, their keys and tensors changed, and the readers up to the model's configuration."""

import importlib.util
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from hypothesis import strategies as st
from tests.fuzz.bytes_of import ODD_NUMBERS, damaged, shuffled

from vmm_server.models.importers.gguf import _write_tokenizer
from vmm_server.models.importers.gguf_config import read_config
from vmm_server.models.importers.gguf_graph import build_decoder
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.onnx_writer import ModelWriter

FAMILIES = ("llama", "qwen2", "gemma2", "phi3")


class Pieces:
    """A file, apart. No dataclass: hypothesis would print all of it."""

    def __init__(self, keys: tuple[bytes, ...], tensors: tuple[bytes, ...], data: bytes) -> None:
        self.keys, self.tensors, self.data = keys, tensors, data

    def __repr__(self) -> str:
        return f"{self.keys[0]!r}…"

    @classmethod
    def of(cls, path: Path) -> "Pieces":
        content = path.read_bytes()
        with GGUFFile(path) as file:
            spans = sorted(file.key_spans.values())
            names = [name.encode() for name in file.tensors]
        starts = [content.index(struct.pack("<Q", len(name)) + name, spans[-1][1]) for name in names]
        end = starts[-1] + 8 + len(names[-1])
        end += 4 + 8 * struct.unpack_from("<I", content, end)[0] + 12
        tensors = tuple(content[start:stop] for start, stop in pairwise([*starts, end]))
        return cls(tuple(content[start:stop] for start, stop in spans), tensors, content[end:])


@dataclass(frozen=True)
class GGUFCase:
    """A file; its weights are another's, for hypothesis keeps what it has drawn."""

    header: bytes
    base: Pieces
    num_missing: int
    """Bytes at its end."""

    @property
    def content(self) -> bytes:
        """All of it."""
        return self.header + self.base.data[: max(0, len(self.base.data) - self.num_missing)]


@st.composite
def files(draw: st.DrawFn, whole: Sequence[Pieces]) -> "GGUFCase":
    """Files that are right in most places."""
    base = draw(st.sampled_from(whole))
    keys, tensors = list(base.keys), list(base.tensors)
    for _ in range(draw(st.integers(0, 3))):
        _change_key(draw, keys)
    counts = [len(tensors), len(keys)]
    if draw(st.integers(0, 9)) == 0:
        counts[draw(st.integers(0, 1))] = draw(st.sampled_from(ODD_NUMBERS))
    head = b"GGUF" + struct.pack("<IQQ", draw(st.sampled_from((3, 3, 3, 2, 1, 4))), *counts)
    listed = draw(shuffled(tensors, 2)) if draw(st.booleans()) else b"".join(tensors)
    header = head + b"".join(keys) + listed
    if draw(st.integers(0, 2)) == 0:
        header = draw(damaged(header, 2))
    return GGUFCase(header, base, draw(st.sampled_from((0, 0, 0, 0, 1, 32, 5000, 10**9))))


_KINDS = range(14)
_NUMBERS = (("<I", 4), ("<i", 5), ("<f", 6), ("<?", 7), ("<Q", 10), ("<d", 12), ("<b", 1))
"""How they are packed, and GGUF's number of the type."""
_TEXTS = ("", "llama", "gpt2", "\0", "é" * 40, "{{ messages }}", "a" * 70_000, "..", "\ud7ff", "default", "gemma")


def _change_key(draw: st.DrawFn, keys: list[bytes]) -> None:
    at = draw(st.integers(0, len(keys) - 1))
    name_end = 8 + int.from_bytes(keys[at][:8], "little")
    name = keys[at][:name_end]
    how = draw(st.sampled_from(("number", "text", "array", "kind", "bytes", "drop", "repeat")))
    if how == "number":
        form, kind = draw(
            st.sampled_from((("<I", 4), ("<i", 5), ("<f", 6), ("<?", 7), ("<Q", 10), ("<d", 12), ("<b", 1)))
        )
        number: float = draw(st.sampled_from((*ODD_NUMBERS, -1, 0.5, float("nan"), float("inf"), -1e30)))
        size = struct.calcsize(form)
        if form in ("<f", "<d"):
            value = struct.pack(form, number if abs(number) < 1e38 or number != number else 0.0)
        else:
            whole = 0 if number != number or abs(number) == float("inf") else int(number)
            value = (whole % 256**size).to_bytes(size, "little")
        keys[at] = name + struct.pack("<I", kind) + value
    elif how == "text":
        text = draw(st.sampled_from(_TEXTS)).encode(errors="replace")
        keys[at] = name + struct.pack("<IQ", 8, len(text)) + text
    elif how == "array":
        items = draw(st.lists(st.integers(0, 2**32 - 1), max_size=40))
        keys[at] = name + struct.pack(f"<IIQ{len(items)}I", 9, 4, len(items), *items)
    elif how == "kind":
        keys[at] = name + struct.pack("<I", draw(st.sampled_from(_KINDS))) + keys[at][name_end + 4 :]
    elif how == "bytes":
        keys[at] = draw(damaged(keys[at], 2))
    elif how == "repeat":
        keys.insert(at, keys[at])
    elif len(keys) > 1:
        del keys[at]


def read(case: GGUFCase) -> None:
    """Everything but the weights: header, configuration, graph, tokeniser."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(case.content)
        with GGUFFile(path) as file:
            config = read_config(file)
            build_decoder(ModelWriter(config.family), file, config)
            _write_tokenizer(file, Path(folder))


def whole_files() -> list[Pieces]:
    """One of each family."""
    tiny = _tiny_models()
    write: Callable[..., None] = tiny.write_gguf
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        found = []
        for name in (name for name in FAMILIES if name in tiny.MODELS):
            write(path, tiny.MODELS[name])
            found.append(Pieces.of(path))
        return found


def _tiny_models() -> ModuleType:
    path = Path(__file__).parents[1] / "data" / "gguf_reference" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_models"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
