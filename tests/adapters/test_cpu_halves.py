"""float16 and float32, each from the other: by integers they are what instructions and numpy give."""

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64
from typing import Any

import numpy as np
import pytest
from llvmlite import ir

from vmm_adapters.cpu.codegen.emitter import F32, I16, I64, Emitter
from vmm_adapters.cpu.codegen.halves import floats_to_halves, halves_to_floats
from vmm_adapters.cpu.codegen.target import emit_object, host, initialize
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.cpu.objects import Code

from .cpu_kernels import Array

has_instructions = pytest.mark.parametrize("has_instructions", sorted({False, host().has_float_instructions}))


def converted(convert: Callable[..., Any], source: Array, target: Array, *, has_instructions: bool) -> Array:
    """Every number of the source, one after the other."""
    module = ir.Module("halves")
    module.triple = host().triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), "run")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit = Emitter(builder, InstructionSet.PORTABLE, has_float_instructions=has_instructions)
    begin, end, count = function.args

    def body(index: Any, _: list[Any]) -> list[Any]:
        number = emit.load(emit.at(begin, index, source.itemsize), I16 if source.itemsize == 2 else F32)
        found = convert(builder, number, has_instructions=has_instructions)
        emit.store(found, emit.at(end, index, target.itemsize), 1)
        return []

    emit.loop(count, [], body)
    builder.ret_void()
    initialize()
    code = Code(emit_object(str(module), host(), {"run": "run"}))
    CFUNCTYPE(None, c_int64, c_int64, c_int64)(code.addresses["run"])(
        source.ctypes.data, target.ctypes.data, source.size
    )
    return target


@has_instructions
def test_every_half(has_instructions: bool) -> None:
    """Subnormal numbers, infinities and what is no number too."""
    every = np.arange(1 << 16, dtype=np.uint16)
    found = converted(halves_to_floats, every, np.zeros(1 << 16, np.float32), has_instructions=has_instructions)
    expected = every.view(np.float16).astype(np.float32)
    is_number = ~np.isnan(expected)
    assert (found.view(np.uint32) == expected.view(np.uint32))[is_number].all()
    assert np.isnan(found[~is_number]).all()


@has_instructions
def test_floats_become_the_nearest_halves(has_instructions: bool) -> None:
    """All that float16 holds, what lies right between two of them and right beside that, and any others."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    beside = [np.nextafter(between, np.float32(end)) for end in (0, np.inf)]
    others = np.random.default_rng(1).integers(0, 1 << 32, 50_000, np.uint32).view(np.float32)
    floats = np.concatenate([halves, between, *beside, others, np.array([65519, 65520, 1e30, np.inf], np.float32)])
    floats = np.concatenate([floats, -floats])
    target = np.zeros(floats.size, np.uint16)
    found = converted(floats_to_halves, floats, target, has_instructions=has_instructions).view(np.float16)
    expected = np.clip(floats, -65504, 65504).astype(np.float16)
    is_number = ~np.isnan(floats)
    assert (found.view(np.uint16) == expected.view(np.uint16))[is_number].all()
    assert np.isnan(found[~is_number]).all()
