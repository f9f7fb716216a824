"""Reading model.bin: whole files say what is in them, broken ones are refused."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.ctranslate2_file import CTranslate2File, is_ctranslate2

from .tiny_whisper import serialize_ct2

VARIABLES = {
    "a/weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6, dtype=np.float16),
    "c": np.array(-3, np.int8),
    "d": np.arange(4, dtype=np.int16).reshape(2, 2),
    "e": np.zeros((0, 3), np.int32),
    "f": np.array([16256], np.uint16),
}
WHOLE = serialize_ct2(VARIABLES, {"z": "a/weight"})
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def read_all(path: Path) -> None:
    with CTranslate2File(path) as file:
        for variable in file.variables.values():
            assert len(file.read(variable, 0, variable.size_bytes)) == variable.size_bytes


def test_a_whole_file(path: Path) -> None:
    path.write_bytes(WHOLE)
    assert is_ctranslate2(path)
    with CTranslate2File(path) as file:
        assert file.spec == "WhisperSpec"
        assert file.variables["z"] is file.variables["a/weight"]
        types = {name: variable.dtype for name, variable in file.variables.items()}
        for name, value in VARIABLES.items():
            variable = file.variables[name]
            assert variable.shape == value.shape
            assert file.read(variable, 0, variable.size_bytes).tobytes() == value.tobytes()
        row = file.read(file.variables["a/weight"], 16, 16).view(np.float32)
    np.testing.assert_array_equal(row, [4, 5, 6, 7])
    assert types == {"a/weight": "float32", "b": "float16", "c": "int8", "d": "int16", "e": "int32", "f": "bfloat16",
                     "z": "float32"}  # fmt: skip


@given(length=st.integers(0, len(WHOLE) - 1))
@same_folder
def test_a_file_that_is_cut_off(path: Path, length: int) -> None:
    path.write_bytes(WHOLE[:length])
    with pytest.raises(CorruptFile, match=r"model\.bin: .*(cut off|bytes)"):
        read_all(path)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    more=st.binary(max_size=8),
)
@same_folder
def test_a_damaged_file_is_read_or_refused_in_little_memory(
    path: Path, changes: list[tuple[int, int]], more: bytes
) -> None:
    damaged = bytearray(WHOLE)
    for place, byte in changes:
        damaged[place] = byte
    path.write_bytes(bytes(damaged) + more)
    is_ctranslate2(path)
    tracemalloc.start()
    with suppress(ImportFailed):
        read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 1024**2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WHOLE + b"x", "has 1 bytes after its variables"),
        (WHOLE[:60], "is cut off at byte 60, in variable 'a/weight'"),
        (serialize_ct2(VARIABLES, {"z": "y"}), "'z' is another name of 'y', which is not there"),
        (serialize_ct2(VARIABLES, {"b": "c"}), "has two variables 'b'"),
        (
            WHOLE.replace(b"\x02\x03\0\0\0\x04\0\0\0", b"\x02\x03\0\0\0\xff\xff\xff\xff"),
            r"'a/weight' is \(3, 4294967295\)",
        ),
        (WHOLE.replace(b"b\0\x01\x06", b"b\0\x09\x06"), "'b' has 9 dimensions"),
        (WHOLE.replace(b"\x06\0\0\0\x04\x0c", b"\x06\0\0\0\x06\x0c"), "'b' is of the unknown type 6"),
    ],
)
def test_what_is_wrong_is_named(path: Path, content: bytes, words: str) -> None:
    assert content != WHOLE
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=words):
        read_all(path)


def test_other_versions_and_files(path: Path) -> None:
    path.write_bytes(serialize_ct2(VARIABLES, {}, version=5))
    with pytest.raises(ImportFailed, match="version 5") as caught:
        read_all(path)
    assert not isinstance(caught.value, CorruptFile)
    path.write_bytes(b"PK\x03\x04 a pickled model of torch")
    assert not is_ctranslate2(path)
    assert not is_ctranslate2(path.with_name("absent"))
    with pytest.raises(CorruptFile, match="is missing"):
        CTranslate2File(path.with_name("absent"))
    path.write_bytes(WHOLE)
    with CTranslate2File(path) as file:
        path.write_bytes(WHOLE[:40])
        with pytest.raises(CorruptFile, match="became shorter"):
            file.read(file.variables["f"], 0, 2)
