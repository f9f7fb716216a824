"""The kernels of one instruction set, compiled for this machine by LLVM: addresses of functions.

Each takes 64-bit words and one float32 at the end, and returns nothing. What is compiled is kept on disk, for a machine
and a version of this code, and read from there the next time.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numpy.typing import NDArray

from vmm_adapters.cpu import numerics, panels, spans
from vmm_adapters.cpu.compiled import announced, fingerprint
from vmm_adapters.cpu.emitter import F32, I64, Emitter, Value
from vmm_adapters.cpu.floats import Element, emit_floats
from vmm_adapters.cpu.isa import InstructionSet, Target, host
from vmm_adapters.cpu.numerics import NUM_SOURCES
from vmm_adapters.cpu.panels import FORMS, emit_panel
from vmm_adapters.errors import RuntimeFailed

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8)
"""Rows that a kernel computes at a time; what lies between takes the next greater one."""
SUM_OF_SQUARES, CAP, FOLD, QUANTIZE = 0, 1, 2, 3
COPY = QUANTIZE + NUM_SOURCES
FLOATS = COPY + NUM_SOURCES
SPANS = FLOATS + len(Element) * len(SIZES)
PANELS = SPANS + 4 * len(SIZES)
"""Places in the table: of one kernel, or of the first of several, by source, by element and size, by KV type, cap and
size, by form and size."""
NUM_KERNELS = PANELS + len(FORMS) * len(SIZES)


_EmitBySource = Callable[[Emitter, int, list[Value], Value], None]


class _Kernel(NamedTuple):
    num_words: int
    emit: Callable[[Emitter, list[Value], Value], None]
    form: int | None = None
    """What it multiplies by; `None`: anything."""


def _plain(emit: Callable[[Emitter, list[Value]], None]) -> Callable[[Emitter, list[Value], Value], None]:
    return lambda emitter, words, _: emit(emitter, words)


def _kernels() -> dict[int, _Kernel]:
    """By place."""
    found = {
        SUM_OF_SQUARES: _Kernel(3, _plain(numerics.emit_sum_of_squares)),
        CAP: _Kernel(2, numerics.emit_cap),
        FOLD: _Kernel(8, _plain(spans.emit_fold)),
    }
    for source in range(NUM_SOURCES):
        found[QUANTIZE + source] = _Kernel(8, partial(_by_source, numerics.emit_quantize, source))
        found[COPY + source] = _Kernel(5, partial(_by_source, numerics.emit_copy, source))
    for number, size in enumerate(SIZES):
        for element in Element:
            found[FLOATS + len(SIZES) * element + number] = _Kernel(7, partial(_floats, element, size))
        for kind, (element, is_capped) in enumerate(product((Element.F16, Element.U8), (False, True))):
            emit = partial(_span, element, size, is_capped)
            found[SPANS + len(SIZES) * kind + number] = _Kernel(spans.NUM_WORDS, emit)
        for form_number, form in enumerate(FORMS):
            found[PANELS + len(SIZES) * form_number + number] = _Kernel(11, partial(_panel, form, size))
    return found


def _by_source(
    emit: Callable[[Emitter, int, list[Value], Value], None],
    source: int,
    emitter: Emitter,
    words: list[Value],
    x: Value,
) -> None:
    emit(emitter, source, words, x)


def _floats(element: Element, size: int, emitter: Emitter, words: list[Value], _: Value) -> None:
    emit_floats(emitter, element, size, words)


def _span(element: Element, size: int, is_capped: bool, emitter: Emitter, words: list[Value], x: Value) -> None:
    spans.emit_span(emitter, element, size, words, x, is_capped=is_capped)


def _panel(form: panels.Form, size: int, emitter: Emitter, words: list[Value], x: Value) -> None:
    emit_panel(emitter, form, size, words, x)


class Kernels:
    """Compiled kernels; they live as long as this does."""

    def __init__(
        self, isa: InstructionSet, forms: Iterable[int], cache_dir: Path | None, target: Target | None = None
    ) -> None:
        """Those of `forms`, indices of `FORMS`, and all that are not of a form. Raises `RuntimeFailed`.

        `target`: this machine, or what it can stand in for.
        """
        target = target or host()
        if isa not in target.instruction_sets:
            names = ", ".join(each.name for each in target.instruction_sets)
            raise RuntimeFailed(f"this machine has no {isa.name}", hint=f"it has {names}")
        kernels = _kernels()
        forms = frozenset(forms)
        chosen = [place for place, kernel in kernels.items() if kernel.form is None or kernel.form in forms]
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        self._engine = binding.create_lljit_compiler(_machine(target), use_jit_link=False)
        self.table: NDArray[np.int64] = np.zeros(NUM_KERNELS, np.int64)
        """Addresses, by place; 0 for what was not compiled."""
        self._libraries = []
        # one object a form: another model adds what it lacks, and nothing is compiled twice
        for form in {kernels[place].form for place in chosen}:
            places = [place for place in chosen if kernels[place].form == form]
            compiled = _read_or_compile(isa, target, f"form{form}", places, cache_dir)
            library = binding.JITLibraryBuilder().add_object_img(compiled).add_current_process()
            for place in places:
                library.export_symbol(symbol(place))
            linked = library.link(self._engine, f"{isa.name}-{form}")
            self._libraries.append(linked)
            for place in places:
                self.table[place] = linked[symbol(place)]


def symbol(place: int) -> str:
    """What a place's function is called in an object file."""
    return f"kernel_{place}"


def _machine(target: Target) -> binding.TargetMachine:
    described = binding.Target.from_triple(target.triple)
    return described.create_target_machine(cpu=target.cpu, features=target.features, opt=3, jit=True)


def _read_or_compile(
    isa: InstructionSet, target: Target, name: str, places: list[int], cache_dir: Path | None
) -> bytes:
    if cache_dir is None:
        return _compile(isa, target, places)
    path = cache_dir / fingerprint() / f"{machine_name(target)}-{isa.name}-{name}.o".lower()
    if path.is_file():
        return path.read_bytes()
    compiled = _compile(isa, target, places)
    try:
        _keep(compiled, path)
    except OSError as error:  # a full disk: what is compiled is of use all the same
        logger.warning("compiled kernels are not kept: %s", error)
    return compiled


def _keep(compiled: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{np.random.default_rng().integers(1 << 62)}.part")
    try:
        part.write_bytes(compiled)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def machine_name(target: Target | None = None) -> str:
    """Of LLVM, and of what the machine can do."""
    return sha256(repr((binding.llvm_version_info, target or host())).encode()).hexdigest()[:8]


def _compile(isa: InstructionSet, target: Target, places: list[int]) -> bytes:
    with announced(f"{len(places)} kernels with {isa.name}"):
        return compile_object(isa, target, places)


def compile_object(isa: InstructionSet, target: Target, places: Iterable[int]) -> bytes:
    """An object file with a function for each place of the table. LLVM has to be initialised for such targets."""
    module = ir.Module("kernels")
    module.triple = target.triple
    kernels = _kernels()
    for place in places:
        kind = ir.FunctionType(ir.VoidType(), [*[I64] * kernels[place].num_words, F32])
        function = ir.Function(module, kind, symbol(place))
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        *words, number = function.args
        emitter = Emitter(builder, isa, has_float_instructions=target.has_float_instructions)
        kernels[place].emit(emitter, words, number)
        builder.ret_void()
    machine = _machine(target)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return bytes(machine.emit_object(parsed))
