"""How many threads compute: one for each core, since two on one core share the units that multiply."""

import os
from subprocess import SubprocessError

from vmm_adapters.probes import cpu
from vmm_adapters.probing.findings import Processor


def num_threads(processor: Processor | None = None) -> int:
    """The cores that this process may use, affinity and control groups counted in; threads, where cores are not known.

    `processor` stands in for this machine's.
    """
    try:
        found = cpu.ask() if processor is None else processor
    except (OSError, ValueError, SubprocessError):  # a system that does not say what it is
        return os.cpu_count() or 1
    return found.num_cores or found.num_threads
