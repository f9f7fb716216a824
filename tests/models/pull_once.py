"""One pull in a process of its own: `pull_once.py <store> <uri> <name>`; prints its events, one a line.

The importer is a fake that copies; the tests in this folder use it too.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from vmm_server.errors import CorruptFile, VMMError
from vmm_server.models.building import Importer
from vmm_server.models.importers.imported import ImportedModel
from vmm_server.models.pull import Puller
from vmm_server.models.registry import Registry
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.store import Store

GGUF = b"GGUF"
RETRY = RetryPolicy(attempts=3, first_delay_s=0.0, max_delay_s=0.0)


def detect_format(path: Path) -> str:
    if path.is_dir():
        marks = {"genai_config.json": "onnx", "openvino_model.xml": "openvino"}
        for mark, format_ in marks.items():
            if (path / mark).exists():
                return format_
        raise CorruptFile(f"{path} holds no model")
    with path.open("rb") as file:
        if file.read(4) == GGUF:
            return "gguf"
    raise CorruptFile(f"{path} is not a GGUF file")


def describe_folder(folder: Path) -> ImportedModel:
    detect_format(folder)
    return ImportedModel("llama", 1000, "1K", "F32", 128, 8, ("completion",), True, "MIT", None)


def import_gguf(source: Path, folder: Path, progress: Callable[[int, int], None]) -> ImportedModel:
    total, done = source.stat().st_size, 0
    with source.open("rb") as read, (folder / "model.onnx").open("wb") as write:
        while chunk := read.read(4096):
            write.write(chunk)
            done += len(chunk)
            progress(done, total)
    (folder / "genai_config.json").write_text("{}")
    return describe_folder(folder)


def make_importer(version: str = "1") -> Importer:
    return Importer(
        detect_format, describe_folder, {"gguf": import_gguf}, check_config=lambda folder: None, version=version
    )


async def main(root: str, uri: str, name: str) -> None:
    store = Store(Path(root))
    puller = Puller(store, Registry(store), importer=make_importer(), retry=RETRY)
    async for event in puller.pull(uri, name=name):
        sys.stdout.write(json.dumps(asdict(event)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except VMMError as error:
        sys.exit(f"{type(error).__name__}: {error.message}")
