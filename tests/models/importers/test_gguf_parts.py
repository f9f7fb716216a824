"""Split GGUF files: read as one model, or refused with the name of the part that is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import CorruptFile, ImportFailed
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.importers.gguf_parts import PartName, all_parts, whole_name
from vmm_server.models.importers.gguf_quantize import quantize_gguf
from vmm_server.models.importers.gguf_reader import GGUFFile
from vmm_server.models.importers.gguf_writer import join_gguf

WriteTiny = Callable[..., Path]
Split = Callable[[Path, int], list[Path]]


@pytest.fixture
def whole(write_tiny: WriteTiny, tmp_path: Path) -> Path:
    return write_tiny("llama", quantization="F16").rename(tmp_path / "whole.gguf")


@pytest.fixture
def parts(whole: Path, split_gguf: Split, tmp_path: Path) -> list[Path]:
    copy = tmp_path / "parts" / "model.gguf"
    copy.parent.mkdir()
    shutil.copyfile(whole, copy)
    found = split_gguf(copy, 8)
    assert len(found) > 2
    return found


def ignore(_done: int, _total: int) -> None:
    """Tell nobody."""


def test_all_parts_read_as_the_whole_file(whole: Path, parts: list[Path]) -> None:
    with GGUFFile(whole) as one, GGUFFile(parts[0]) as many:
        assert many.metadata == one.metadata
        assert many.tensors.keys() == one.tensors.keys()
        for name, tensor in one.tensors.items():
            other, rows = many.tensors[name], tensor.num_elements // tensor.shape[-1]
            assert (other.shape, other.type, other.size_bytes) == (tensor.shape, tensor.type, tensor.size_bytes)
            np.testing.assert_array_equal(many.read_rows(other, 0, rows), one.read_rows(tensor, 0, rows))


def test_the_same_model_is_made_of_them(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    for source, name in ((whole, "one"), (parts[0], "many")):
        (tmp_path / name).mkdir()
        import_gguf(source, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "many").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "many" / file).read_bytes()


def test_joined_they_are_one_file_that_gguf_reads(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    join_gguf(parts[0], tmp_path / "joined.gguf", lambda *counts: seen.append(counts))
    one, joined = gguf.GGUFReader(whole), gguf.GGUFReader(tmp_path / "joined.gguf")
    assert {key: field.contents() for key, field in joined.fields.items() if not key.startswith("GGUF.")} == {
        key: field.contents() for key, field in one.fields.items() if not key.startswith("GGUF.")
    }
    assert [tensor.name for tensor in joined.tensors] == [tensor.name for tensor in one.tensors]
    for before, after in zip(one.tensors, joined.tensors, strict=True):
        assert before.tensor_type is after.tensor_type
        np.testing.assert_array_equal(before.data, after.data)
    assert seen[-1][0] == seen[-1][1]


def test_they_are_quantised_as_the_whole_is(parts: list[Path], tmp_path: Path) -> None:
    mix = gguf.LlamaFileType.MOSTLY_Q4_K_M
    join_gguf(parts[0], tmp_path / "joined.gguf", ignore)
    sources = (tmp_path / "joined.gguf", parts[0])
    digests = {quantize_gguf(source, tmp_path / "q.gguf", mix, ignore) for source in sources}
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    assert "F16" not in types
    assert len(digests) == 1


def refused(path: Path, kind: type[ImportFailed], words: str, named: Path) -> None:
    with pytest.raises(kind, match=words) as caught:
        GGUFFile(path)
    assert caught.value.message.startswith(f"{named}: ")
    assert caught.value.hint


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    refused(parts[0], ImportFailed, f"is missing, part 2 of {len(parts)}", parts[1])


def test_a_later_part_says_which_is_the_first(parts: list[Path]) -> None:
    with pytest.raises(ImportFailed, match="is a later part") as caught:
        GGUFFile(parts[1])
    assert caught.value.hint == f"name {parts[0].name}"


def test_a_part_under_another_name(parts: list[Path]) -> None:
    other = parts[0].rename(parts[0].with_name("model.gguf"))
    refused(other, ImportFailed, "its name does not say which", other)


def test_parts_in_another_order(parts: list[Path]) -> None:
    aside = parts[1].rename(parts[1].with_suffix(".aside"))
    parts[2].rename(parts[1])
    aside.rename(parts[2])
    refused(parts[0], CorruptFile, "is a part of another model", parts[1])


def test_a_part_of_another_model(parts: list[Path], whole: Path, split_gguf: Split) -> None:
    others = split_gguf(whole, 2)
    shutil.copyfile(others[1], parts[1])
    refused(parts[0], CorruptFile, "is a part of another model: split.no", parts[1])


def changed(path: Path, **keys: int) -> None:
    """Write other numbers into the file's keys of a split."""
    reader = gguf.GGUFReader(path, "r+")
    for key, value in keys.items():
        field = reader.fields[f"split.{key.replace('_', '.')}"]
        field.parts[field.data[0]][0] = value


def test_a_part_with_the_tensors_of_another(parts: list[Path]) -> None:
    shutil.copyfile(parts[1], parts[2])
    changed(parts[2], no=2)
    refused(parts[0], CorruptFile, "is in another part as well", parts[2])


def test_a_wrong_count_of_tensors(parts: list[Path]) -> None:
    for part in parts:
        changed(part, tensors_count=999)
    refused(parts[0], CorruptFile, "tensors, not 999", parts[0])


def test_a_wrong_count_of_parts(parts: list[Path]) -> None:
    changed(parts[0], count=len(parts) + 1)
    refused(parts[0], ImportFailed, f"is one of {len(parts) + 1} parts, and its name does not say which", parts[0])
    changed(parts[0], count=len(parts))
    changed(parts[1], count=len(parts) + 1)
    refused(parts[0], CorruptFile, "are expected", parts[1])


def test_a_part_that_is_cut_off_or_no_gguf(parts: list[Path]) -> None:
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[: len(content) // 2])
    refused(parts[0], CorruptFile, "is cut off", parts[1])
    parts[1].write_bytes(b"<html>")
    refused(parts[0], CorruptFile, "is not a GGUF file", parts[1])


# Names

stems = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(stem=stems, number=st.integers(1, 99999), count=st.integers(2, 99999))
def test_a_name_says_what_it_was_made_of(stem: str, number: int, count: int) -> None:
    part = PartName(stem, number, count)
    assert PartName.parse(str(part)) == (part if number <= count else None)


@given(stem=stems, count=st.integers(2, 30), data=st.data())
def test_all_parts_are_found_from_any_or_the_missing_are_named(stem: str, count: int, data: st.DataObject) -> None:
    names = PartName(stem, 1, count).all
    name = data.draw(st.sampled_from(names))
    assert all_parts(name, [*reversed(names), "other.gguf"]) == names
    assert whole_name(name) == f"{stem}.gguf"
    missing = data.draw(st.sampled_from(names))
    with pytest.raises(ImportFailed) as caught:
        all_parts(name, [each for each in names if each != missing])
    assert caught.value.message.startswith(f"{missing}: is missing, of {count} parts")


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-00001-of-00001.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf"]
)
def test_other_names_stand_for_themselves(name: str) -> None:
    assert PartName.parse(name) is None
    assert all_parts(name, []) == [name]
    assert whole_name(name) == name
