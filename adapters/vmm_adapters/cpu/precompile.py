"""What is missing is compiled in a process of its own: compilers keep 100 MB of memory, and the interpreter's lock.

python -m vmm_adapters.cpu.precompile AVX2 FOLDER FORM…
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
    numbers = [str(number) for number in sorted({int(form) for form in forms})]
    # a bundled application is no interpreter that could be asked
    if folder is None or getattr(sys, "frozen", False):
        return
    mark = folder / fingerprint() / f"{machine_name()}-{isa.name}-{'-'.join(numbers)}.done".lower()
    if mark.is_file():
        return
    with announced(f"kernels with {isa.name}"):
        command = [sys.executable, "-m", "vmm_adapters.cpu.precompile", isa.name, str(folder), *numbers]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    else:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        logger.warning("compiling kernels in a process of its own failed (%s); they are compiled here", reason)


def main(arguments: list[str]) -> None:
    """Compile, and keep it in the folder."""
    name, folder, *forms = arguments
    kernels = Kernels(InstructionSet[name], [int(form) for form in forms], Path(folder))
    records = (np.zeros(1, dtype) for dtype in (MODEL, LAYER, MATRIX, STEP))
    compile_kept(take_part, (kernels.table, 0, np.zeros(1, np.int64), *records), Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
