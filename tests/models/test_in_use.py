"""Files of models in memory stay for as long as they are there, in every process."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from vmm_server.errors import ModelLoadFailed, ModelReplaced
from vmm_server.models.in_use import MAX_REPLACED, FilesInUse, again_if_replaced
from vmm_server.models.names import ModelName
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store

KEEPER = """
import sys
from pathlib import Path
from vmm_server.models.registry import Registry
from vmm_server.models.store import Store
store = Store(Path(sys.argv[1]))
free = store.keep_files(Registry(store).resolve("echo"))
print("kept", flush=True)
sys.stdin.readline()
free()
print("free", flush=True)
sys.stdin.readline()
"""
CPU = Placement("echo", "CPU")


@pytest.fixture
def store(settings: Any) -> Store:
    return Store(settings().store_dir)


@pytest.fixture
def echo(store: Store, installed: Callable[..., None]) -> InstalledModel:
    """In the store's own folder, with a blob."""
    store.prepare()
    folder = store.models_dir / "aaaa"
    installed("echo:latest")
    (found,) = store.installed()
    found.folder.rename(folder)
    store.blob("a" * 64).write_text("fetched")
    model = found.in_folders(lambda _: folder)
    return store.install(model, blobs=["a" * 64])


@pytest.fixture
def keeper(store: Store, echo: InstalledModel) -> Iterator[subprocess.Popen[str]]:
    """Another process that keeps the files, until it is told to free them, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "kept\n"
    yield process
    process.kill()
    process.communicate()


def are_there(store: Store, echo: InstalledModel) -> bool:
    found = {echo.folder.exists(), store.blob("a" * 64).exists()}
    assert len(found) == 1
    return found == {True}


def test_what_another_process_uses_stays_until_it_says_so(
    store: Store, echo: InstalledModel, keeper: subprocess.Popen[str]
) -> None:
    store.remove(ModelName.parse(echo.name))
    store.collect()
    assert are_there(store, echo)
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.write("\n")
    keeper.stdin.flush()
    assert keeper.stdout.readline() == "free\n"
    store.collect()
    assert not are_there(store, echo)


def test_a_process_that_dies_keeps_nothing(store: Store, echo: InstalledModel, keeper: subprocess.Popen[str]) -> None:
    keeper.kill()
    keeper.wait()
    assert list((store.root / "locks").glob("keep-*"))
    store.remove(ModelName.parse(echo.name))
    assert not are_there(store, echo)
    assert not list((store.root / "locks").glob("keep-*"))


def test_several_may_keep_the_same_files(store: Store, echo: InstalledModel) -> None:
    frees = [store.keep_files(echo) for _ in range(3)]
    store.remove(ModelName.parse(echo.name))
    for free in frees:
        assert are_there(store, echo)
        free()
        store.collect()
    assert not are_there(store, echo)


def test_other_files_are_collected_meanwhile(store: Store, echo: InstalledModel) -> None:
    free = store.keep_files(echo)
    other = store.models_dir / "aaaa-2"
    other.mkdir()
    store.blob("b" * 64).write_text("x")
    store.release_blob("b" * 64)
    store.collect()
    assert not store.blob("b" * 64).exists()
    assert are_there(store, echo)
    free()


def test_a_store_that_cannot_be_written_is_read_all_the_same(store: Store, echo: InstalledModel) -> None:
    shutil.rmtree(store.root / "locks")
    (store.root / "locks").write_text("no folder")
    store.keep_files(echo)()


def test_a_load_that_fails_keeps_nothing(store: Store, echo: InstalledModel) -> None:
    def fail(*_: object) -> Any:
        raise ModelLoadFailed("no")

    files = FilesInUse(store, fail)
    with pytest.raises(ModelLoadFailed):
        files.load(echo, CPU, 0)
    store.remove(ModelName.parse(echo.name))
    assert not are_there(store, echo)


def test_what_the_name_does_not_mean_any_more_is_not_loaded(store: Store, echo: InstalledModel) -> None:
    files = FilesInUse(store, lambda *_: pytest.fail("nothing is loaded"))
    store.copy(ModelName.parse("echo"), ModelName.parse("second"))
    store.install(replace(echo, digest="b" * 64, weights="", folder=echo.folder.with_name("bbbb")))
    with pytest.raises(ModelReplaced, match="'echo:latest' was replaced"):
        files.load(echo, CPU, 0)
    assert are_there(store, echo), "another name needs it"
    store.remove(ModelName.parse("second"))
    assert not are_there(store, echo)
    store.remove(ModelName.parse("echo"))
    with pytest.raises(ModelReplaced):
        files.load(echo, CPU, 0)


@pytest.mark.parametrize("num_replaced", [0, 1, MAX_REPLACED, MAX_REPLACED + 1])
def test_a_model_is_found_anew_so_often(num_replaced: int) -> None:
    left = [ModelReplaced("echo")] * num_replaced

    async def attempt() -> str:
        if left:
            raise left.pop()
        return "found"

    if num_replaced > MAX_REPLACED:
        with pytest.raises(ModelReplaced):
            asyncio.run(again_if_replaced(attempt))
    else:
        assert asyncio.run(again_if_replaced(attempt)) == "found"


def test_what_any_name_needs_is_installed(store: Store, echo: InstalledModel) -> None:
    files = FilesInUse(store, lambda *_: pytest.fail("nothing is loaded"))
    assert files.is_installed(echo)
    store.copy(ModelName.parse("echo"), ModelName.parse("second"))
    store.remove(ModelName.parse("echo"))
    assert files.is_installed(echo)
    store.remove(ModelName.parse("second"))
    assert not files.is_installed(echo)
