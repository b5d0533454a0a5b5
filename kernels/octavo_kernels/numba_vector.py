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

LANES = 16
BYTE, HALF, WORD, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
WORDS = ir.VectorType(WORD, LANES)
BYTES = ir.VectorType(BYTE, LANES)

LOG2_E = 1.4426950408889634
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

    def store(self, value: Any, base: Any, offset: Any) -> None:
        self.builder.store(value, self._pointer(base, offset, value.type), align=1 if value.type == BYTES else 4)

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
        return self.call("llvm.fmuladd.v16f32", FLOATS, a, b, c)

    def round(self, x: Any) -> Any:
        return self.call("llvm.rint.v16f32", FLOATS, x)

    def exp2(self, x: Any) -> Any:
        """2^x of each lane for x in [-126, 126]; lower is taken as -126."""
        b = self.builder
        x = self.call("llvm.maxnum.v16f32", FLOATS, x, self.constant(FLOATS, -126.0))
        whole = self.round(x)
        rest = b.fsub(x, whole)
        value = self.constant(FLOATS, _EXP2[0])
        for factor in _EXP2[1:]:
            value = self.multiply_add(value, rest, self.constant(FLOATS, factor))
        exponent = b.add(b.fptosi(whole, WORDS), self.constant(WORDS, 127))
        return b.fmul(value, b.bitcast(b.shl(exponent, self.constant(WORDS, 23)), FLOATS))

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


def _quantize_group(e: Emitter, x: Any, codes: Any, scales: Any) -> None:
    b = e.builder
    source, target, scale = e.base(x), e.base(codes), e.base(scales)
    halves = [e.load(source, 64 * i, FLOATS) for i in range(2)]
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


def _silu_and_mul(e: Emitter, gate: Any, up: Any, out: Any) -> None:
    b = e.builder
    z, factor = e.load(e.base(gate), 0, FLOATS), e.load(e.base(up), 0, FLOATS)
    power = e.call("llvm.minnum.v16f32", FLOATS, b.fmul(z, e.constant(FLOATS, -LOG2_E)), e.constant(FLOATS, 126.0))
    e.store(b.fmul(b.fdiv(z, b.fadd(e.exp2(power), e.constant(FLOATS, 1.0))), factor), e.base(out), 0)


quantize_group = vector_function(3, _quantize_group)
"""(x, codes, scales): 32 float32 -> 32 int8 and (scale, scale * sum of the codes), value = scale * code."""

silu_and_mul_lanes = vector_function(3, _silu_and_mul)
"""(gate, up, out): 16 float32 each, out = silu(gate) * up; out may be gate."""
