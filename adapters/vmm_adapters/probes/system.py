"""GPUs and NPUs that the operating system knows of, so that one without a runtime is shown as well."""

import subprocess
import sys
from pathlib import Path

from vmm_adapters.probes import apple, linux_pci, windows
from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import SystemAccelerators


def ask() -> SystemAccelerators:
    """Those of whichever system this is."""
    if sys.platform == "win32":
        return SystemAccelerators(windows.accelerators())
    if sys.platform == "darwin":
        command = ["system_profiler", "SPDisplaysDataType", "-json"]
        return SystemAccelerators(apple.read_displays(subprocess.check_output(command, text=True)))
    return SystemAccelerators(linux_pci.read_accelerators(Path("/")))


if __name__ == "__main__":
    answer(ask)
