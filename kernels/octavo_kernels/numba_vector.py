"""Vector instructions for Numba functions: LLVM code of 16 lanes, written where loops would not become vectors.

Every intrinsic takes addresses (int64) and counts. LLVM cuts vectors to what the processor has, so all of this runs
anywhere; only `numba_dot.py` knows of special instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from octavo_kernels.numba_compile import HAS_HALF, HAS_VNNI

LANES = 16
BYTE, HALF, WORD, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
WORDS = ir.VectorType(WORD, LANES)
BYTES = ir.VectorType(BYTE, LANES)
HALVES = ir.VectorType(HALF, LANES)
"""Bits of 16 float16: Numba has no such type on a CPU."""

LOG2_E = 1.4426950408889634
_LOG2_E_HIGH = 1.44140625
"""Its first bits: times a value of few digits it is exact."""
# 2^f on [-0.5, 0.5], relative error below 2e-7; highest power first
_EXP2 = (1.5403530e-4, 1.33335581e-3, 9.61812911e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1, 1.0)


class Emitter:
    """Writes instructions at a builder's position; addresses are int64 values, offsets bytes."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def base(self, address: Any) -> Any:
        return self.builder.inttoptr(address, BYTE.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any, align: int = 4) -> Any:
        return self.builder.load(self._pointer(base, offset, kind), align=align)

    def prefetch(self, base: Any, offset: Any) -> None:
        """Asks for the cache line of an address that will be read, into the second cache: the first is full of what is read now."""
        pointer = self.builder.gep(base, [offset])
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, WORD(0), WORD(2), WORD(1))

    def store(self, value: Any, base: Any, offset: Any) -> None:
        align = {BYTES: 1, HALVES: 2, HALF: 2}.get(value.type, 4)
        self.builder.store(value, self._pointer(base, offset, value.type), align=align)

    def _pointer(self, base: Any, offset: Any, kind: Any) -> Any:
        offset = LONG(offset) if isinstance(offset, int) else offset
        return self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, LONG(factor))

    def sum(self, *values: Any) -> Any:
        total = values[0]
        for value in values[1:]:
            total = self.builder.add(total, value)
        return total

    def splat(self, scalar: Any, lanes: int = LANES) -> Any:
        kind = ir.VectorType(scalar.type, lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, WORD(0))
        zeros = ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def constant(self, kind: Any, value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """A * b + c, in one rounding where the processor can."""
        return self.call("llvm.fmuladd.f32" if a.type == FLOAT else "llvm.fmuladd.v16f32", a.type, a, b, c)

    def each(self, count: Any, write: Callable[[Any, Any], None]) -> None:
        """`write(offset in bytes, kind)` for `count` float32: 16 at once, then what is left one by one."""
        b = self.builder
        whole = b.and_(count, LONG(-LANES))
        for start, end, step, kind in ((LONG(0), whole, LANES, FLOATS), (whole, count, 1, FLOAT)):
            with cgutils.for_range_slice(b, start, end, LONG(step), intp=LONG) as (index, _):
                write(self.times(index, 4), kind)

    def zero(self, kind: Any) -> Any:
        return kind(0.0) if kind == FLOAT else self.constant(kind, 0.0)

    def like(self, scalar: Any, kind: Any) -> Any:
        """A float32 as it is, or in every lane where `kind` is a vector."""
        return scalar if kind == FLOAT else self.splat(scalar)

    def widen(self, halves: Any) -> Any:
        """16 float16 -> float32, exactly."""
        b = self.builder
        if HAS_HALF:
            return b.fpext(b.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
        bits = b.zext(halves, WORDS)
        magnitude = b.shl(b.and_(bits, self.constant(WORDS, 0x7FFF)), self.constant(WORDS, 13))
        # exponents of float16 begin 112 lower; the largest one means infinity or NaN in both
        finite = b.bitcast(b.fmul(b.bitcast(magnitude, FLOATS), self.constant(FLOATS, 2.0**112)), WORDS)
        other = b.or_(magnitude, self.constant(WORDS, 0x7F800000))
        is_finite = b.icmp_unsigned("<", magnitude, self.constant(WORDS, 0x7C00 << 13))
        sign = b.shl(b.and_(bits, self.constant(WORDS, 0x8000)), self.constant(WORDS, 16))
        return b.bitcast(b.or_(b.select(is_finite, finite, other), sign), FLOATS)

    def narrow(self, values: Any) -> Any:
        """16 float32 -> the nearest float16, ties to even."""
        b = self.builder
        if HAS_HALF:
            return b.bitcast(b.fptrunc(values, ir.VectorType(ir.HalfType(), LANES)), HALVES)

        def words(value: int) -> Any:
            return self.constant(WORDS, value)

        bits = b.bitcast(values, WORDS)
        magnitude = b.and_(bits, words(0x7FFFFFFF))
        odd = b.and_(b.lshr(magnitude, words(13)), words(1))
        normal = b.lshr(self.sum(magnitude, odd, words(0xFFF - (112 << 23))), words(13))
        # the sum with 0.5 leaves the code of a number below 2^-14 in its last bits, rounded
        shifted = b.bitcast(b.fadd(b.bitcast(magnitude, FLOATS), self.constant(FLOATS, 0.5)), WORDS)
        small = b.sub(shifted, words(0x3F000000))
        half = b.select(b.icmp_unsigned("<", magnitude, words(0x38800000)), small, normal)
        half = b.select(b.icmp_unsigned("<", magnitude, words(0x477FF000)), half, words(0x7C00))
        half = b.select(b.icmp_unsigned(">", magnitude, words(0x7F800000)), words(0x7E00), half)
        sign = b.and_(b.lshr(bits, words(16)), words(0x8000))
        return b.trunc(b.or_(half, sign), HALVES)

    def in_order(self, x: Any) -> Any:
        """A value that is computed as it is written: kernels let sums be taken in any order, which may hang on their length."""
        return self.call("llvm.arithmetic.fence.v16f32", FLOATS, x)

    def round(self, x: Any) -> Any:
        return self.call("llvm.rint.v16f32", FLOATS, x)

    def larger(self, a: Any, b: Any) -> Any:
        return self.call("llvm.maxnum.v16f32", FLOATS, a, b)

    def exp2(self, x: Any, least: float = -126.0) -> Any:
        """2^x of each lane for x in [-126, 126]; lower is taken as `least`, of which -127 gives 0."""
        x = self.larger(x, self.constant(FLOATS, least))
        whole = self.round(x)
        return self._exp2(whole, self.builder.fsub(x, whole))

    def exp(self, x: Any) -> Any:
        """e^x of each lane for x in [-87, 87], lower taken as -87: log2(e) in two parts, so that far values keep their digits."""
        b = self.builder
        x = self.larger(x, self.constant(FLOATS, -87.0))
        whole = self.round(b.fmul(x, self.constant(FLOATS, _LOG2_E_HIGH)))
        rest = self.multiply_add(x, self.constant(FLOATS, _LOG2_E_HIGH), b.fneg(whole))
        return self._exp2(whole, self.multiply_add(x, self.constant(FLOATS, LOG2_E - _LOG2_E_HIGH), rest))

    def _exp2(self, whole: Any, rest: Any) -> Any:
        b = self.builder
        value = self.constant(FLOATS, _EXP2[0])
        for factor in _EXP2[1:]:
            value = self.multiply_add(value, rest, self.constant(FLOATS, factor))
        exponent = b.add(b.fptosi(whole, WORDS), self.constant(WORDS, 127))
        return b.fmul(value, b.bitcast(b.shl(exponent, self.constant(WORDS, 23)), FLOATS))

    def inverse(self, x: Any) -> Any:
        """1 / x of each lane for x in [1, 2^127], in float32's precision: a division stops the processor for longer."""
        if not HAS_VNNI:
            return self.builder.fdiv(self.constant(FLOATS, 1.0), x)
        mask = ir.Constant(ir.IntType(16), -1)
        near = self.call("llvm.x86.avx512.rcp14.ps.512", FLOATS, x, self.constant(FLOATS, 0.0), mask)
        missing = self.multiply_add(self.builder.fneg(x), near, self.constant(FLOATS, 1.0))
        return self.multiply_add(near, missing, near)

    def lane_sum(self, x: Any) -> Any:
        """The 16 lanes added in one fixed order."""
        b, width = self.builder, LANES
        while width > 1:
            width //= 2
            low = ir.Constant(ir.VectorType(WORD, width), list(range(width)))
            high = ir.Constant(ir.VectorType(WORD, width), list(range(width, 2 * width)))
            nothing = ir.Constant(x.type, ir.Undefined)
            x = b.fadd(b.shuffle_vector(x, nothing, low), b.shuffle_vector(x, nothing, high))
        return b.extract_element(x, WORD(0))


def vector_function(num_arguments: int, write: Callable[..., None]) -> Any:
    """An intrinsic of int64 arguments without a result; `write(emitter, *values)` writes its code."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        write(Emitter(builder), *values)
        return _context.get_dummy_value()

    signature = types.void(*[types.int64] * num_arguments)
    names = ", ".join(f"a{i}" for i in range(num_arguments))
    # Numba binds an intrinsic's arguments by name, so a variable number needs a function of just that many.
    scope: dict[str, Any] = {"signature": signature, "generate": generate}
    exec(f"def declare(typing_context, {names}):\n    return signature, generate", scope)
    return intrinsic(scope["declare"])


@intrinsic  # type: ignore[untyped-decorator]
def load_word(_typing_context: Any, _address: Any) -> Any:
    """The int32 at an address -> int64."""
    return types.int64(types.int64), _write_load_word


def _write_load_word(_context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
    e = Emitter(b)
    return b.sext(e.load(e.base(arguments[0]), 0, WORD), LONG)


def _add(e: Emitter, target: Any, source: Any, count: Any) -> None:
    own, other = e.base(target), e.base(source)
    e.each(count, lambda at, kind: e.store(e.builder.fadd(e.load(own, at, kind), e.load(other, at, kind)), own, at))


def _copy(e: Emitter, target: Any, source: Any, count: Any) -> None:
    own, other = e.base(target), e.base(source)
    e.each(count, lambda at, kind: e.store(e.load(other, at, kind), own, at))


def _norm_row(e: Emitter, *arguments: Any) -> None:
    x, weight, out, eps = (e.base(address) for address in arguments[:4])
    factor = _norm_factor(e, x, eps, arguments[4])

    def scale(at: Any, kind: Any) -> None:
        e.store(_normed(e, (x, weight), at, kind, factor), out, at)

    e.each(arguments[4], scale)


def _norm_and_quantize(e: Emitter, *arguments: Any) -> None:
    b = e.builder
    x, weight, codes, scales, eps = (e.base(address) for address in arguments[:5])
    factor = _norm_factor(e, x, eps, e.times(arguments[5], 32))
    with cgutils.for_range(b, arguments[5], intp=LONG) as loop:
        places = [b.add(e.times(loop.index, 128), LONG(64 * i)) for i in range(2)]
        halves = [_normed(e, (x, weight), at, FLOATS, factor) for at in places]
        target, scale = (b.gep(base, [e.times(loop.index, size)]) for base, size in ((codes, 32), (scales, 12)))
        _store_quantized(e, halves, target, scale)


def _norm_factor(e: Emitter, x: Any, eps: Any, width: Any) -> Any:
    """1 / sqrt(mean of squares + eps), float32."""
    b = e.builder
    sums = {kind: cgutils.alloca_once_value(b, e.zero(kind)) for kind in (FLOATS, FLOAT)}

    def add_square(at: Any, kind: Any) -> None:
        value = e.load(x, at, kind)
        b.store(e.multiply_add(value, value, b.load(sums[kind])), sums[kind])

    e.each(width, add_square)
    total = b.fadd(e.lane_sum(b.load(sums[FLOATS])), b.load(sums[FLOAT]))
    mean = b.fdiv(total, b.sitofp(width, FLOAT))
    root = e.call("llvm.sqrt.f32", FLOAT, b.fadd(mean, e.load(eps, 0, FLOAT)))
    return b.fdiv(FLOAT(1.0), root)


def _normed(e: Emitter, row: tuple[Any, Any], at: Any, kind: Any, factor: Any) -> Any:
    b = e.builder
    return b.fmul(b.fmul(e.load(row[0], at, kind), e.like(factor, kind)), e.load(row[1], at, kind))


def _quantize_group(e: Emitter, x: Any, codes: Any, scales: Any) -> None:
    source = e.base(x)
    _store_quantized(e, [e.load(source, 64 * i, FLOATS) for i in range(2)], e.base(codes), e.base(scales))


def _store_quantized(e: Emitter, halves: list[Any], target: Any, scale: Any) -> None:
    """Two vectors of values -> codes and the three numbers of a group."""
    b = e.builder
    # As integers, magnitudes are in the same order, and a NaN is the largest: it ends in the scale, not in nothing.
    bits = [b.and_(b.bitcast(half, WORDS), e.constant(WORDS, 0x7FFFFFFF)) for half in halves]
    largest = e.call("llvm.vector.reduce.smax.v16i32", WORD, e.call("llvm.smax.v16i32", WORDS, *bits))
    peak = b.bitcast(largest, FLOAT)
    inverse = b.select(b.icmp_signed("==", largest, WORD(0)), FLOAT(0.0), b.fdiv(FLOAT(127.0), peak))
    rounded = [b.fptosi(e.round(b.fmul(half, e.splat(inverse))), WORDS) for half in halves]
    total = e.call("llvm.vector.reduce.add.v16i32", WORD, b.add(*rounded))
    for i, half in enumerate(rounded):
        e.store(b.trunc(half, BYTES), target, 16 * i)
    step = b.fdiv(peak, FLOAT(127.0))
    e.store(step, scale, 0)
    e.store(b.fmul(step, b.sitofp(total, FLOAT)), scale, 4)
    e.store(b.mul(total, WORD(-128)), scale, 8)


def _silu_and_quantize(e: Emitter, gate: Any, up: Any, codes: Any, scales: Any) -> None:
    gates, ups = e.base(gate), e.base(up)
    values = [_silu_and_mul(e, e.load(gates, 64 * i, FLOATS), e.load(ups, 64 * i, FLOATS)) for i in range(2)]
    _store_quantized(e, values, e.base(codes), e.base(scales))


def _silu_and_mul(e: Emitter, z: Any, factor: Any) -> Any:
    b = e.builder
    power = e.call("llvm.minnum.v16f32", FLOATS, b.fmul(z, e.constant(FLOATS, -LOG2_E)), e.constant(FLOATS, 126.0))
    return b.fmul(b.fmul(z, e.inverse(b.fadd(e.exp2(power), e.constant(FLOATS, 1.0)))), factor)


def _copy_quantized(e: Emitter, codes: Any, scales: Any, source: Any) -> None:
    own, eight, three = e.base(source), ir.VectorType(WORD, 8), ir.VectorType(WORD, 3)
    e.store(e.load(own, 0, eight), e.base(codes), 0)
    e.store(e.load(own, 32, three), e.base(scales), 0)


add_row = vector_function(3, _add)
"""(target, source, count): target += source, float32."""

copy_row = vector_function(3, _copy)
"""(target, source, count): target = source, float32."""

norm_row = vector_function(5, _norm_row)
"""(x, weight, out, eps, width): rms_norm of a row of float32; out may be x. All addresses but the last."""

norm_and_quantize = vector_function(6, _norm_and_quantize)
"""(x, weight, codes, scales, eps, num_groups): rms_norm of a row of groups of 32 float32, each as `quantize_group` leaves it."""

quantize_group = vector_function(3, _quantize_group)
"""(x, codes, scales): 32 float32 -> 32 int8 and (scale, scale * sum of the codes, -128 * sum as int32), value = scale * code."""

copy_quantized = vector_function(3, _copy_quantized)
"""(codes, scales, source): what `quantize_group` leaves of a group, codes and then scales, to where each lies."""

silu_and_quantize = vector_function(4, _silu_and_quantize)
"""(gate, up, codes, scales): of 32 float32 each silu(gate) * up, as `quantize_group` leaves it.

In one: what is stored 64 bytes at a time and read again at once stops the processor for longer than both take."""
