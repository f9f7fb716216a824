"""Checkpoints of PyTorch are read, and never run."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers import detect_format
from vmm_server.models.importers.pickled_program import Unreadable, read_program
from vmm_server.models.importers.pickled_weights import PickledWeights, is_pickled

DATA = Path(__file__).parents[2] / "data" / "pickled"
FILES = ("tensors.pth", "tensors.zip.pth")
TENSORS = np.load(DATA / "tensors.npz")
HEADER = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def stream(program: bytes) -> bytes:
    """A file of the older format whose object is this program."""
    return b"".join(pickle.dumps(part, 2) for part in HEADER) + program + pickle.dumps([], 2)


def archive(program: bytes, **members: bytes) -> bytes:
    """A file of today's format."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("m/data.pkl", program)
        for key, value in members.items():
            file.writestr(f"m/data/{key}", value)
    return content.getvalue()


Wrap = Callable[[bytes], bytes]


@pytest.fixture(params=[stream, archive], ids=["stream", "archive"])
def wrap(request: pytest.FixtureRequest) -> Wrap:
    made: Wrap = request.param
    return made


@pytest.mark.parametrize("name", FILES)
def test_both_formats_hold_the_same_numbers(name: str) -> None:
    weights = PickledWeights(DATA / name)
    assert [*weights.tensors] == TENSORS.files
    for key in TENSORS.files:
        assert weights.shape(key) == TENSORS[key].shape
        np.testing.assert_array_equal(weights.read(key), TENSORS[key].astype(np.float32))
    assert detect_format(DATA / name) == "pickled"
    with pytest.raises(CorruptFile, match="has no tensor other"):
        weights.read("other")


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_program_is_refused_by_name_and_not_run(tmp_path: Path, wrap: Wrap, protocol: int) -> None:
    program = pickle.dumps({"weight": Evil(tmp_path / "made")}, protocol)
    path = tmp_path / "evil.pth"
    path.write_bytes(wrap(program))
    with pytest.raises(ImportFailed, match=r"evil\.pth: is pickled, and") as caught:
        PickledWeights(path)
    assert not (tmp_path / "made").exists()
    if protocol in (1, 2, 3):  # before that is a text form, after it another way to name a function
        assert "asks for posix.mkdir" in caught.value.message or "asks for nt.mkdir" in caught.value.message


