"""What LLVM compiles for, and how: this machine, or another one."""

import ctypes
import sys
from functools import cache

from llvmlite import binding

from vmm_adapters.cpu.isa import InstructionSet, Target


def emit_object(assembly: str, target: Target, exported: dict[str, str]) -> bytes:
    """LLVM's assembly → an object file as `objects` loads it: only what is exported is seen, under its new name.

    LLVM has to be initialised for such targets.
    """
    machine = _machine(target)
    parsed = binding.parse_assembly(assembly)
    parsed.triple, parsed.data_layout = machine.triple, str(machine.target_data)
    parsed.verify()
    for defined in (*parsed.functions, *parsed.global_variables):
        if not defined.is_declaration:
            if defined.name in exported:
                defined.name = exported[defined.name]
            else:
                defined.linkage = "internal"
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return bytes(machine.emit_object(parsed))


def _machine(target: Target) -> binding.TargetMachine:
    """ELF, addresses in full: constants may lie anywhere.

    Others' formats know no such addresses; but numbers are passed to functions as on Linux everywhere, except on
    Windows with x86, and Linux alone gives programs the register x18 of ARM.
    """
    arm, x86 = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"
    if "windows" in target.triple and not target.is_arm:
        x86 = f"{target.triple}-elf"
    features = target.features
    if target.is_arm and "linux" not in target.triple:
        features = ",".join(filter(None, (features, "+reserve-x18")))
    described = binding.Target.from_triple(arm if target.is_arm else x86)
    return described.create_target_machine(cpu=target.cpu, features=features, opt=3, reloc="static", codemodel="large")


def initialize() -> None:
    """LLVM, for this machine."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


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
