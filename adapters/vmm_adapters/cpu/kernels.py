"""Compiled code: read from disk, or compiled there first, by a process of its own.

Compilers keep 100 MB of memory, and the interpreter's lock: this process never loads one. What is compiled is kept, for
a machine and a version of the code, and read from there the next time.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import get_ident
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from vmm_adapters.cpu import cores
from vmm_adapters.cpu.formats import COMMON, KERNEL, STEPS, TAKE_PART
from vmm_adapters.cpu.isa import InstructionSet, machine_name
from vmm_adapters.cpu.objects import Code
from vmm_adapters.errors import RuntimeFailed

logger = logging.getLogger(__name__)

_DIGEST_BYTES = sha256().digest_size
_ELSEWHERE = "choose another runtime: VMM_BACKEND=openvino"


class Kernels:
    """What the steps of a decoder call, and they themselves; it all lives as long as this does."""

    def __init__(self, isa: InstructionSet | None, forms: Iterable[int], cache_dir: Path | None) -> None:
        """The kernels of `forms`, indices of `FORMS`, and all that are not of a form.

        `isa`: instead of the best one that the machine has. Raises `RuntimeFailed`, `BadObject` and `OSError`.
        """
        names = [STEPS, COMMON, *(str(number) for number in sorted({int(form) for form in forms}))]
        self._codes = [Code(compiled) for compiled in compile_kept(isa, names, cache_dir)]
        steps, *kernels = (code.addresses for code in self._codes)
        self.take_part = steps[TAKE_PART]
        """The address of the function that threads run: see `codegen.parts`."""
        places = {int(name.removeprefix(KERNEL.format(""))): at for found in kernels for name, at in found.items()}
        self.table: NDArray[np.int64] = np.zeros(max(places) + 1, np.int64)
        """Addresses of kernels, by place; 0 for what was not compiled."""
        self.table[list(places)] = list(places.values())


def compile_kept(isa: InstructionSet | None, names: list[str], cache_dir: Path | None) -> list[bytes]:
    """Object files, in the order of their names; of those that are not kept as many are compiled at a time as there are
    cores. Raises `RuntimeFailed`.
    """
    folder = None if cache_dir is None else cache_dir / _fingerprint()
    paths = {name: _path(folder, isa, name) for name in names}
    found = {name: kept for name, path in paths.items() if (kept := _read(path)) is not None}
    missing = [name for name in names if name not in found]
    if missing:
        logger.info("compiling kernels for this machine, once (%s)", ", ".join(missing))
        started = perf_counter()
        with ThreadPoolExecutor(cores.num_threads()) as pool:
            for name, compiled in zip(missing, pool.map(partial(_compile, isa), missing), strict=True):
                found[name] = compiled
                keep(compiled, paths[name])
        logger.info("compiled kernels in %.1f s", perf_counter() - started)
    return [found[name] for name in names]


def _path(folder: Path | None, isa: InstructionSet | None, name: str) -> Path | None:
    if folder is None:
        return None
    kind = "" if name == STEPS else f"-{isa.name if isa else 'best'}".lower()
    return folder / f"{machine_name()}{kind}-{name}.o"


def _compile(isa: InstructionSet | None, name: str) -> bytes:
    # a bundled application is no interpreter that could be asked
    if getattr(sys, "frozen", False):
        raise RuntimeFailed("kernels are compiled by a Python interpreter, and there is none", hint=_ELSEWHERE)
    command = [sys.executable, "-m", "vmm_adapters.cpu.codegen", name, *([isa.name] if isa and name != STEPS else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    raise RuntimeFailed(f"kernels cannot be compiled here: {said[-1]}", hint=_ELSEWHERE)


def _read(path: Path | None) -> bytes | None:
    """What was kept, if it is still that to the last bit: it is going to be run."""
    try:
        kept = b"" if path is None else path.read_bytes()
    except OSError:
        return None
    compiled, digest = kept[:-_DIGEST_BYTES], kept[-_DIGEST_BYTES:]
    return compiled if sha256(compiled).digest() == digest else None


def keep(compiled: bytes, path: Path | None) -> None:
    """For later starts, whole or not at all. A full disk is a warning: what is compiled is of use all the same."""
    if path is None:
        return
    part = path.with_suffix(f".{os.getpid()}-{get_ident()}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(compiled + sha256(compiled).digest())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("compiled kernels are not kept: %s", error)


def writable(folder: Path | None) -> Path | None:
    """The folder, made if need be; `None`, and a warning, where nothing can be kept in it."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("compiled kernels are not kept: %s", error)
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        logger.warning("compiled kernels are not kept: nothing can be written to %s", folder)
        return None
    return folder


@cache
def _fingerprint() -> str:
    """Of this package's code and of what compiles it."""
    digest = sha256(f"{version('numba')} {version('llvmlite')}".encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
