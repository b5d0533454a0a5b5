"""The step that both paged attention kernels repeat: load one tile of the context, attend to it.

Running softmax after Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, in base 2. A row's
maximum starts at LOWEST and not at -inf: a row may see nothing of its first tiles, and -inf less -inf would be NaN.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.fp8_codes import DECODED_SCALE, decode_fp8
from octavo_kernels.launch import LOG2_E

TO_LOG2 = tl.constexpr(LOG2_E)

LOWEST = tl.constexpr(-1.0e30)
"""Below every score that is not itself infinite."""


@triton.jit
def load_tile(
    p_key,
    p_value,
    p_table,
    o_position,
    m_position,
    m_dim,
    o_dim,
    stride_key_block,
    stride_key_slot,
    stride_value_block,
    stride_value_slot,
    BLOCK_SIZE: tl.constexpr,
    dtype: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    IS_FP8: tl.constexpr,
):
    """K and V of the positions, each [tile, BLOCK_DIM] dtype; 0 past the context: a freed block may hold NaN."""
    if IS_WHOLE:
        i_block = tl.load(p_table + o_position // BLOCK_SIZE).to(tl.int64)[:, None]
        m_tile = m_dim[None, :]
    else:
        i_block = tl.load(p_table + o_position // BLOCK_SIZE, mask=m_position, other=0).to(tl.int64)[:, None]
        m_tile = m_position[:, None] & m_dim[None, :]
    o_slot = (o_position % BLOCK_SIZE)[:, None]
    o_key = i_block * stride_key_block + o_slot * stride_key_slot + o_dim[None, :]
    o_value = i_block * stride_value_block + o_slot * stride_value_slot + o_dim[None, :]
    b_k = tl.load(p_key + o_key, mask=m_tile, other=0)
    b_v = tl.load(p_value + o_value, mask=m_tile, other=0)
    if IS_FP8:
        return decode_fp8(b_k, dtype), decode_fp8(b_v, dtype)
    return b_k.to(dtype), b_v.to(dtype)


@triton.jit
def start_rows(p_sinks, o_head, m_sink, HAS_SINKS: tl.constexpr):
    """The running maximum and sum of rows that have seen nothing yet, or their head's sink. Both [rows] fp32."""
    b_max = tl.full(o_head.shape, LOWEST, tl.float32)
    b_sum = tl.zeros(o_head.shape, tl.float32)
    if HAS_SINKS:
        # a sink of -inf is LOWEST, whose weight is 0 beside any score
        b_max = tl.maximum(b_max, tl.load(p_sinks + o_head, mask=m_sink, other=float("-inf")) * TO_LOG2)
        b_sum = m_sink.to(tl.float32)
    return b_max, b_sum


@triton.jit
def head_slopes(p_alibi_slopes, o_head, m_head, HAS_SLOPES: tl.constexpr):
    """ALiBi's slope of each row, in units of log2: [rows] fp32, or None."""
    b_slope = None
    if HAS_SLOPES:
        b_slope = tl.load(p_alibi_slopes + o_head, mask=m_head, other=0.0) * TO_LOG2
    return b_slope


@triton.jit
def alibi_bias(b_slope, o_position, o_row_position, HAS_SLOPES: tl.constexpr):
    """What a tile's scores get: [rows, tile] fp32, or None. o_position: [1, tile], o_row_position: [rows, 1] or one."""
    b_bias = None
    if HAS_SLOPES:
        b_bias = b_slope[:, None] * (o_position - o_row_position).to(tl.float32)
    return b_bias


@triton.jit
def fold_scales(scale_log2, p_key_scales, p_value_scales, i_kv_head, IS_FP8: tl.constexpr):
    """What scores are multiplied by, and what values are, with the scales of a cache of codes."""
    value_scale = 1.0
    if IS_FP8:
        scale_log2 *= tl.load(p_key_scales + i_kv_head) * DECODED_SCALE
        value_scale = tl.load(p_value_scales + i_kv_head) * DECODED_SCALE
    return scale_log2, value_scale


@triton.jit
def scores(
    b_q,
    b_k,
    scale_log2,
    cap_log2,
    b_bias,
    PRECISION: tl.constexpr,
    IS_VECTOR: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Of each row of q and each position of a tile: [rows, tile] fp32, and what they are to be multiplied by to be in units of log2.

    IS_VECTOR: q has one row, for which the tensor cores' 16 would be a waste.
    IS_CAPPED: scale_log2 is the scale over the cap, and cap_log2 the cap in units of log2.
    HAS_BIAS: b_bias [rows, tile] fp32 is added, in units of log2.
    """
    if IS_VECTOR:
        b_score = tl.sum(b_q.to(tl.float32)[:, None, :] * b_k.to(tl.float32)[None, :, :], axis=2)
    else:
        b_score = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    factor = scale_log2
    if IS_CAPPED or HAS_BIAS:
        b_score *= scale_log2
        factor = 1.0
    if IS_CAPPED:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which is 1 long before exp would be infinite
        b_power = tl.exp2(tl.minimum(b_score * (2.0 * TO_LOG2), 126.0))
        b_score = cap_log2 - 2.0 * cap_log2 / (b_power + 1.0)
    if HAS_BIAS:
        b_score += b_bias
    return b_score, factor


@triton.jit
def add_values(b_score, factor, b_v, b_acc, b_max, b_sum, PRECISION: tl.constexpr, IS_VECTOR: tl.constexpr):
    """Adds a tile to the running maximum, sum and weighted values of each row, all in fp32.

    b_score, factor: as `scores` gave them, the score -inf where a row does not see, the factor above 0. It is multiplied by
    only here, in one operation with the difference.
    """
    b_new_max = tl.maximum(b_max, tl.max(b_score, axis=1) * factor)
    b_weight = tl.exp2(b_score * factor - b_new_max[:, None])
    b_shrink = tl.exp2(b_max - b_new_max)
    b_sum = b_sum * b_shrink + tl.sum(b_weight, axis=1)
    b_acc = b_acc * b_shrink[:, None]
    if IS_VECTOR:
        b_acc += tl.sum(b_weight[:, :, None] * b_v.to(tl.float32)[None, :, :], axis=1)
    else:
        b_acc = tl.dot(b_weight.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
    return b_acc, b_new_max, b_sum
