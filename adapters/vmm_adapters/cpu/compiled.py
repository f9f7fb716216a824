"""How functions of this package are compiled by Numba, and kept."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numba
from numba import config, njit, typeof
from numba.core.event import Event, Listener, install_listener

logger = logging.getLogger(__name__)

compiled = njit(nogil=True, error_model="numpy")
"""Without the interpreter's lock, and without checks that would raise: a thread that ends is waited for in vain."""

_lock = Lock()


def compile_kept(function: Any, arguments: Iterable[Any], folder: Path | None) -> None:
    """Compile a function for such arguments, or read what an earlier start on such a machine compiled.

    Numba's index knows the machine but only one file of ours: the folder's name stands for all of them.
    """
    with _lock:
        if folder is not None:
            before = config.CACHE_DIR
            config.CACHE_DIR = str(folder / fingerprint())
            try:
                function.enable_caching()
            finally:
                config.CACHE_DIR = before
        with install_listener("numba:compile", _Announcer()):
            signature = tuple(typeof(argument) for argument in arguments)
            try:
                function.compile(signature)
            except OSError as error:  # a full disk: what is compiled is of use all the same
                if signature not in function.overloads:
                    raise
                logger.warning("compiled kernels are not kept: %s", error)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say that something is being compiled, and how long it took."""
    logger.info("compiling %s for this machine, once", what)
    started = perf_counter()
    yield
    logger.info("compiled %s in %.1f s", what, perf_counter() - started)


class _Announcer(Listener):  # type: ignore[misc]
    """The same of what Numba compiles, as functions call one another; what it finds in its cache is no event."""

    def __init__(self) -> None:
        self._depth = 0
        self._announced = announced("the steps of decoders")

    def on_start(self, event: Event) -> None:
        """A function is compiled, perhaps for another one."""
        if not self._depth:
            self._announced.__enter__()
        self._depth += 1

    def on_end(self, event: Event) -> None:
        """It is compiled, or was not."""
        self._depth -= 1
        if not self._depth:
            self._announced.__exit__(None, None, None)


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


def fingerprint() -> str:
    """Of this package's code and of Numba."""
    digest = sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
