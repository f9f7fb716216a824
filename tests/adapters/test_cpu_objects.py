"""Object files are loaded without a linker: addresses are right on each processor, what is not whole is refused."""

from ctypes import CFUNCTYPE, c_int64, c_void_p, string_at

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding

from vmm_adapters.cpu.codegen.kernels import COPY, FOLD, compile_object
from vmm_adapters.cpu.codegen.target import emit_object, host, initialize
from vmm_adapters.cpu.isa import InstructionSet, Target
from vmm_adapters.cpu.objects import BadObject, Code

NUMBERS = np.arange(40, dtype=np.int32) * 1234567
TABLE = f"@table = internal constant [40 x i32] [{', '.join(f'i32 {number}' for number in NUMBERS)}]"
WHERE = f"""{TABLE}
define i64 @where() noinline {{ ret i64 ptrtoint (ptr @table to i64) }}
define i64 @twice() {{ %x = call i64 @where()
 %y = add i64 %x, %x
 ret i64 %y }}
"""
X86, ARM = Target("x86_64-unknown-linux-gnu", "x86-64", ""), Target("aarch64-unknown-linux-gnu", "generic", "")
SYSTEMS = ("x86_64-pc-windows-msvc", "aarch64-pc-windows-msvc", "x86_64-apple-darwin24.1.0", "arm64-apple-darwin24.1.0")


@pytest.fixture(scope="module", autouse=True)
def _all_targets() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


def emit(assembly: str, target: Target, *names: str) -> bytes:
    return emit_object(assembly, target, {name: name for name in names})


def moved(code: Code, name: str) -> int:
    """The number that MOVZ and MOVKs put in a register at a function's start (Arm A-profile A64 instruction set)."""
    number = 0
    for word in np.frombuffer(string_at(code.addresses[name], 16), "<u4").tolist():
        assert word & 0x7F800000 in (0x52800000, 0x72800000), "MOVZ or MOVK"
        number |= (word >> 5 & 0xFFFF) << 16 * (word >> 21 & 3)
    return number


def test_code_finds_its_constants_and_functions() -> None:
    initialize()
    code = Code(emit(WHERE, host(), "where", "twice"))
    at = CFUNCTYPE(c_int64)(code.addresses["where"])()
    assert string_at(at, NUMBERS.nbytes) == NUMBERS.tobytes()
    assert CFUNCTYPE(c_int64)(code.addresses["twice"])() == 2 * at


def test_so_does_arms() -> None:
    code = Code(emit(WHERE, ARM, "where"))
    assert string_at(moved(code, "where"), NUMBERS.nbytes) == NUMBERS.tobytes()


@pytest.mark.parametrize("triple", SYSTEMS)
def test_every_systems_objects_are_loaded(triple: str) -> None:
    target = Target(triple, "generic" if Target(triple, "", "").is_arm else "x86-64", "")
    code = Code(emit(WHERE, target, "where"))
    if target.is_arm:
        assert string_at(moved(code, "where"), NUMBERS.nbytes) == NUMBERS.tobytes()
    else:  # movabs rax, imm64 (Intel's manual, volume 2)
        instruction = string_at(code.addresses["where"], 10)
        assert instruction[:2] == b"\x48\xb8"
        assert string_at(int.from_bytes(instruction[2:], "little"), NUMBERS.nbytes) == NUMBERS.tobytes()


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm"])
def test_real_kernels_are_loaded(target: Target) -> None:
    code = Code(compile_object(InstructionSet.PORTABLE, target, [FOLD, COPY]))
    assert set(code.addresses) == {f"kernel_{FOLD}", f"kernel_{COPY}"}


def test_only_what_is_exported_is_seen() -> None:
    assert set(Code(emit(WHERE, X86, "where")).addresses) == {"where"}
    assert set(Code(emit_object(WHERE, X86, {"where": "somewhere"})).addresses) == {"somewhere"}


@pytest.mark.parametrize(
    ("assembly", "why"),
    [
        pytest.param(
            "declare i64 @other()\ndefine i64 @f() { %x = call i64 @other()\n ret i64 %x }", "other", id="calls"
        ),
        pytest.param(
            "@n = internal global i64 7\ndefine i64 @f() { %x = atomicrmw add ptr @n, i64 1 seq_cst\n ret i64 %x }",
            "written to",
            id="writes",
        ),
    ],
)
@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm"])
def test_what_is_not_whole_is_refused(assembly: str, why: str, target: Target) -> None:
    with pytest.raises(BadObject, match=why):
        Code(emit(assembly, target, "f"))


def test_other_files_are_refused() -> None:
    with pytest.raises(BadObject, match="no ELF"):
        Code(b"MZ" + bytes(200))
    with pytest.raises(BadObject, match="damaged"):
        Code(b"")


@given(st.data())
def test_a_file_that_is_cut_off_is_refused(data: st.DataObject) -> None:
    whole = emit(WHERE, X86, "where")
    with pytest.raises(BadObject):
        Code(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_memory_of_code_is_not_writable() -> None:
    code = Code(emit(WHERE, X86, "where"))
    at = code.addresses["where"]
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if start <= at < end:
                assert line.split()[1] == "r-xp"
                return
    pytest.fail(f"{c_void_p(at)} is nowhere")
