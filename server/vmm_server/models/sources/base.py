"""What every source of weights offers."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from gguf.constants import LlamaFileType

from vmm_server.errors import InvalidRequest, RequestCancelled


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that can be fetched."""

    path: str
    """Its name, relative to the model's folder, with `/`."""
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_oid: str | None = None
    """Git's own digest of a file that is kept in the repository itself (sha1 of a header and the content)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent to the URL's host only."""


@dataclass(frozen=True, slots=True)
class Step:
    """What long work reports to, and is stopped by."""

    cancelled: threading.Event
    progress: Callable[[int, int | None], None]
    """Called with the bytes that are there and the total, where it is known."""
    reserve: Callable[[int], None]
    """Raises `StoreError` when the disk has no room for that many more bytes."""

    def check(self) -> None:
        """Raises `RequestCancelled` when nobody waits for the result any more."""
        if self.cancelled.is_set():
            raise RequestCancelled


@dataclass(frozen=True, slots=True)
class Transfer(Step):
    """What a fetch works with."""

    client: httpx.Client


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds, before anything big is fetched."""

    name: str
    """What a name for the model can be derived from."""
    revision: str | None
    """What the source calls this content; equal means the same bytes. `None` when it does not say."""
    files: tuple[SourceFile, ...] = ()
    """To be fetched: one file to import or to unpack or, with `is_folder`, the folder's files."""
    is_folder: bool = False
    unpack: Callable[[Path, Path, Step], None] | None = None
    """Writes the folder that the one file is an archive of: `(archive, empty folder, step)`."""
    quantize: LlamaFileType | None = None
    """What the safetensors of a folder are to become while they are imported."""
    local: Path | None = None
    """A file or folder that is on this machine already; there are no `files` then."""


class Source(Protocol):
    """One place that weights come from, as a URI names it."""

    @property
    def uri(self) -> str:
        """Canonical."""
        ...

    def look_up(self, transfer: Transfer) -> Listing:
        """Ask what is there. Raises `SourceError`, `SourceNotFound`."""
        ...

    def fetch(self, file: SourceFile, target: Path, transfer: Transfer) -> str:
        """Write the file to `target`, going on with what an interrupted fetch left there; returns its sha256.

        Raises `SourceError` and its kinds, `StoreError`, `RequestCancelled`. `target` may then be kept for a resume.
        """
        ...


def invalid_uri(uri: str, problem: str) -> InvalidRequest:
    """The error for a URI that cannot be understood."""
    return InvalidRequest(f"{uri}: {problem}", param="model", hint="model_cards/README.md lists the forms of a source")


def hash_file(path: Path, step: Step, *, before: int = 0, total: int | None = None) -> str:
    """sha256 of a file, with progress (`before` bytes of `total` are done) and cancellation."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            step.check()
            digest.update(chunk)
            before += len(chunk)
            step.progress(before, total)
    return digest.hexdigest()
