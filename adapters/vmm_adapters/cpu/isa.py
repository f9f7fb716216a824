"""Instruction sets that the kernels are written for, and which of them a machine has."""

import ctypes
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Target:
    """A processor that code is compiled for, in LLVM's words."""

    triple: str
    cpu: str
    features: str
    """Such as `+avx2,-avx512f`."""

    @property
    def flags(self) -> frozenset[str]:
        """Names of the features that it has."""
        return frozenset(feature[1:] for feature in self.features.split(",") if feature.startswith("+"))

    @property
    def is_arm(self) -> bool:
        """64-bit ARM."""
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def has_float_instructions(self) -> bool:
        """Whether fused products, float16 and rounding are instructions.

        Elsewhere LLVM calls functions, which are slow and which not every process has.
        """
        return self.is_arm or self.flags >= {"fma", "f16c"}

    @property
    def instruction_sets(self) -> tuple[InstructionSet, ...]:
        """Those that it can run, the fastest first; the portable one always."""
        flags = set(self.flags)
        if not self.has_float_instructions:
            flags -= {"avx2", "avxvnni", "avx512vnni"}
        if not {"avx512bw", "avx512vl"} <= flags:
            flags -= {"avx512vnni"}
        return tuple(each for each in InstructionSet if not each.value[0] or each.value[0] in flags)


@cache
def host() -> Target:
    """This machine. LLVM lists what of x86 the system lets programs use; ARM's products it does not list everywhere."""
    features = binding.get_host_cpu_features().flatten()
    target = Target(binding.get_default_triple(), binding.get_host_cpu_name(), features)
    if target.is_arm and _has_arm_dot():
        return Target(target.triple, target.cpu, ",".join(filter(None, (features, "+neon", "+dotprod"))))
    return target


def supported() -> tuple[InstructionSet, ...]:
    """What this machine can run, the fastest first."""
    return host().instruction_sets


def _has_arm_dot() -> bool:
    """Ask the system: Linux's hwcap.h, Apple's sysctl names, Windows' winnt.h."""
    hwcap, asimd_dot, windows_dot = 16, 1 << 20, 43
    if sys.platform == "linux":
        return bool(ctypes.CDLL(None).getauxval(hwcap) & asimd_dot)
    if sys.platform == "darwin":
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        name = b"hw.optional.arm.FEAT_DotProd"
        failed = ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
        return not failed and value.value == 1
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.IsProcessorFeaturePresent(windows_dot))
    return False
