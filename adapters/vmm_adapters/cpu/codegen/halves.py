"""float16 and float32, each from the other: by instructions, or by integers where the machine has none.

Numbers may be scalars or vectors. A float16 is a sign, 5 bits of exponent (bias 15) and 10 of fraction; a float32 has 8
(bias 127) and 23. Moved up by 13 bits, the exponent and fraction of a float16 are those of a float32 that is 2^112
times smaller, subnormal numbers included.
"""

from typing import Any

from llvmlite import ir

_F16, _F32, _I16, _I32 = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32)
_SIGN, _INFINITE, _SCALE = 0x8000, 0x7C00, 2.0**112
_LEAST_NORMAL = 0x38800000
"""2^-14 as a float32."""
_BIAS_CHANGE = (127 - 15) << 23


def halves_to_floats(builder: Any, bits: Any, *, has_instructions: bool) -> Any:
    """The bits of float16s (int16) → float32s, exactly."""
    if has_instructions:
        return builder.fpext(builder.bitcast(bits, _like(bits, _F16)), _like(bits, _F32))
    wide = builder.zext(bits, _like(bits, _I32))
    size = builder.shl(builder.and_(wide, _all(wide, _SIGN - 1)), _all(wide, 13))
    number = builder.fmul(builder.bitcast(size, _like(bits, _F32)), _all(wide, _SCALE, _F32))
    endless = builder.or_(size, _all(wide, 0xFF << 23))
    is_endless = builder.icmp_unsigned(">=", size, _all(wide, _INFINITE << 13))
    size = builder.select(is_endless, endless, builder.bitcast(number, wide.type))
    sign = builder.shl(builder.and_(wide, _all(wide, _SIGN)), _all(wide, 16))
    return builder.bitcast(builder.or_(size, sign), _like(bits, _F32))


def floats_to_halves(builder: Any, numbers: Any, *, has_instructions: bool) -> Any:
    """float32s → the bits (int16) of the nearest float16s, the even ones of two; ±65504 for what is beyond."""
    greatest, least = _all(numbers, 65504.0, _F32), _all(numbers, -65504.0, _F32)
    numbers = builder.select(builder.fcmp_ordered(">", numbers, greatest), greatest, numbers)
    numbers = builder.select(builder.fcmp_ordered("<", numbers, least), least, numbers)
    if has_instructions:
        return builder.bitcast(builder.fptrunc(numbers, _like(numbers, _F16)), _like(numbers, _I16))
    bits = builder.bitcast(numbers, _like(numbers, _I32))
    size = builder.and_(bits, _all(bits, 0x7FFFFFFF))
    # 13 bits go: adding a half, less one where the last bit that stays is 0, carries into it as rounding wants
    last = builder.and_(builder.lshr(size, _all(bits, 13)), _all(bits, 1))
    carried = builder.add(builder.add(size, last), _all(bits, (1 << 12) - 1 - _BIAS_CHANGE))
    normal = builder.lshr(carried, _all(bits, 13))
    # the last bit of 1/2 is worth 2^-24, as that of a subnormal float16 is: adding 1/2 rounds there
    half = _all(bits, 0.5, _F32)
    shifted = builder.bitcast(builder.fadd(builder.bitcast(size, _like(bits, _F32)), half), bits.type)
    subnormal = builder.sub(shifted, builder.bitcast(half, bits.type))
    found = builder.select(builder.icmp_unsigned("<", size, _all(bits, _LEAST_NORMAL)), subnormal, normal)
    is_number = builder.fcmp_ordered("ord", numbers, numbers)
    found = builder.select(is_number, found, _all(bits, _INFINITE | 1 << 9))
    sign = builder.and_(builder.lshr(bits, _all(bits, 16)), _all(bits, _SIGN))
    return builder.trunc(builder.or_(found, sign), _like(bits, _I16))


def _like(value: Any, element: Any) -> Any:
    """`element`, or as many of them as `value` has lanes."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _all(value: Any, number: float, element: Any = _I32) -> Any:
    """A constant in every lane."""
    kind = _like(value, element)
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)
