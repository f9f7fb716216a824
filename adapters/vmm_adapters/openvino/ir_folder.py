"""OpenVINO IR on disk: reading with weights that can leave memory again, and a cache of rewritten ONNX decoders.

Reading an ONNX decoder copies its packed weights to the heap, and the plugin then packs them once more in its own
layout. An IR's weights are a mapped file instead: once the plugin has its copy, the pages are let go.
The cache keeps the *stateful* IR: neither an IR of the paged model nor a compiled blob (CACHE_DIR, export_model) can
be read back by OpenVINO 2026.4, because the head sizes of PagedAttention are not written.
"""

import hashlib
import logging
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from vmm_adapters.errors import UnsupportedModel
from vmm_adapters.leftovers import delete_abandoned

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the rewritten form changes, so that older entries are left aside."""
UNFINISHED = ".new-"
"""How the name of a folder begins that is still being written."""


class MappedWeights:
    """A weights file mapped into memory. Must outlive every model that was read with it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.num_bytes = len(self._map)
        array = np.frombuffer(self._map, np.uint8)
        self.tensor = ov.Tensor(array, ov.Shape([self.num_bytes]), ov.Type.u8)

    def release(self) -> None:
        """Let the pages leave memory; what is needed again is read again. Does nothing where the OS cannot."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def read_ir(core: Any, xml: Path) -> tuple[Any, MappedWeights]:
    """Read `name.xml` and `name.bin`. Raises `UnsupportedModel`."""
    try:
        weights = MappedWeights(xml.with_suffix(".bin"))
        return core.read_model(xml.read_bytes(), weights.tensor), weights
    except (OSError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(f"OpenVINO cannot read {xml}: {error}") from error


@dataclass(frozen=True)
class IRCache:
    """Rewritten decoders, one folder each, named `<model folder>-<state of its files>`.

    Safe with several processes: an entry appears whole by a rename, and one being read may be deleted.
    """

    directory: Path

    def read(self, core: Any, decoder: Path) -> tuple[Any, MappedWeights] | None:
        """The entry for an ONNX decoder, or `None`. An entry that cannot be read is deleted."""
        entry = self._entry(decoder)
        if not entry.is_dir():
            return None
        try:
            if (entry / "decoder.sha256").read_text(encoding="ascii") == _stamp(entry):
                return read_ir(core, entry / "decoder.xml")
            logger.warning("the cached model %s is damaged; it is made again", entry)
        except (OSError, ValueError, UnsupportedModel) as error:
            logger.warning("the cached model %s cannot be read and is made again: %s", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
        return None

    def write(self, decoder: Path, model: Any) -> None:
        """Keep a rewritten decoder and drop the entries of the folder's former states. A failure is only logged."""
        entry = self._entry(decoder)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=UNFINISHED, ignore_cleanup_errors=True) as new:
                _write_entry(Path(new), model)
                if not _rename(Path(new), entry):
                    return
        except (OSError, RuntimeError) as error:
            logger.warning("the rewritten model was not kept in %s: %s", self.directory, error)
            return
        folder, _, _ = entry.name.partition("-")
        former = [other for other in self.directory.glob(f"{folder}-*") if other != entry]
        for left in former:
            shutil.rmtree(left, ignore_errors=True)
        delete_abandoned(self.directory, UNFINISHED)

    def _entry(self, decoder: Path) -> Path:
        """Depends on the place, size and time of every file beside the decoder, and on who rewrites it."""
        folder = decoder.resolve().parent
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".json")
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        versions = (FORMAT, ov.get_version(), decoder.name)
        return self.directory / f"{_digest(str(folder))}-{_digest(repr((state, versions)))}"


def _write_entry(folder: Path, model: Any) -> None:
    ov.save_model(model, folder / "decoder.xml", compress_to_fp16=False)
    (folder / "decoder.sha256").write_text(_stamp(folder), encoding="ascii")
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _rename(new: Path, entry: Path) -> bool:
    """False: another process was first."""
    try:
        new.rename(entry)
    except OSError:
        if entry.is_dir():
            return False
        raise
    return True


def _stamp(folder: Path) -> str:
    """Of the graph; it knows where in the weights file each tensor ends, and the weights are too many to hash."""
    return hashlib.sha256((folder / "decoder.xml").read_bytes()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
