"""GGUF headers: what is read, and that nothing in a broken file is believed."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf_header import MAX_ITEMS, MAX_KEYS, MAX_TENSORS
from vmm_server.models.importers.gguf_reader import MAX_HEADER_BYTES, GGUFFile

F32, STRING, ARRAY, UINT32, UINT8 = 0, 8, 9, 4, 0


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _header(num_tensors: int = 0, num_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)


def _tensor(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], GGUFFile]:
    """Write bytes as a file and open it."""

    def run(content: bytes) -> GGUFFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with GGUFFile(path) as file:
            return file

    return run


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.int", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "ä\n")
    writer.add_array("a.texts", ["x", "", "ü"])
    writer.add_array("a.numbers", [1, -2, 3])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("m", matrix)
    packed = np.arange(2 * 36, dtype=np.uint8).reshape(2, 36)
    writer.add_tensor("q", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(path) as file:
        assert file.metadata == {
            "general.architecture": "llama",
            "a.int": 7,
            "a.float": 0.5,
            "a.bool": True,
            "a.text": "ä\n",
            "a.texts": ["x", "", "ü"],
            "a.numbers": [1, -2, 3],
        }
        assert file.tensors["m"].shape == (3, 4)
        assert file.tensors["q"].shape == (2, 64)
        assert file.tensors["q"].num_elements == 128
        assert np.array_equal(file.read_rows(file.tensors["m"], 1, 3).view(np.float32), matrix[1:])
        assert np.array_equal(file.read_rows(file.tensors["q"], 0, 2), packed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "is not a GGUF file", id="empty"),
        pytest.param(b"PK\x03\x04 and so on", "is not a GGUF file", id="another format"),
        pytest.param(_header(version=4), "version 4", id="a version to come"),
        pytest.param(_header()[:10], "ends at byte 10", id="cut in the counts"),
        pytest.param(_header(num_keys=2**60), f"claims {2**60} keys", id="absurd key count"),
        pytest.param(_header(num_tensors=2**60), f"claims {2**60} tensors", id="absurd tensor count"),
        pytest.param(_header(num_keys=1) + struct.pack("<Q", 2**63) + b"x" * 99, "ends at byte", id="endless name"),
        pytest.param(
            _header(num_keys=1) + _text("k") + struct.pack("<I", 99) + b"x" * 99, "unknown type 99", id="type"
        ),
        pytest.param(
            _header(num_keys=1) + _text("k") + struct.pack("<IIQ", ARRAY, STRING, 2**61) + b"x" * 99,
            f"claims {2**61} strings",
            id="endless strings",
        ),
        pytest.param(
            _header(num_keys=1) + _text("k") + struct.pack("<IIQ", ARRAY, UINT32, 2**61) + b"x" * 99,
            "ends at byte",
            id="endless numbers",
        ),
        pytest.param(
            _header(num_keys=1) + _text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + b"x" * 99,
            "array of unknown type",
            id="array in array",
        ),
        pytest.param(
            _header(num_keys=1) + _text("k") + struct.pack("<IQ", STRING, 2) + b"\xff\xfe" + b"x" * 9,
            "not UTF-8 in the value of 'k'",
            id="not UTF-8",
        ),
        pytest.param(
            _header(num_keys=2) + (_text("k") + struct.pack("<II", UINT32, 1)) * 2, "'k' twice", id="a key twice"
        ),
        pytest.param(
            _header(num_keys=1) + _text("general.alignment") + struct.pack("<II", UINT32, 24),
            "general.alignment 24",
            id="odd alignment",
        ),
        pytest.param(_header(num_tensors=1) + _tensor("t", (4,)) + b"\0" * 20, "is cut off: tensor 't'", id="cut off"),
        pytest.param(
            _header(num_tensors=1) + _tensor("t", (2**40, 2**40)) + b"\0" * 64,
            "is cut off: tensor 't'",
            id="absurd shape",
        ),
        pytest.param(_header(num_tensors=1) + _tensor("t", (1,) * 5) + b"\0" * 64, "5 dimensions", id="rank"),
        pytest.param(_header(num_tensors=1) + _tensor("t", (0,)) + b"\0" * 64, "shape [0]", id="no elements"),
        pytest.param(
            _header(num_tensors=1) + _tensor("t", (33,), 2) + b"\0" * 64, "not whole blocks", id="half a block"
        ),
        pytest.param(_header(num_tensors=1) + _tensor("t", (4,), 77) + b"\0" * 64, "unknown type 77", id="tensor type"),
        pytest.param(
            _header(num_tensors=1) + _tensor("t", (4,), 0, 4) + b"\0" * 99, "no multiple of 32", id="unaligned"
        ),
        pytest.param(
            _header(num_tensors=2) + _tensor("t", (4,)) + _tensor("t", (4,), 0, 32) + b"\0" * 99,
            "'t' twice",
            id="a tensor twice",
        ),
        pytest.param(
            _header(num_tensors=2) + _tensor("t", (16,)) + _tensor("u", (4,), 0, 32) + b"\0" * 99,
            "'t' and 'u' over one another",
            id="overlap",
        ),
    ],
)
def test_a_broken_file_is_one_clear_error(read: Callable[[bytes], GGUFFile], content: bytes, words: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        read(content)
    assert words in caught.value.message
    assert "model.gguf" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (_header(version=1), "version 1"),
        (_header(num_keys=1) + _text("split.count") + struct.pack("<II", UINT32, 3), "3 parts"),
    ],
)
def test_a_kind_of_file_that_is_not_read_is_named(
    read: Callable[[bytes], GGUFFile], content: bytes, words: str
) -> None:
    with pytest.raises(ImportFailed, match=words) as caught:
        read(content)
    assert not isinstance(caught.value, CorruptFile)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    with path.open("wb") as file:
        file.write(_header(num_keys=1) + _text("k") + struct.pack("<IQ", STRING, 2 * MAX_HEADER_BYTES))
        file.truncate(4 * MAX_HEADER_BYTES)
    with pytest.raises(CorruptFile, match="header of more than"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_header(num_keys=MAX_KEYS + 1) + bytes(13 * (MAX_KEYS + 1)), f"keys, the limit is {MAX_KEYS}"),
        (_header(num_tensors=MAX_TENSORS + 1) + bytes(32 * (MAX_TENSORS + 1)), f"tensors, the limit is {MAX_TENSORS}"),
        (
            _header(num_keys=1) + _text("k") + struct.pack("<IIQ", ARRAY, UINT8, MAX_ITEMS + 1) + bytes(MAX_ITEMS + 1),
            f"more than {MAX_ITEMS} elements",
        ),
    ],
    ids=["keys", "tensors", "elements"],
)
def test_counts_are_bounded_before_anything_is_made_of_them(
    read: Callable[[bytes], GGUFFile], content: bytes, words: str
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile, match=words):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(content) + 2**22
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    num_elements = 1024**2  # more than any read-ahead
    path.write_bytes(_header(num_tensors=1) + _tensor("t", (num_elements,)) + b"\0" * (4 * num_elements + 32))
    with GGUFFile(path) as file:
        with path.open("r+b") as other:
            other.truncate(num_elements)
        with pytest.raises(CorruptFile, match="became shorter"):
            file.read_rows(file.tensors["t"], 0, 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match=r"none\.gguf"):
        GGUFFile(tmp_path / "none.gguf")


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 3000)),
)
def test_any_damage_is_either_harmless_or_a_clear_error(
    tmp_path: Path, tiny_models: ModuleType, changes: list[tuple[int, int]], cut: int | None
) -> None:
    original = tmp_path / "whole.gguf"
    if not original.exists():
        tiny_models.write_gguf(original, tiny_models.MODELS["llama"])
    content = bytearray(original.read_bytes())
    for position, value in changes:
        content[position] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(content[:cut]))
    message, ends = str(path), [0]
    try:
        with GGUFFile(path) as file:
            ends += [entry.offset + entry.size_bytes for entry in file.tensors.values()]
    except ImportFailed as error:
        message = error.message
    assert max(ends) <= path.stat().st_size
    assert str(path) in message
    assert "\n" not in message
