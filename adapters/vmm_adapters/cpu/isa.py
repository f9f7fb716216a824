"""Instruction sets that the kernels are written for, and which of them this machine has."""

from enum import Enum
from functools import cache

from llvmlite import binding


class InstructionSet(Enum):
    """How products of small integers are summed up. The value is a vector's bytes."""

    AVX512_VNNI = ("avx512vnni", 64)
    """vpdpbusd on 64 bytes."""
    AVX_VNNI = ("avxvnni", 32)
    """vpdpbusd on 32 bytes."""
    AVX2 = ("avx2", 32)
    """pmaddubsw and pmaddwd."""
    ARM_DOT = ("dotprod", 16)
    """sdot."""
    PORTABLE = ("", 16)
    """Whatever LLVM makes of plain products."""

    @property
    def vector_bytes(self) -> int:
        """Of the registers it works on."""
        return self.value[1]

    @property
    def num_registers(self) -> int:
        """Of vectors."""
        return 16 if self in (InstructionSet.AVX2, InstructionSet.AVX_VNNI, InstructionSet.PORTABLE) else 32

    @property
    def lanes(self) -> int:
        """Numbers of 32 bits in a register."""
        return self.vector_bytes // 4


@cache
def supported() -> tuple[InstructionSet, ...]:
    """Those that this machine can run, the fastest first; the portable one always."""
    flags = {name for name, is_there in binding.get_host_cpu_features().items() if is_there}
    if "avx2" in flags and not {"fma", "f16c"} <= flags:
        flags -= {"avx2", "avxvnni", "avx512vnni"}
    if not {"avx512bw", "avx512vl"} <= flags:
        flags -= {"avx512vnni"}
    return tuple(each for each in InstructionSet if not each.value[0] or each.value[0] in flags)
