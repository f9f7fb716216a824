import errno
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmm_adapters.card import SamplingDefaults
from vmm_server.errors import ModelLoadFailed, RequestCancelled, StoreError
from vmm_server.models.disk import format_bytes, store_errors
from vmm_server.models.names import ModelName
from vmm_server.models.store import STALE_AFTER_S, InstalledModel, Store, how_to_mend

Install = Callable[..., InstalledModel]
DIGEST, OTHER = "1" * 64, "2" * 64
DATA = Path(__file__).parents[1] / "data"


def parse(name: str) -> ModelName:
    return ModelName.parse(name)


def manifest_file(store: Store, stem: str) -> Path:
    return store.root / "manifests" / f"{stem}.json"


def never() -> threading.Event:
    return threading.Event()


def test_what_is_installed_reads_back_the_same(store: Store, install: Install) -> None:
    model = install("org/a:1b", sampling=SamplingDefaults(temperature=0.2), aliases=("a:latest",), system="Hi")
    assert Store(store.root).installed() == [model]
    manifest = store.manifest(parse("ORG/A:1B"))
    assert manifest is not None
    assert manifest.model == model


def test_what_a_created_model_puts_on_top_reads_back_the_same(store: Store, install: Install) -> None:
    model = install(
        "a",
        digest=OTHER,
        weights=DIGEST,
        parent="b:latest",
        template="{{ messages }}",
        parameters={"stop": ["x"], "temperature": 0.5, "num_ctx": 9},
        sampling=SamplingDefaults(temperature=0.5, stop=("x",), seed=1),
        messages=(("user", "1"), ("assistant", "2")),
        num_ctx=9,
        license_texts=("MIT",),
    )
    assert Store(store.root).installed() == [model]


def test_a_manifest_of_before_models_could_be_created_is_read(store: Store) -> None:
    store.prepare()
    shutil.copy(DATA / "manifests" / "smollm2@135m.json", store.root / "manifests")
    [model] = store.installed()
    assert model.weights == model.digest == "5a1395716f7913741cc51d98581b9b1228d80987a9f7d3664106742eb06bba83"
    assert (model.parent, model.template, model.parameters, model.messages) == (None, None, {}, ())
    assert model.sampling == SamplingDefaults(temperature=0.2, top_p=0.9)


def test_an_empty_or_absent_store_lists_nothing(store: Store) -> None:
    assert store.installed() == []
    assert not store.root.exists()
    assert store.remove(parse("a")) is False


def test_newest_first(store: Store, install: Install) -> None:
    for name, age_s in (("old", 20), ("new", 0), ("middle", 10)):
        install(name, age_s=age_s)
    assert [model.name for model in store.installed()] == ["new", "middle", "old"]


