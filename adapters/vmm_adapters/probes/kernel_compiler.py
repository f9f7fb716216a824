"""Whether Numba can be loaded, beside the NumPy that is installed, and which instructions our kernels would use."""

import numba

from vmm_adapters.cpu.codegen.target import supported
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.probes.answering import answer
from vmm_adapters.probing.findings import KernelCompiler


def ask() -> KernelCompiler:
    """Importing Numba loads LLVM, and fails beside a NumPy that it was not made for."""
    best = supported()[0]
    return KernelCompiler(str(numba.__version__), best.name, best is not InstructionSet.PORTABLE)


if __name__ == "__main__":
    answer(ask)
