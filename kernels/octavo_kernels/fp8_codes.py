"""Numbers of 8 bits, e4m3 (4 of exponent, 3 of mantissa, largest 448), by their bits: the same on every chip.

A chip without fp8 has no conversions, and AMD's of gfx942 are of another e4m3. Moved to where float16 has its exponent and
mantissa, the bits are the number over a power of two, subnormal ones too; what is missing is a factor that the caller has
anyway: a scale.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)

DECODED_SCALE = tl.constexpr(256.0)
"""What `decode_fp8` must be multiplied by: float16's exponent is biased by 15, e4m3's by 7."""


@triton.jit
def decode_fp8(b_codes, dtype: tl.constexpr):
    """uint8 -> their numbers / DECODED_SCALE, exact in float16, bfloat16 and float32."""
    b_bits = b_codes.to(tl.uint16)
    b_half = (((b_bits & 0x80) << 8) | ((b_bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
    return b_half.to(dtype)


@triton.jit
def encode_fp8(b_x):
    """fp32 -> uint8, to the nearest, ties to even; what is larger than 448 (and NaN) becomes 448."""
    b_x = tl.where(b_x == b_x, b_x, LARGEST)
    b_magnitude = tl.minimum(tl.abs(b_x), LARGEST)
    b_bits = b_magnitude.to(tl.uint32, bitcast=True)
    # float32's exponent is biased by 127, e4m3's by 7
    b_normal = (b_bits - (120 << 23) + 0x7FFFF + ((b_bits >> 20) & 1)) >> 20
    # the last bit of 2^14 is 2^-9, the unit of subnormal numbers: the sum is rounded to it
    b_subnormal = (b_magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    b_code = tl.where(b_magnitude < 0.015625, b_subnormal, b_normal)
    return (b_code | tl.where(b_x < 0, 0x80, 0)).to(tl.uint8)
