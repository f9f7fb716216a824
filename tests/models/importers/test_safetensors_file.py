"""The header of a safetensors file: read as the format's own library reads it, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import save

from vmm_server.errors import CorruptFile
from vmm_server.models.importers.safetensors_file import SafetensorsFile

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
_KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}
tmp_settings = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _with_header(header: object, data: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(start: int = 0, stop: int = 24, shape: object = (2, 3), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@tmp_settings
@given(
    tensors=st.dictionaries(
        st.text(max_size=20).filter(lambda name: name != "__metadata__"),
        st.sampled_from(list(_KINDS.values())).flatmap(
            lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        ),
        max_size=5,
    )
)
def test_what_the_formats_own_library_writes_is_read(tmp_path: Path, tensors: dict[str, NDArray[np.generic]]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({name: np.array(array, order="C") for name, array in tensors.items()}, {"format": "np"}))
    with SafetensorsFile(path) as file:
        assert file.tensors.keys() == tensors.keys()
        for name, array in tensors.items():
            stored = file.tensors[name]
            assert stored.shape == array.shape
            assert _KINDS[stored.dtype] == array.dtype
            assert file.read(stored, 0, stored.size_bytes).tobytes() == array.tobytes()


@tmp_settings
@given(changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_never_a_crash(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(save(TENSORS))
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    message = str(path)
    try:
        with SafetensorsFile(path) as file:
            for stored in file.tensors.values():
                assert len(file.read(stored, 0, stored.size_bytes)) == stored.size_bytes
    except CorruptFile as error:
        message = error.message
    assert str(path) in message
    assert "\n" not in message


@tmp_settings
@given(length=st.integers(0, 10_000))
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, length: int) -> None:
    content = save(TENSORS)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content[: length % len(content)])
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        ((2**40).to_bytes(8, "little") + b"{}", "a header of 1099511627776 bytes"),
        (_with_header(b"{]"), "no readable header"),
        (_with_header(b"\xff\xfe{}"), "no readable header"),
        (_with_header(b"[" * 100_000), "no readable header"),
        (_with_header([]), "no JSON object"),
        (_with_header(b'{"a": 1, "a": 2}'), "a name stands in it twice"),
        (_with_header({"a": 1}), "'a' is of dtype 'None'"),
        (_with_header({"a": _entry(dtype="F33")}), "'a' is of dtype 'F33'"),
        (_with_header({"a": _entry(dtype=["F32"])}), "'a' is of dtype"),
        (_with_header({"a": _entry(shape=[2, -3])}), "'a' has no readable shape"),
        (_with_header({"a": _entry(shape=[True, 6])}), "'a' has no readable shape"),
        (_with_header({"a": _entry(shape=[2**62, 2**62])}), "'a' is .* of F32 but has 24 bytes"),
        (_with_header({"a": _entry(shape=[2, 2])}), "'a' is 2x2 of F32 but has 24 bytes"),
        (_with_header({"a": _entry(24, 0)}), "'a' is 2x3 of F32 but has -24 bytes"),
        (_with_header({"a": _entry(8, 32)}), "'a' begins at byte .*, .* is expected"),
        (_with_header({"a": _entry(), "b": _entry()}), "'b' begins at byte"),
        (_with_header({"a": _entry()}, bytes(23)), "cut off at byte"),
        (_with_header({"a": _entry()}, bytes(25)), "has 1 bytes after its tensors"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=words):
        SafetensorsFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    large = {"large": np.zeros(2**20, np.float32)}
    path.write_bytes(save(large))
    with SafetensorsFile(path) as file:
        stored = file.tensors["large"]
        with path.open("r+b") as other:
            other.truncate(stored.offset + 2**21)
        with pytest.raises(CorruptFile, match="became shorter while it was read, in tensor 'large'"):
            file.read(stored, 0, stored.size_bytes)
