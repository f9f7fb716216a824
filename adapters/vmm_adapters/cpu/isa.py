"""Instruction sets that the kernels are written for, and which of them a machine has."""

import platform
import sys
from dataclasses import dataclass
from enum import Enum
from functools import cache
from hashlib import sha256
from pathlib import Path


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
def machine_name() -> str:
    """Of what this machine's processor can do: 8 hexadecimal digits. Only a compiler could say it in words."""
    if sys.platform == "linux":
        described = _processor(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    else:  # Darwin's version names the chip
        described = f"{platform.processor()} {platform.version()}"
    return sha256(f"{sys.platform} {platform.machine()} {described}".encode()).hexdigest()[:8]


def _processor(listed: str) -> str:
    """The first one's lines that are the same whenever one looks."""
    first, *_ = listed.split("\n\n")
    named = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU variant", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.split(":")[0].strip() in named)
