"""What is missing is compiled in processes of their own: compilers keep 100 MB of memory, and the interpreter's lock.

Kernels and steps do not need each other, so they are compiled at the same time:

    python -m vmm_adapters.cpu.precompile FOLDER AVX2 FORM…
    python -m vmm_adapters.cpu.precompile FOLDER
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vmm_adapters.cpu.compiled import announced, compile_kept, fingerprint
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.cpu.kernels import Kernels, machine_name
from vmm_adapters.cpu.layout import LAYER, MATRIX
from vmm_adapters.cpu.share import MODEL, STEP
from vmm_adapters.cpu.threads import take_part

logger = logging.getLogger(__name__)


def compile_apart(isa: InstructionSet, forms: Iterable[int], folder: Path | None) -> None:
    """See to it that `folder` has what `Kernels` and `Team` need. Where that fails, they compile for themselves."""
    # a bundled application is no interpreter that could be asked
    if folder is None or getattr(sys, "frozen", False):
        return
    numbers = [str(number) for number in sorted({int(form) for form in forms})]
    marks = {f"{isa.name}-{'-'.join(numbers)}": [isa.name, *numbers], "steps": []}
    kept = folder / fingerprint()
    missing = {
        mark: [sys.executable, "-m", "vmm_adapters.cpu.precompile", str(folder), *arguments]
        for name, arguments in marks.items()
        if not (mark := kept / f"{machine_name()}-{name}.done".lower()).is_file()
    }
    if not missing:
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with announced(f"kernels with {isa.name}"):
        compiling = [
            (
                mark,
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                ),
            )
            for mark, command in missing.items()
        ]
        for mark, process in compiling:
            _, said = process.communicate()
            if process.returncode == 0:
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            else:
                reason = (said.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
                logger.warning("compiling in a process of its own failed (%s); it is done here", reason)


def main(arguments: list[str]) -> None:
    """Compile, and keep it in the folder: an instruction set's kernels for some forms, or steps."""
    folder, *rest = arguments
    if rest:
        name, *forms = rest
        Kernels(InstructionSet[name], [int(form) for form in forms], Path(folder))
        return
    table, thread, state = np.zeros(1, np.int64), 0, np.zeros(1, np.int64)
    records = (np.zeros(1, dtype) for dtype in (MODEL, LAYER, MATRIX, STEP))
    compile_kept(take_part, (table, thread, state, *records), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
