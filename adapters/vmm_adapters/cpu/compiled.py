"""How functions of this package are compiled by Numba, and kept."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numba
from numba import config, njit, typeof

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
        function.compile(tuple(typeof(argument) for argument in arguments))


def fingerprint() -> str:
    """Of this package's code and of Numba."""
    digest = sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