def test_the_store_can_be_moved(store: Store, install: Install, tmp_path: Path) -> None:
    model = install("a:latest")
    moved = Store(shutil.move(store.root, tmp_path / "elsewhere"))
    assert [found.folder for found in moved.installed()] == [tmp_path / "elsewhere" / "models" / "key"]
    moved.check_files(moved.installed()[0])
    with pytest.raises(ModelLoadFailed, match="key"):
        moved.check_files(model)  # its folder is where the store was


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"version": 2, "model": {}}',
        b'{"version": 1, "model": {"name": 3}}',
    ],
)
def test_a_damaged_manifest_is_skipped_with_the_mend(
    store: Store, install: Install, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    install("good:latest")
    install("bad:latest", key="bad")
    manifest_file(store, "bad@latest").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert [model.name for model in store.installed()] == ["good:latest"]
        store.installed()
    assert len(caplog.records) == 1, "one warning for each state of the file"
    assert "bad@latest.json" in caplog.text
    assert "pull the model again" in caplog.text
    assert store.manifest(parse("bad")) is None
    assert store.remove(parse("bad")) is True
    assert not manifest_file(store, "bad@latest").exists()


@pytest.mark.parametrize("name", ["other:latest", "../evil"])
def test_a_manifest_under_a_wrong_name_is_skipped(store: Store, install: Install, name: str) -> None:
    install("good:latest")
    path = manifest_file(store, "good@latest")
    content = json.loads(path.read_text())
    content["model"]["name"] = name
    path.write_text(json.dumps(content))
    assert store.installed() == []


def test_an_unreadable_manifest_stops_collection(store: Store, install: Install) -> None:
    model = install("a:latest")
    os.utime(model.folder, (0, 0))
    manifest_file(store, "a@latest").write_bytes(b"{")
    store.collect()
    assert model.folder.exists()


def test_remove_deletes_what_nobody_else_uses(store: Store, install: Install, tmp_path: Path) -> None:
    a = install("a:latest", key="a", blobs=(DIGEST, OTHER))
    b = install("b:latest", key="b", blobs=(OTHER,))
    in_place = install("c:latest", folder=tmp_path / "mine")
    assert store.remove(parse("A"))
    assert [model.name for model in store.installed()] == ["b:latest", "c:latest"]
    assert not a.folder.exists()
    assert not store.blob(DIGEST).exists()
    assert store.blob(OTHER).exists()
    assert b.folder.exists()
    store.remove(parse("c"))
    assert (in_place.folder / "model.onnx").exists()


def test_a_replaced_model_is_collected(store: Store, install: Install) -> None:
    old = install("a:latest", key="old", blobs=(DIGEST,))
    new = install("a:latest", key="new", blobs=(OTHER,))
    store.collect()
    assert store.installed() == [new]
    assert not old.folder.exists()
    assert not store.blob(DIGEST).exists()
    assert store.blob(OTHER).exists()


def test_leftovers_wait_a_week_for_a_resume(store: Store) -> None:
    store.prepare()
    fresh, stale = store.blobs_dir / "sha256-1.partial", store.blobs_dir / "sha256-2.partial"
    folder = store.models_dir / "x.partial"
    (folder / "sub").mkdir(parents=True)
    for path, age_s in ((fresh, STALE_AFTER_S - 60), (stale, STALE_AFTER_S + 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    os.utime(folder, (0, 0))
    store.collect()
    assert fresh.exists()
    assert not stale.exists()
    assert not folder.exists()


def test_nothing_is_collected_beside_a_pull(store: Store, install: Install) -> None:
    a = install("a:latest")
    with store.lease("some", cancelled=never()):
        store.remove(parse("a"))
        assert store.installed() == []
        assert a.folder.exists(), "the pull may be about to use it"
    assert not a.folder.exists(), "collected when the pull ended"


def test_a_lease_excludes_the_same_work_only(store: Store) -> None:
    waited, cancelled = [], threading.Event()

    def waiting() -> None:
        waited.append(True)
        cancelled.set()

    with (
        store.lease("one", cancelled=never()),
        store.lease("two", cancelled=never()),
        pytest.raises(RequestCancelled),
        store.lease("one", cancelled=cancelled, waiting=waiting),
    ):
        pytest.fail("held twice")
    assert waited == [True]
    with store.lease("one", cancelled=never()):
        pass
    assert [path.name for path in (store.root / "locks").iterdir()] == ["store.lock"], "no litter"


def test_a_killed_process_frees_its_lease(store: Store) -> None:
    code = (
        "import sys, threading, pathlib; from vmm_server.models.store import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).lease('one', cancelled=threading.Event()):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        cancelled, waits = threading.Event(), []

        def kill() -> None:
            waits.append(True)
            holder.kill()

        with store.lease("one", cancelled=cancelled, waiting=kill):
            pass
        assert waits == [True]


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"source": "hf:org/repo@1"}, "vmm pull hf:org/repo@1 --name a:latest"),
        ({"source": "hf:org/repo@1", "parent": "b:latest"}, "vmm pull hf:org/repo@1 --name b:latest"),
        ({"source": "upload:m.gguf"}, "create a:latest again from its files"),
        ({"source": "upload:m.gguf", "parent": "b:latest"}, "create b:latest again from its files"),
    ],
)
def test_what_mends_a_model_depends_on_where_it_came_from(fields: dict[str, Any], mend: str, install: Install) -> None:
    assert how_to_mend(install("a:latest", **fields)) == mend


