"""Writing to disk so that a crash at any moment leaves either the old state or the new one."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vmm_server.errors import StoreError

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the file system `folder` lies on."""
    return shutil.disk_usage(folder).free


def format_bytes(count: int) -> str:
    """`98.4 MB`, in powers of 1000 as disks and downloads are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def store_errors(doing: str, folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals into `StoreError` with the mend; `doing` is a verb phrase."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space (vmm rm MODEL), or set VMM_MODELS_DIR to a bigger disk"
            raise StoreError(f"cannot {doing}: the disk that holds {folder} is full ({reason})", hint=hint) from error
        if error.errno == errno.EFBIG:
            hint = "set VMM_MODELS_DIR to a file system that takes large files"
            raise StoreError(f"cannot {doing}: too large a file for {folder} ({reason})", hint=hint) from error
        path = error.filename or folder
        hint = "check who owns that folder, or set VMM_MODELS_DIR to one you can write to"
        raise StoreError(f"cannot {doing}: {path}: {reason}", hint=hint) from error


def sync_folder(folder: Path) -> None:
    """Make names created in or moved into `folder` durable (Windows needs and knows no such call)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content`, durably, in one step. `mode` is what it may be beyond the process's umask."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_folder(aside: Path, target: Path) -> None:
    """Make the finished folder `aside` durable and give it its name."""
    for parent, _, names in os.walk(aside):
        for name in names:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))
    aside.replace(target)
    sync_folder(target.parent)


def delete_folder(folder: Path) -> None:
    """Delete a folder, if it is there, so that a crash half-way cannot leave it looking whole."""
    doomed = folder if folder.suffix == ".partial" else folder.with_name(f"{folder.name}.partial")
    if doomed != folder and folder.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)
