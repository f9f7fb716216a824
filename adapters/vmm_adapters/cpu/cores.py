"""How many threads compute: one for each core, since two on one core share the units that multiply."""

from vmm_adapters.probes import cpu
from vmm_adapters.probing.findings import Processor


def num_threads(processor: Processor | None = None) -> int:
    """The cores that this process may use, affinity and control groups counted in; threads, where cores are not known.

    `processor` stands in for this machine's.
    """
    found = cpu.ask() if processor is None else processor
    return found.num_cores or found.num_threads
