"""Which instruction sets a processor has, and that kernels for others than this one need nothing that is not there."""

import struct

import numpy as np
import pytest
from llvmlite import binding

from vmm_adapters.cpu.codegen.kernels import FLOATS, NUM_KERNELS, SIZES, compile_object
from vmm_adapters.cpu.codegen.numerics import NUM_SOURCES
from vmm_adapters.cpu.codegen.target import host, supported
from vmm_adapters.cpu.formats import FORMS, WIDTH, Element, Form
from vmm_adapters.cpu.isa import InstructionSet, Target

from . import cpu_kernels
from .cpu_kernels import Subject, check_quantised, expected_copy, make_panel
from .cpu_spans import make_span

AVX2, AVX_VNNI, AVX512_VNNI = InstructionSet.AVX2, InstructionSet.AVX_VNNI, InstructionSet.AVX512_VNNI
ARM_DOT, PORTABLE = InstructionSet.ARM_DOT, InstructionSet.PORTABLE
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
HASWELL = "+avx,+avx2,+fma,+f16c"
AVX512 = f"{HASWELL},+avx512f,+avx512bw,+avx512vl"
PLAIN = Target(X86, "x86-64", "")
TWO_ROWS = [*range(FLOATS), *range(FLOATS + 1, NUM_KERNELS, len(SIZES))]
"""Every kernel, of those for several sizes that of 2 rows."""


@pytest.mark.parametrize(
    ("target", "sets"),
    [
        pytest.param(Target(X86, "tremont", "+sse4.2"), (), id="no AVX"),
        pytest.param(Target(X86, "ivybridge", "+avx,+f16c,-avx2,-fma"), (), id="AVX without fused products"),
        pytest.param(Target(X86, "haswell", HASWELL), (AVX2,), id="Intel of 2013"),
        pytest.param(Target(X86, "haswell", "+avx2,-fma,+f16c"), (), id="a virtual machine without fused products"),
        pytest.param(Target(X86, "alderlake", f"{HASWELL},+avxvnni"), (AVX_VNNI, AVX2), id="Intel client"),
        pytest.param(Target(X86, "skylake-avx512", AVX512), (AVX2,), id="AVX-512 without VNNI"),
        pytest.param(Target(X86, "knm", f"{HASWELL},+avx512f,+avx512vnni"), (AVX2,), id="AVX-512 of words alone"),
        pytest.param(Target(X86, "znver3", HASWELL), (AVX2,), id="Zen 3"),
        pytest.param(Target(X86, "znver4", f"{AVX512},+avx512vnni"), (AVX512_VNNI, AVX2), id="Zen 4"),
        pytest.param(
            Target(X86, "znver5", f"{AVX512},+avx512vnni,+avxvnni"), (AVX512_VNNI, AVX_VNNI, AVX2), id="Zen 5"
        ),
        pytest.param(Target(X86, "icelake-server", f"{HASWELL},-avx512f,-avx512vnni"), (AVX2,), id="switched off"),
        pytest.param(Target(ARM, "cortex-a72", "+neon"), (), id="ARM without products"),
        pytest.param(Target(ARM, "neoverse-n1", "+neon,+dotprod"), (ARM_DOT,), id="ARM"),
        pytest.param(Target("arm64-apple-darwin24", "apple-m1", "+neon,+dotprod"), (ARM_DOT,), id="Apple"),
    ],
)
def test_instruction_sets_of_processors(target: Target, sets: tuple[InstructionSet, ...]) -> None:
    assert target.instruction_sets == (*sets, PORTABLE)


def test_processors_that_need_no_functions_for_floats() -> None:
    targets = (
        Target(ARM, "cortex-a72", "+neon"),
        Target(X86, "haswell", HASWELL),
        PLAIN,
        Target(X86, "ivybridge", "+f16c"),
    )
    assert [target.has_float_instructions for target in targets] == [True, True, False, False]


def test_this_machine_can_run_something() -> None:
    assert supported() == host().instruction_sets
    assert supported()[-1] is PORTABLE


