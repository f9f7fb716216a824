"""What every writer does on a disk that is full: `full_disk.py FOLDER`, in a mount namespace of its own.

Mounts a small file system on FOLDER. Each writer gets a folder there, works once while there is room, once while there
is none, and once more when there is some again. Prints a JSON object: by writer, what the second try raised, what it
left behind or took away, and what the third one raised.
"""

import asyncio
import hashlib
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

from gguf.constants import GGMLQuantizationType

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.cpu.kernels import keep
from vmm_adapters.device import Machine
from vmm_adapters.echo import write_echo_model
from vmm_server.batch_store import Batch, JobStore, open_database
from vmm_server.cli.terminal import TerminalReader
from vmm_server.database import Database
from vmm_server.file_store import FileStore, NewFile
from vmm_server.keys import KeyRing
from vmm_server.models.building import Importer
from vmm_server.models.create import CreateRequest, Creator
from vmm_server.models.importers.gguf import import_gguf
from vmm_server.models.machine import MachineReader
from vmm_server.models.names import ModelName
from vmm_server.models.profiles import Profiles
from vmm_server.models.pull import Puller
from vmm_server.models.quantizing import Quantizer, Wish
from vmm_server.models.registry import Registry
from vmm_server.models.releases import Release
from vmm_server.models.router import Placement, Profile
from vmm_server.models.store import InstalledModel, Store
from vmm_server.response_store import ResponseStore

SIZE = "6m"
PIECE = 64 * 1024
IMPORTER: Importer = runpy.run_path(str(Path(__file__).parents[1] / "models" / "pull_once.py"))["make_importer"]()
TINY = runpy.run_path(str(Path(__file__).parents[1] / "data" / "gguf_reference" / "tiny_models.py"))
CONTENT = b"GGUF" + bytes(range(256)) * 1200
"""Of a model: some pages."""


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


@dataclass
class Writers:
    """Everything that writes, in a folder of its own; `turn` is 1, 2 or 3."""

    folder: Path
    outside: Path
    """On another disk."""
    turn: int = 0
    database: Database | None = None
    """Open from the first turn on."""

    def batches(self) -> Database:
        self.database = self.database or open_database(self.folder / "batches.db")
        return self.database

    def store(self) -> Store:
        return Store(self.folder)

    def model(self, name: str) -> InstalledModel:
        folder = self.outside / "echo"
        write_echo_model(folder)
        described: dict[str, Any] = {
            "name": f"{name}:latest",
            "aliases": (),
            "digest": "e" * 64,
            "size_bytes": 1,
            "modified_at": datetime.now(UTC),
            "adapter": "echo",
            "folder": folder,
            "format": "onnx",
            "family": "echo",
            "parameter_size": "0",
            "quantization": "F32",
            "context_length": 512,
            "embedding_length": None,
            "capabilities": ("completion",),
            "license": "x" * 5000,
            "title": name,
            "system": None,
            "sampling": SamplingDefaults(),
            "source": "file:/echo",
        }
        return InstalledModel(**described)

    async def blob(self) -> None:
        content = CONTENT + bytes([self.turn])
        await self.store().put_blob(hashlib.sha256(content).hexdigest(), pieces(content))

    async def create(self) -> None:
        store = self.store()
        registry = Registry(store)
        digest = hashlib.sha256(CONTENT).hexdigest()
        if self.turn == 1:
            await store.put_blob(digest, pieces(CONTENT))
            return
        creator = Creator(store, registry, Puller(store, registry, importer=IMPORTER), importer=IMPORTER)
        async for _ in creator.create(CreateRequest("m", files={"w.gguf": digest})):
            pass
        await creator.aclose()

    async def pull(self) -> None:
        weights = self.outside / f"weights-{self.turn}.gguf"
        weights.write_bytes(CONTENT + bytes([self.turn]))
        store = self.store()
        puller = Puller(store, Registry(store), importer=IMPORTER)
        async for _ in puller.pull(f"file:{weights}", name=f"m{self.turn}"):
            pass
        await puller.aclose()

    async def manifest(self) -> None:
        self.store().install(self.model(f"m{self.turn}"))

    async def copy(self) -> None:
        if self.turn == 1:
            self.store().install(self.model("m"))
        self.store().copy(ModelName.parse("m"), ModelName.parse(f"copy{self.turn}"))

    async def release(self) -> None:
        store = self.store()
        if self.turn == 1:
            store.install(self.model("m"))
        store.put_release(Release(ModelName.parse(f"alias{self.turn}"), ((ModelName.parse("m"), 100),)))

    async def quantize(self) -> None:
        if self.turn == 1:
            folder = self.outside / "tiny"
            folder.mkdir()
            TINY["write_gguf"](folder / "w.gguf", TINY["MODELS"]["llama3"], quantization=GGMLQuantizationType.F16)
            import_gguf(folder / "w.gguf", folder)
            for turn in "123":  # of weights of their own: what is there already is not written again
                about: dict[str, Any] = {"adapter": "openvino", "folder": folder, "size_bytes": 10**6}
                self.store().install(replace(self.model(f"m{turn}"), weights=turn * 64, **about))
        quantizer = Quantizer(self.store(), 1, lambda *_: (1.0, 1))
        quantizer.quantize(ModelName.parse(f"m{self.turn}"), Wish("int8", force=True), lambda *_, **__: None, Event())

    async def response(self) -> None:
        kept = ResponseStore(self.folder / "responses.db", max_bytes=10**8)
        try:
            body = {
                "id": f"r{self.turn}",
                "previous_response_id": None,
                "output": [],
                "filler": os.urandom(99000).hex(),
            }
            await kept.put(body, "", given=[], output=[])
            assert await kept.get(f"r{self.turn}", "")
        finally:
            await kept.aclose()

    async def file(self) -> None:
        files = FileStore(self.batches(), self.folder / "files", max_bytes=10**8)
        await files.put(NewFile("", f"{self.turn}.jsonl", "batch"), pieces(CONTENT))

    async def batch(self) -> None:
        metadata = json.dumps({"filler": os.urandom(99000).hex()}).encode()
        of = (f"b{self.turn}", "", "validating", "/v1/chat/completions", "f", "24h", metadata, None)
        await JobStore(self.batches(), max_bytes=10**8).add(Batch(*of, created_at=1, expires_at=2), max_live=9)

    async def keys(self) -> None:
        KeyRing(self.folder / "keys.toml").create(f"key{self.turn}")

    async def machine(self) -> None:
        reader = MachineReader(lambda: Machine(()), kept=self.folder / f"machine-{self.turn}.json", boot="a boot")
        await reader.read()
        reader.close()

    async def profile(self) -> None:
        profile = Profile(decode_1=1.0, decode_8=2.0, prefill=3.0, load_s=4.0, memory_bytes=5)
        Profiles(self.folder / f"{self.turn}").keep(self.model("m"), "here", Placement("echo", "CPU"), profile)

    async def kernels(self) -> None:
        # a warning: what is compiled is of use all the same
        keep(bytes(9000), self.folder / "kernels" / f"{self.turn}.o")

    async def history(self) -> None:
        (self.folder / "history").touch()
        TerminalReader(self.folder / "history")._session.history.append_string("x" * 9000)