def test_files_are_checked_before_a_load(store: Store, install: Install, tmp_path: Path) -> None:
    owned = install("a:latest", files={"model.onnx": b"1234", "x.json": b"{}"})
    store.check_files(owned)
    os.utime(owned.folder / "model.onnx", (5, 5))
    store.check_files(owned)  # a copied store has new times
    (owned.folder / "model.onnx").write_bytes(b"123")
    with pytest.raises(ModelLoadFailed, match=r"model\.onnx has changed") as changed:
        store.check_files(owned)
    assert changed.value.hint == "vmm pull file:/somewhere --name a:latest"
    (owned.folder / "model.onnx").unlink()
    with pytest.raises(ModelLoadFailed, match="No such file"):
        store.check_files(owned)

    in_place = install("b:latest", folder=tmp_path / "mine")
    store.check_files(in_place)
    os.utime(in_place.folder / "model.onnx", (5, 5))
    with pytest.raises(ModelLoadFailed, match="has changed"):
        store.check_files(in_place)
    shutil.rmtree(in_place.folder)
    with pytest.raises(ModelLoadFailed, match="No such file"):
        store.check_files(in_place)


def test_too_little_space_is_said_with_figures(tmp_path: Path) -> None:
    store = Store(tmp_path, free_bytes=lambda _: 1_500_000)
    store.ensure_free(1_500_000, "x")
    with pytest.raises(StoreError, match=r"for big: 2\.0 GB needed in .*, 1\.5 MB free") as caught:
        store.ensure_free(2_000_000_000, "big")
    assert "VMM_MODELS_DIR" in (caught.value.hint or "")


def test_a_store_that_cannot_be_made(tmp_path: Path, install: Install, store: Store) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="Not a directory") as caught:
        Store(tmp_path / "file" / "store").prepare()
    assert "VMM_MODELS_DIR" in (caught.value.hint or "")
    model = install("a:latest")
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "store").install(model)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EACCES, "who owns")]
)
def test_the_systems_refusals_name_the_mend(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StoreError) as caught, store_errors("write", tmp_path):
        raise OSError(number, os.strerror(number))
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_write_that_fails_leaves_the_old_manifest(store: Store, install: Install) -> None:
    old = install("a:latest")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # the kernel refuses the 101st byte
    try:
        with pytest.raises(StoreError, match="too large"):
            store.install(replace(old, system="new"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert Store(store.root).installed() == [old]
    assert [path.name for path in (store.root / "manifests").iterdir()] == ["a@latest.json"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (98_362_432, "98.4 MB"), (3_000_000_000_000, "3.0 TB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


# Copies


def test_a_copy_is_the_same_model_under_another_name(store: Store, install: Install) -> None:
    original = install("a:latest", aliases=("b:latest",), system="Hi", blobs=(DIGEST,), revision="1", age_s=9)
    assert store.copy(parse("A"), parse("me/c:1b")) is True
    copy = store.manifest(parse("me/c:1b"))
    assert copy is not None
    assert copy.model == replace(original, name="me/c:1b", aliases=(), modified_at=copy.model.modified_at)
    assert copy.model.modified_at > original.modified_at
    assert (copy.blobs, copy.revision) == ((DIGEST,), "1")
    store.check_files(copy.model)


@pytest.mark.parametrize(("deleted", "kept"), [("a", "c"), ("c", "a")])
def test_deleting_either_leaves_the_other_whole(store: Store, install: Install, deleted: str, kept: str) -> None:
    install("a:latest", blobs=(DIGEST,))
    store.copy(parse("a"), parse("c"))
    store.remove(parse(deleted))
    manifest = store.manifest(parse(kept))
    assert manifest is not None
    store.check_files(manifest.model)
    assert store.blob(DIGEST).exists()
    store.remove(parse(kept))
    assert list(store.models_dir.iterdir()) == list(store.blobs_dir.iterdir()) == []


def test_a_copy_replaces_what_has_its_name(store: Store, install: Install) -> None:
    install("a:latest", key="new")
    install("c:latest", key="old", blobs=(OTHER,))
    store.copy(parse("a"), parse("C"))
    assert [path.name for path in store.models_dir.iterdir()] == ["new"]
    assert list(store.blobs_dir.iterdir()) == []
    assert {model.name for model in store.installed()} == {"a:latest", "C:latest"}


def test_a_copy_onto_itself_changes_nothing(store: Store, install: Install) -> None:
    model = install("a:latest", aliases=("b",))
    assert store.copy(parse("a"), parse("A:latest")) is True
    assert store.installed() == [model]


def test_nothing_is_copied_of_what_is_not_there(store: Store) -> None:
    assert store.copy(parse("a"), parse("b")) is False
    assert store.installed() == []