@pytest.fixture(scope="module", autouse=True)
def _all_targets() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


def missing_symbols(compiled: bytes) -> list[str]:
    """What a 64-bit ELF object needs of others. (System V ABI, chapter 4: section headers and the symbol table.)"""
    (start,) = struct.unpack_from("<Q", compiled, 40)
    size, count = struct.unpack_from("<HH", compiled, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", compiled, start + size * index) for index in range(count)]
    (symbols,) = (section for section in sections if section[1] == 2)
    names = sections[symbols[6]][4]
    found = []
    for at in range(symbols[4] + 24, symbols[4] + symbols[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", compiled, at)
        if section == 0:
            found.append(compiled[names + name : compiled.index(b"\0", names + name)].decode())
    return found


@pytest.mark.parametrize(
    ("isa", "target"),
    [
        pytest.param(PORTABLE, PLAIN, id="x86"),
        pytest.param(PORTABLE, Target(ARM, "generic", ""), id="arm"),
        pytest.param(ARM_DOT, Target(ARM, "generic", "+neon,+dotprod"), id="arm-dot"),
    ],
)
def test_kernels_call_nothing(isa: InstructionSet, target: Target) -> None:
    """Functions for float16, fused products or rounding are not in every process."""
    compiled = compile_object(isa, target, TWO_ROWS)
    assert missing_symbols(compiled) == []
    words = np.frombuffer(compiled[: len(compiled) // 4 * 4], "<u4")
    # SDOT of 16 bytes (Arm A-profile A64 instruction set), 8 of them a block at least
    num_dots = int(((words & 0xFFE0FC00) == 0x4E809400).sum())
    assert num_dots >= 8 * len(FORMS) if isa is ARM_DOT else num_dots == 0


@pytest.fixture(scope="module")
def plain() -> Subject:
    """Kernels for a processor without any of those instructions."""
    if not host().triple.startswith("x86_64"):
        pytest.skip("this machine cannot stand in for x86 without AVX")
    return cpu_kernels.link(PORTABLE, PLAIN, TWO_ROWS)


def test_halves_are_widened_exactly(plain: Subject) -> None:
    """All 65,536 of them: subnormal numbers, infinities and what is no number too."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1, WIDTH)
    one = np.array([[1.0], [1.0]], np.float32)
    found = np.concatenate([cpu_kernels.multiply_floats(plain, Element.F16, one, line)[0] for line in every])
    assert np.array_equal(found, every.reshape(-1).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))
def test_products_without_fused_ones(plain: Subject, form: Form) -> None:
    panel = make_panel(form, 3, 3, ("any", "any"), (1e-3, 1.0), (1e-4, 1e-1))
    expected, error = panel.expected()
    # each product is rounded once more
    assert (np.abs(panel.multiply(plain, slice(2)) - expected[:2]) <= 2 * error[:2]).all()


@pytest.mark.parametrize("is_narrow", [False, True], ids=["f16", "u8"])
@pytest.mark.parametrize("softcap", [0.0, 30.0], ids=["plain", "capped"])
def test_spans_without_fused_products(plain: Subject, is_narrow: bool, softcap: float) -> None:
    span = make_span(7, 2, 80, 70, is_narrow=is_narrow, softcap=softcap)
    expected, error = span.expected()
    found = span.attend(plain).attended()[:, :80]
    assert (np.abs(found - expected) <= 2 * error).all()


@pytest.mark.parametrize("source", range(NUM_SOURCES))
def test_inputs_without_rounding_instructions(plain: Subject, source: int) -> None:
    rng = np.random.default_rng(9)
    x, second = (rng.normal(0, size, 128).astype(np.float32) for size in (5, 0.1))
    copied = cpu_kernels.copy(plain, source, x, second, first=0, factor=0.7)
    expected, error = expected_copy(source, x, second, 0.7)
    assert (np.abs(copied - expected) <= 2 * error).all()
    quantised = cpu_kernels.quantize(plain, source, x, second, first=0, place=5, factor=0.7)
    check_quantised(copied.reshape(-1, 32).astype(np.float64), *quantised)
