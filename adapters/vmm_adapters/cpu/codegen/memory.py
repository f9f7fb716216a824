"""What Numba's code does not say by itself: numbers at addresses, kernels that are called, and halves."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vmm_adapters.cpu.codegen.emitter import F32, I8, I16, I32, I64
from vmm_adapters.cpu.codegen.halves import floats_to_halves, halves_to_floats
from vmm_adapters.cpu.codegen.target import host


def _reader(kind: Any, result: Any) -> Any:
    def declare(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))

        return result(types.int64), generate

    return declare


def _writer(kind: Any, value: Any) -> Any:
    def declare(typingctx: Any, address: Any, number: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.store(arguments[1], builder.inttoptr(arguments[0], kind.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, value), generate

    return declare


read_f32 = intrinsic(_reader(F32, types.float32))
read_u8 = intrinsic(_reader(I8, types.uint8))
read_u16 = intrinsic(_reader(I16, types.uint16))
read_i64 = intrinsic(_reader(I64, types.int64))


@intrinsic  # type: ignore[untyped-decorator]
def read_i32(typingctx: Any, address: Any) -> Any:
    """An int32, as an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sext(builder.load(builder.inttoptr(arguments[0], I32.as_pointer())), I64)

    return types.int64(types.int64), generate


write_f32 = intrinsic(_writer(F32, types.float32))
write_i32 = intrinsic(_writer(I32, types.int32))
write_u8 = intrinsic(_writer(I8, types.uint8))
write_u16 = intrinsic(_writer(I16, types.uint16))


@intrinsic  # type: ignore[untyped-decorator]
def call_kernel(typingctx: Any, table: Any, place: Any, words: Any, number: Any) -> Any:
    """Call a kernel of the table at an address (see `kernels`) with a tuple of integers and a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = [
            context.cast(builder, builder.extract_value(arguments[2], index), kind, types.int64)
            for index, kind in enumerate(signature.args[2].types)
        ]
        kind = ir.FunctionType(ir.VoidType(), [*[I64] * len(values), F32])
        at = builder.add(arguments[0], builder.mul(arguments[1], ir.Constant(I64, 8)))
        address = builder.load(builder.inttoptr(at, I64.as_pointer()))
        builder.call(builder.inttoptr(address, kind.as_pointer()), [*values, arguments[3]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, words, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def to_half(typingctx: Any, x: Any) -> Any:
    """float32 → the bits of the nearest float16, the greatest one where it is beyond."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return floats_to_halves(builder, arguments[0], has_instructions=host().has_float_instructions)

    return types.uint16(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def from_half(typingctx: Any, bits: Any) -> Any:
    """The bits of a float16 → float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return halves_to_floats(builder, arguments[0], has_instructions=host().has_float_instructions)

    return types.float32(types.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def from_bfloat16(typingctx: Any, bits: Any) -> Any:
    """The bits of a bfloat16 → float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.shl(builder.zext(arguments[0], I32), ir.Constant(I32, 16))
        return builder.bitcast(wide, F32)

    return types.float32(types.uint16), generate
