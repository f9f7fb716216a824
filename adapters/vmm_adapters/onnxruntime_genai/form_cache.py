"""Where the fast form of a model lies: made once, kept under the cache folder, or for as long as it is used.

A form's folder has links to the model's own files (copies, where there are no links between the file systems), and the
two files that are new. It is complete from the moment it has its name, and may be deleted at any time.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import onnx

from vmm_adapters.errors import RuntimeFailed
from vmm_adapters.leftovers import delete_abandoned
from vmm_adapters.onnxruntime_genai.fast_form import VERSION, data_files, is_fast, write_fast_form

_UNFINISHED = ".unfinished-"


@contextmanager
def fast_folder(folder: Path, decoder: Path, model: onnx.ModelProto, cache_dir: Path | None) -> Iterator[Path]:
    """The folder to load: `folder` itself when its model is fast, else one with its fast form.

    `model` is the decoder's graph and is changed. Without a `cache_dir` the form is gone when the context ends.
    """
    if is_fast(model):
        yield folder
        return
    with ExitStack() as stack:
        try:
            if cache_dir is None:
                made = Path(stack.enter_context(TemporaryDirectory(prefix="vmm-", ignore_cleanup_errors=True)))
                _write(folder, decoder, model, made)
            else:
                made = cache_dir / f"onnxruntime-genai-{_identity(folder, decoder, model)}"
                if not made.is_dir():
                    _keep(folder, decoder, model, made)
        except OSError as error:
            raise RuntimeFailed(f"cannot write the fast form of {decoder}: {error}") from error
        yield made


def _keep(folder: Path, decoder: Path, model: onnx.ModelProto, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    delete_abandoned(kept.parent, _UNFINISHED)
    unfinished = Path(mkdtemp(prefix=_UNFINISHED, dir=kept.parent))
    try:
        _write(folder, decoder, model, unfinished)
        for path in unfinished.iterdir():
            _sync(path)
        try:
            unfinished.rename(kept)
        except OSError:
            if not kept.is_dir():  # another process was quicker
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, decoder: Path, model: onnx.ModelProto, target: Path) -> None:
    needed = {decoder.parent / name for name in data_files(model)}
    beside = {path for path in folder.iterdir() if path.is_file() and ".onnx" not in path.name}
    for path in (needed | beside) - {decoder}:
        link = target / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.hardlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, link)
    written = target / decoder.relative_to(folder)
    written.parent.mkdir(parents=True, exist_ok=True)
    write_fast_form(model, decoder.parent, written)


def _identity(folder: Path, decoder: Path, model: onnx.ModelProto) -> str:
    """Of what the form is made of, and how."""
    files = sorted({decoder, *(decoder.parent / name for name in data_files(model)), *folder.glob("*.json")})
    digest = hashlib.sha256(str(VERSION).encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