NAME = "torch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def tensor(start: bytes, shape: bytes, strides: bytes, count: bytes = b"K\x04") -> bytes:
    """A program of one tensor named w, of a storage of `count` numbers."""
    made = b"c" + NAME.encode() + b"(" + STORAGE + count + b"tQ" + start + shape + strides + b"tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + made + b"s."


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (tensor(b"K\x00", b"K\x05\x85", b"K\x01\x85"), CorruptFile, "leaves its storage"),
        (tensor(b"K\x01", b"K\x04\x85", b"K\x01\x85"), CorruptFile, "leaves its storage"),
        (tensor(b"K\x00", b"K\x02\x85", b"K\x04\x85"), CorruptFile, "leaves its storage"),
        (tensor(b"K\x00", b"M\x00\x02\x85", b"K\x00\x85"), CorruptFile, "leaves its storage"),
        (tensor(b"K\x00", b"K\x00\x85", b"K\x01\x85"), CorruptFile, "leaves its storage"),
        (tensor(b"K\x00", b"K\x01\x85", b"K\x01K\x01\x86"), CorruptFile, "leaves its storage"),
        (tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"), CorruptFile, "cannot be read"),
        (tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85", b"J\xff\xff\xff\x7f"), ImportFailed, "more than is read"),
        (tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85", b"N"), CorruptFile, "storage that cannot be read"),
        (b"\x80\x02N.", ImportFailed, "no tensors by name"),
        (b"\x80\x02.", CorruptFile, "stack is empty"),
        (b"\x80\x02}", CorruptFile, "exhausted"),
        (b"\x80\x02h\x00.", CorruptFile, "never noted"),
        (b"\x80\x02}K\x01K\x02a.", CorruptFile, "appends to no list"),
        (b"\x80\x02NK\x01K\x02s.", CorruptFile, "no dictionary"),
        (b"\x80\x02}}K\x02s.", CorruptFile, "neither a text nor a number"),
        (b"\x80\x02NNb.", ImportFailed, "sets attributes of what is no dictionary"),
        (b"\x80\x02NNR.", ImportFailed, "calls what is no known function"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", ImportFailed, r"calls torch\.FloatStorage in a way"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x81.", ImportFailed, "has the instruction NEWOBJ"),
        (b"\x80\x02X\xff\xff\xff\x7f.", CorruptFile, "an instruction of 2147483647 bytes"),
    ],
)
def test_programs_that_are_none_of_pytorchs(
    tmp_path: Path, wrap: Wrap, program: bytes, error: type[ImportFailed], words: str
) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(wrap(program))
    with pytest.raises(error, match=words):
        PickledWeights(path)


def test_a_program_without_an_end_is_given_up() -> None:
    with pytest.raises(Unreadable, match="longer than the description of any model"):
        read_program(io.BytesIO(b"\x80\x02" + b"N" * 1_000_001 + b"."))


def test_other_files_are_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    for content in (b"", b"PK\x03\x04", b"PK\x03\x04 and no more", b"\x80\x04\x95"):
        path.write_bytes(content)
        assert not is_pickled(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("other.txt", "x")
    assert not is_pickled(path)
    with pytest.raises(ImportFailed, match=r"holds 0 of data\.pkl"):
        PickledWeights(path)
    path.write_bytes(pickle.dumps(HEADER[0], 2) + pickle.dumps(1002, 2))
    with pytest.raises(ImportFailed, match="is no checkpoint"):
        PickledWeights(path)
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (*HEADER[:2], {"little_endian": False})))
    with pytest.raises(ImportFailed, match="little-endian"):
        PickledWeights(path)
    with pytest.raises(ImportFailed, match="No such file"):
        PickledWeights(tmp_path / "none")


def test_a_storage_of_another_size_is_named(tmp_path: Path) -> None:
    program = tensor(b"K\x00", b"K\x04\x85", b"K\x01\x85")
    path = tmp_path / "m.pth"
    path.write_bytes(archive(program, **{"0": bytes(12)}))
    with pytest.raises(CorruptFile, match="storage '0' has 12 bytes, 16 are expected"):
        PickledWeights(path).read("w")
    path.write_bytes(archive(program))
    with pytest.raises(CorruptFile, match="is damaged"):
        PickledWeights(path).read("w")
    start = b"".join(pickle.dumps(part, 2) for part in HEADER) + program
    for keys, rest, words in (
        (["0"], struct.pack("<q", 5), "has 5 numbers"),
        (["0"], struct.pack("<q", 4), "too few"),
        ([[]], struct.pack("<q", 4), "others are expected"),
        (["0"], b"", "is damaged"),
    ):
        path.write_bytes(start + pickle.dumps(keys, 2) + rest)
        with pytest.raises(CorruptFile, match=words):
            PickledWeights(path)


@given(st.sampled_from(FILES), st.data())
def test_a_changed_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    content = bytearray((DATA / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with suppress(ImportFailed):
        weights = PickledWeights(path)
        for key in weights.tensors:
            assert weights.read(key).shape == weights.shape(key)


operations = st.sampled_from([bytes((code,)) for code in range(256)]) | st.binary(max_size=6)


@given(st.lists(operations, max_size=30))
def test_any_program_at_all_is_read_or_refused(parts: list[bytes]) -> None:
    with suppress(Unreadable, ValueError, EOFError):
        read_program(io.BytesIO(b"\x80\x02" + b"".join(parts)))
