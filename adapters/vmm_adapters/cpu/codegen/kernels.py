"""The kernels of one instruction set. Each takes 64-bit words and one float32 at the end, and returns nothing."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import NamedTuple

from llvmlite import ir

from vmm_adapters.cpu.codegen import numerics, spans
from vmm_adapters.cpu.codegen.emitter import F32, I64, Emitter, Value
from vmm_adapters.cpu.codegen.floats import emit_floats
from vmm_adapters.cpu.codegen.numerics import NUM_SOURCES
from vmm_adapters.cpu.codegen.panels import emit_panel
from vmm_adapters.cpu.codegen.target import emit_object
from vmm_adapters.cpu.formats import FORMS, KERNEL, Element, Form
from vmm_adapters.cpu.isa import InstructionSet, Target

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
            found[PANELS + len(SIZES) * form_number + number] = _Kernel(11, partial(_panel, form, size), form_number)
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


def _panel(form: Form, size: int, emitter: Emitter, words: list[Value], x: Value) -> None:
    emit_panel(emitter, form, size, words, x)


def places_of(form: int | None) -> list[int]:
    """Of the kernels for one of `FORMS`; `None`: of those for anything."""
    return [place for place, kernel in _kernels().items() if kernel.form == form]


def compile_object(isa: InstructionSet, target: Target, places: Iterable[int]) -> bytes:
    """An object file with a function for each place of the table; they call nothing by name.

    LLVM has to be initialised for such targets.
    """
    module = ir.Module("kernels")
    module.triple = target.triple
    kernels, places = _kernels(), list(places)
    for place in places:
        kind = ir.FunctionType(ir.VoidType(), [*[I64] * kernels[place].num_words, F32])
        function = ir.Function(module, kind, KERNEL.format(place))
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        *words, number = function.args
        emitter = Emitter(builder, isa, has_float_instructions=target.has_float_instructions)
        kernels[place].emit(emitter, words, number)
        builder.ret_void()
    names = [KERNEL.format(place) for place in places]
    return emit_object(str(module), target, dict(zip(names, names, strict=True)))
