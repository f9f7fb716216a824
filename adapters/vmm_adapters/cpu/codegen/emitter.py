"""A small assembler over LLVM's instruction builder: what the kernels need of vectors.

Addresses are 64-bit integers. Every method emits at the builder's place and gives the result's value.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from vmm_adapters.cpu.codegen.halves import halves_to_floats
from vmm_adapters.cpu.isa import InstructionSet

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
Value = Any
_POINTER = I8.as_pointer()
_CACHE_LINE = 64
_ROUNDING = 1.5 * 2.0**23
"""From here on float32 holds whole numbers only."""


def vector(element: Any, count: int) -> Any:
    """LLVM's `<count x element>`."""
    return ir.VectorType(element, count)


class Emitter:
    """Emits into `builder`, for one instruction set; `has_float_instructions` as in `Target`."""

    def __init__(self, builder: Any, isa: InstructionSet, *, has_float_instructions: bool) -> None:
        self.builder = builder
        self.isa = isa
        self._has_float_instructions = has_float_instructions

    def word(self, number: int) -> Value:
        """A constant address or count."""
        return ir.Constant(I64, number)

    def at(self, address: Value, index: Value | int, stride: int | Value = 1) -> Value:
        """`address + index * stride`."""
        index = self.word(index) if isinstance(index, int) else index
        stride = self.word(stride) if isinstance(stride, int) else stride
        return self.builder.add(address, self.builder.mul(index, stride))

    def load(self, address: Value, kind: Any, align: int = 1) -> Value:
        """What lies at `address`."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Value, address: Value, align: int = 4) -> None:
        """Write `value` to `address`."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = align

    def prefetch(self, address: Value, num_bytes: int) -> None:
        """Have the cache lines from `address` on fetched, wherever that is: it may be beyond all that is there."""
        kind = ir.FunctionType(ir.VoidType(), [_POINTER, I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        read, keep, data = (ir.Constant(I32, number) for number in (0, 3, 1))
        for line in range(0, num_bytes, _CACHE_LINE):
            at = self.builder.inttoptr(self.at(address, 1, line), _POINTER)
            self.builder.call(function, [at, read, keep, data])

    def splat(self, scalar: Value, count: int) -> Value:
        """The same in every lane."""
        kind = vector(scalar.type, count)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, first, ir.Constant(vector(I32, count), [0] * count))

    def constants(self, element: Any, count: int, number: float) -> Value:
        """A vector of one constant."""
        return ir.Constant(vector(element, count), [number] * count)

    def call(self, name: str, result: Any, *arguments: Value) -> Value:
        """One of LLVM's intrinsics."""
        module = self.builder.module
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, arguments)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once; twice where that is no instruction."""
        if not self._has_float_instructions:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        kind = a.type
        count = kind.count if isinstance(kind, ir.VectorType) else 0
        return self.call(f"llvm.fma.v{count}f32" if count else "llvm.fma.f32", kind, a, b, c)

    def nearest(self, x: Value) -> Value:
        """Vectors of the nearest whole numbers, as float32, the even ones of two; of sizes below 2^22."""
        if not self._has_float_instructions:
            large = self.floats(x, _ROUNDING)
            return self.builder.fsub(self.builder.fadd(x, large), large)
        return self.call(f"llvm.rint.v{x.type.count}f32", x.type, x)

    def load_halves(self, address: Value, count: int) -> Value:
        """So many float16 as float32."""
        bits = self.load(address, vector(I16, count), 2)
        return halves_to_floats(self.builder, bits, has_instructions=self._has_float_instructions)

    def reduce(self, combine: Callable[[Value, Value], Value], values: Value) -> Value:
        """All lanes to one number, halves upon halves: always in the same order."""
        count = values.type.count
        while count > 1:
            count //= 2
            low, high = (ir.Constant(vector(I32, count), [start + n for n in range(count)]) for start in (0, count))
            values = combine(*(self.builder.shuffle_vector(values, values, mask) for mask in (low, high)))
        return self.builder.extract_element(values, ir.Constant(I32, 0))

    def maximum(self, a: Value, b: Value) -> Value:
        """The greater one in each lane; `b` where `a` is no number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def floats(self, like: Value, number: float) -> Value:
        """A constant, as often as `like` has lanes."""
        return self.constants(F32, like.type.count, number)

    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """Run `body(index, values)` for index 0 .. count-1, at least once; its results are the next values."""
        builder = self.builder
        before, inside = builder.block, builder.append_basic_block("loop")
        builder.branch(inside)
        builder.position_at_end(inside)
        index = builder.phi(I64)
        index.add_incoming(self.word(0), before)
        values = []
        for each in carried:
            value = builder.phi(each.type)
            value.add_incoming(each, before)
            values.append(value)
        following = body(index, values)
        end = builder.block
        after = builder.append_basic_block("after")
        next_index = builder.add(index, self.word(1))
        index.add_incoming(next_index, end)
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_unsigned("<", next_index, count), inside, after)
        builder.position_at_end(after)
        return list(following)

    def finish_rows(
        self, totals: Sequence[Value], out: Value, stride: Value, added: Value, adds: Value, scale: Value
    ) -> None:
        """Write `scale · (total + added)`, or add it to what is there, at `out` and every `stride` bytes from there."""
        builder, kind = self.builder, totals[0].type
        is_added = builder.icmp_unsigned("!=", adds, self.word(0))
        bias = self.load(added, kind, 4)
        for i, total in enumerate(totals):
            address = self.at(out, i, stride)
            before = builder.select(is_added, self.load(address, kind, 4), self.floats(total, 0.0))
            self.store(self.fma(self.splat(scale, kind.count), builder.fadd(total, bias), before), address)

    def dot(self, levels: Sequence[Value], inputs: Value, start: Value, *, are_nibbles: bool) -> Value:
        """Sums of products: int32 `[lanes]`, lane n of `start` plus the products of row n.

        `levels`: uint8 vectors `[lanes, 4]`, one for each 4 columns; `inputs`: address of the int8 inputs `[4 · len]`.
        """
        lanes, builder = self.isa.lanes, self.builder
        groups = [self.splat(self.load(self.at(inputs, 4 * g), I32, 4), lanes) for g in range(len(levels))]
        wide, narrow = vector(I32, lanes), vector(I8, 4 * lanes)
        if self.isa in (InstructionSet.AVX512_VNNI, InstructionSet.AVX_VNNI):
            name = f"llvm.x86.avx512.vpdpbusd.{8 * self.isa.vector_bytes}"
            for level, group in zip(levels, groups, strict=True):
                start = self.call(name, wide, start, builder.bitcast(level, wide), group)
            return start
        if self.isa is InstructionSet.AVX2:
            return self._dot_avx2(levels, groups, start, are_nibbles=are_nibbles)
        for level, group in zip(levels, groups, strict=True):
            if self.isa is InstructionSet.ARM_DOT:
                start = self._dot_arm(level, builder.bitcast(group, narrow), start, are_nibbles=are_nibbles)
            else:
                start = self._dot_plain(level, group, start)
        return start

    def _dot_arm(self, level: Value, signed: Value, start: Value, *, are_nibbles: bool) -> Value:
        """sdot takes signed bytes: 8-bit levels go in less 128, and 128 times the sum of the inputs comes after."""
        name, wide = "llvm.aarch64.neon.sdot.v4i32.v16i8", vector(I32, 4)
        if are_nibbles:
            return self.call(name, wide, start, level, signed)
        lower = self.builder.xor(level, self.constants(I8, 16, -128))
        start = self.call(name, wide, start, lower, signed)
        half = self.call(name, wide, self.constants(I32, 4, 0), self.constants(I8, 16, 64), signed)
        return self.builder.add(start, self.builder.add(half, half))

    def _dot_plain(self, level: Value, group: Value, start: Value) -> Value:
        """Byte after byte of the lanes, in 32 bits."""
        builder, lanes = self.builder, self.isa.lanes
        wide = builder.bitcast(level, vector(I32, lanes))
        for j in range(4):
            column = builder.and_(
                builder.lshr(wide, self.constants(I32, lanes, 8 * j)), self.constants(I32, lanes, 255)
            )
            left = builder.shl(group, self.constants(I32, lanes, 24 - 8 * j))
            signed = builder.ashr(left, self.constants(I32, lanes, 24))
            start = builder.add(start, builder.mul(column, signed))
        return start

    def _dot_avx2(self, levels: Sequence[Value], groups: Sequence[Value], start: Value, *, are_nibbles: bool) -> Value:
        """Pairs of products in 16 bits. Eight pairs of nibbles fit (8 · 2 · 15 · 127 = 30,480), one pair of bytes does
        not: those go in two halves of 4 bits."""
        builder = self.builder
        short, narrow = vector(I16, 16), vector(I8, 32)
        ones = self.constants(I16, 16, 1)

        def pairs(parts: Sequence[Value]) -> Value:
            total = None
            for part, group in zip(parts, groups, strict=True):
                pair = self.call("llvm.x86.avx2.pmadd.ub.sw", short, part, builder.bitcast(group, narrow))
                total = pair if total is None else builder.add(total, pair)
            return self.call("llvm.x86.avx2.pmadd.wd", vector(I32, 8), total, ones)

        if are_nibbles:
            return builder.add(start, pairs(levels))
        fifteen, four = self.constants(I8, 32, 15), self.constants(I32, 8, 4)
        low = pairs([builder.and_(level, fifteen) for level in levels])
        high = pairs([self.high_nibbles(level) for level in levels])
        return builder.add(start, builder.add(low, builder.shl(high, four)))

    def high_nibbles(self, packed: Value) -> Value:
        """The upper half of each byte."""
        return self.builder.lshr(packed, self.constants(I8, packed.type.count, 4))

    def low_nibbles(self, packed: Value) -> Value:
        """The lower half of each byte."""
        return self.builder.and_(packed, self.constants(I8, packed.type.count, 15))