NAMES = (
    *("blob", "create", "pull", "manifest", "copy", "release", "quantize", "response", "file", "batch", "keys"),
    *("profile", "machine", "kernels", "history"),
)


def tree(folder: Path) -> dict[str, str]:
    """Every file that counts: no locks, and nothing that SQLite keeps beside its own."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in str(path) and not path.name.endswith(("-wal", "-shm", ".db"))
    }


def fill(path: Path) -> None:
    """Take all room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


class Told(logging.Handler):
    """Keeps them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def attempt(work: Callable[[], Any]) -> str | None:
    """The error it ends with."""
    try:
        asyncio.run(work())
    except BaseException as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"
    return None


def probe(name: str, disk: Path, outside: Path) -> dict[str, object]:
    """One writer."""
    handler = Told()
    logging.getLogger("vmm_server").addHandler(handler)
    logging.getLogger("vmm_adapters").addHandler(handler)
    folder, filler = disk / name, disk / "filler"
    folder.mkdir()
    writers = Writers(folder, outside)
    writers.turn = 1
    first = attempt(getattr(writers, name))
    before = tree(folder)
    fill(filler)
    writers.turn = 2
    handler.lines.clear()
    full = attempt(getattr(writers, name))
    told = list(handler.lines)
    after = tree(folder)
    filler.unlink()
    writers.turn = 3
    again = attempt(getattr(writers, name))
    if writers.database is not None:
        asyncio.run(writers.database.aclose())
    shutil.rmtree(folder)
    left = sorted(set(after.items()) ^ set(before.items()))
    return {"first": first, "full": full, "told": told, "left": left, "again": again}


def main() -> None:
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(disk)], check=True)
    outside = disk.parent / "outside"
    outside.mkdir()
    json.dump({name: probe(name, disk, outside) for name in sys.argv[2:] or NAMES}, sys.stdout)


if __name__ == "__main__":
    main()
