"""What a process killed at a random moment leaves: `kill_rounds.py <store> KIND <rounds> <seed> <url>`.

KIND is create, delete, upload, or pull, which pulls the file at the URL. Each round a child works on the store in
a loop and is killed with SIGKILL; then the store is read as after a restart, and everything in it has to be whole.
One process with children costs one start of Python for all rounds.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import runpy
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

from vmm_server.models.building import Importer
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.names import ModelName
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.store import Store

IMPORTER: Importer = runpy.run_path(str(Path(__file__).with_name("pull_once.py")))["make_importer"]()
LONGEST_S = 0.12
"""Several creations of such small files."""


def content(index: int) -> bytes:
    return b"GGUF" + random.Random(index).randbytes(200_000)


def digest(index: int) -> str:
    return hashlib.sha256(content(index)).hexdigest()


async def put(store: Store, index: int) -> None:
    async def sent() -> AsyncIterator[bytes]:
        yield content(index)

    await store.put_blob(digest(index), sent())


async def create(store: Store, request: CreateRequest) -> None:
    registry = Registry(store)
    creator = Creator(store, registry, Puller(store, registry, importer=IMPORTER), importer=IMPORTER)
    async for _ in creator.create(request):
        pass


def create_for_ever(store: Store, seed: int) -> NoReturn:
    async def work() -> None:
        for turn in range(seed * 1000, sys.maxsize):
            await put(store, turn % 5)
            await create(store, CreateRequest("m", files={"w.gguf": digest(turn % 5)}, system=str(turn % 5)))
            await create(store, CreateRequest("child", "m", system=str(turn)))

    asyncio.run(work())
    sys.exit("unreachable")


def delete_for_ever(store: Store, seed: int) -> NoReturn:
    """Makes what it deletes, quickly: copies share files, folders of their own go with the last copy."""

    async def work() -> None:
        for turn in range(seed * 1000, sys.maxsize):
            await put(store, turn % 5)
            await create(store, CreateRequest("m", files={"w.gguf": digest(turn % 5)}, system=str(turn % 5)))
            for index in range(5):
                store.copy(ModelName.parse("m"), ModelName.parse(f"copy{index}"))
            for name in ("m", *(f"copy{index}" for index in range(5))):
                store.remove(ModelName.parse(name))

    asyncio.run(work())
    sys.exit("unreachable")


def upload_for_ever(store: Store, seed: int) -> NoReturn:
    async def work() -> None:
        for turn in range(seed * 1000, sys.maxsize):
            await put(store, turn)

    asyncio.run(work())
    sys.exit("unreachable")


def pull_for_ever(store: Store, seed: int) -> NoReturn:
    async def work() -> None:
        for _ in range(seed, sys.maxsize):
            async for _ in Puller(store, Registry(store), importer=IMPORTER).pull(sys.argv[5], name="m"):
                pass
            store.remove(ModelName.parse("m"))

    asyncio.run(work())
    sys.exit("unreachable")


def check(store: Store) -> dict[str, int]:
    """What is visible is whole. Raises `AssertionError`, `VMMError`."""
    for path in store.blobs_dir.iterdir():
        if re.fullmatch("sha256-[0-9a-f]{64}", path.name):
            assert path.name == f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}", path
    files = [path for path in (store.root / "manifests").iterdir() if not path.name.startswith(".")]
    models = store.installed()
    assert len(models) == len(files), "an unreadable manifest"
    for model in models:
        store.check_files(model)
        made_of = (model.folder / "model.onnx").read_bytes()
        assert hashlib.sha256(made_of).hexdigest() == model.weights, model
        if model.system and model.name.startswith(("m:", "copy")):
            assert made_of == content(int(model.system)), "the files of one version, the manifest of another"
    return {
        "models": len(models),
        "partials": len([*store.blobs_dir.glob("*.partial"), *store.models_dir.glob("*.partial")]),
    }


def go_on(store: Store) -> None:
    """After a restart everything works, and what was left half-way goes when it is old."""
    asyncio.run(put(store, 0))
    asyncio.run(create(store, CreateRequest("m", files={"w.gguf": digest(0)}, system="0")))
    assert {model.name for model in store.installed()} >= {"keep:latest", "m:latest"}


def kill_one(work: Callable[[Store, int], NoReturn], store: Store, seed: int, after_s: float) -> None:
    pid = os.fork()
    if not pid:
        try:
            work(store, seed)
        finally:
            os._exit(3)  # it ended by itself
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child failed before it was killed"


def main(root: str, kind: str, rounds: str, seed: str, _: str) -> None:
    store, chance = Store(Path(root)), random.Random(int(seed))
    kinds = {"create": create_for_ever, "delete": delete_for_ever, "upload": upload_for_ever, "pull": pull_for_ever}
    work = kinds[kind]
    asyncio.run(put(store, 7))
    asyncio.run(create(store, CreateRequest("keep", files={"w.gguf": digest(7)})))
    kept = store.installed()[0]
    seen = []
    for number in range(int(rounds)):
        kill_one(work, store, number, chance.uniform(0.002, LONGEST_S))
        seen.append(check(store))
        assert kept in store.installed()
    go_on(store)
    for model in store.installed():
        store.remove(ModelName.parse(model.name))
    with contextlib.suppress(FileNotFoundError):
        for path in (*store.blobs_dir.iterdir(), *store.models_dir.iterdir()):
            os.utime(path, (0, 0))
    store.collect()
    assert not [*store.blobs_dir.iterdir(), *store.models_dir.iterdir()]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
