"""Paged attention of sequences that compute one token, split over the context.

    out = softmax(scale * q K^T) V over the keys of one sequence, in float32, with the running maximum and sum of
    Milakov and Gimelshein (2018) over tiles of the context; splits are joined by their log-sum-exp (Flash-Decoding,
    Dao et al., 2023). Work is dealt as a list of (sequence, run of tiles): attention_plan.py.
    What else a score may be: attention_variant.py, each a branch at compile time.
    With a window w the keys are those of positions seq_len - w and on; tiles before are in no item.

The query heads that share a key/value head are the rows of one tl.dot, padded to its 16: K and V are read once for all
of them. A sequence of one item is written to out directly, and the combine pass has nothing to do for it.

Caches: [num_blocks, num_kv_heads, block_size, head_dim]. Addresses are int64; positions past the end are not loaded, for
a freed block may hold anything, NaN too.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_attention, check_caches, check_scale, check_variant
from octavo_kernels.attention_plan import CONTEXT_TILE, DecodeWork, PagedAttentionPlan
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.context_tile import add_values, alibi_bias, fold_scales, head_slopes, load_tile, scores, start_rows
from octavo_kernels.handles import KVScales
from octavo_kernels.launch import LOG2_E, MIN_DOT, dot_precision, is_amd, is_interpreted, next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped

_SPLITS = 16
"""Splits that the combine pass joins at once."""


@triton.jit
def decode_attention_kernel(
    p_q,
    p_key_cache,
    p_value_cache,
    p_out,
    p_partial_out,
    p_partial_lse,
    p_block_tables,
    p_seq_lens,
    p_query_start_loc,
    p_item_sequence,
    p_first_item,
    stride_q_token,
    stride_q_head,
    stride_out_token,
    stride_out_head,
    stride_key_block,
    stride_key_head,
    stride_key_slot,
    stride_value_block,
    stride_value_head,
    stride_value_slot,
    stride_table,
    num_seqs,
    num_kv_heads,
    window,
    scale_log2,
    cap_log2,
    p_alibi_slopes,
    p_sinks,
    p_key_scales,
    p_value_scales,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
    IS_WINDOWED: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_item = (tl.program_id(0) // num_kv_heads).to(tl.int64)
    i_kv_head = (tl.program_id(0) % num_kv_heads).to(tl.int64)
    i_sequence = tl.load(p_item_sequence + i_item).to(tl.int64)
    if i_sequence >= num_seqs:
        return
    first_item = tl.load(p_first_item + i_sequence)
    num_splits = tl.load(p_first_item + i_sequence + 1) - first_item
    i_split = i_item.to(tl.int32) - first_item
    seq_len = tl.load(p_seq_lens + i_sequence)
    first_position = 0
    if IS_WINDOWED:
        first_position = tl.maximum(seq_len - window, 0)
    num_tiles = tl.cdiv(seq_len, TILE) - first_position // TILE

    o_group = tl.arange(0, BLOCK_GROUP)
    o_dim = tl.arange(0, BLOCK_DIM)
    o_head = i_kv_head * GROUP + o_group
    m_dim = o_dim < HEAD_DIM
    m_q = (o_group < GROUP)[:, None] & m_dim[None, :]
    i_token = tl.load(p_query_start_loc + i_sequence).to(tl.int64)
    # b_q: [BLOCK_GROUP, BLOCK_DIM], the cache's dtype
    b_q = tl.load(
        p_q + i_token * stride_q_token + o_head[:, None] * stride_q_head + o_dim[None, :], mask=m_q, other=0.0
    )
    if IS_WIDENED:
        b_q = b_q.to(tl.float32)

    # the first split alone has the sink in its sum
    b_max, b_sum = start_rows(p_sinks, o_head, o_group < tl.where(i_split == 0, GROUP, 0), HAS_SINKS)
    b_slope = head_slopes(p_alibi_slopes, o_head, o_group < GROUP, HAS_SLOPES)
    scale_log2, value_scale = fold_scales(scale_log2, p_key_scales, p_value_scales, i_kv_head, IS_FP8)
    # b_acc: [BLOCK_GROUP, BLOCK_DIM] fp32
    b_acc = tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32)
    p_table = p_block_tables + i_sequence * stride_table
    p_key = p_key_cache + i_kv_head * stride_key_head
    p_value = p_value_cache + i_kv_head * stride_value_head
    i_first = (first_position // TILE + num_tiles * i_split // num_splits) * TILE
    i_last = (first_position // TILE + num_tiles * (i_split + 1) // num_splits) * TILE
    if IS_WINDOWED:
        i_first = tl.maximum(i_first, first_position // STEP * STEP)
    for i_position in range(i_first, i_last, STEP):
        o_position = i_position + tl.arange(0, STEP)
        m_position = o_position < seq_len
        if IS_WINDOWED:
            # first_position <= o_position < seq_len by their signs: AMD's scalar registers hold one mask of a tile, not two
            m_position = ((o_position - first_position) | (seq_len - 1 - o_position)) >= 0
        b_k, b_v = load_tile(
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
            BLOCK_SIZE,
            b_q.dtype,
            False,
            IS_FP8,
        )
        b_bias = alibi_bias(b_slope, o_position[None, :], seq_len - 1, HAS_SLOPES)
        b_score, factor = scores(b_q, b_k, scale_log2, cap_log2, b_bias, PRECISION, GROUP == 1, IS_CAPPED, HAS_SLOPES)
        b_score = tl.where(m_position[None, :], b_score, float("-inf"))
        b_acc, b_max, b_sum = add_values(b_score, factor, b_v, b_acc, b_max, b_sum, PRECISION, GROUP == 1)

    b_out = b_acc * (value_scale / b_sum)[:, None]
    if num_splits == 1:
        p_row = p_out + i_token * stride_out_token + o_head[:, None] * stride_out_head + o_dim[None, :]
        tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=m_q)
    else:
        o_partial = i_item * num_kv_heads * GROUP + o_head
        tl.store(p_partial_out + o_partial[:, None] * HEAD_DIM + o_dim[None, :], b_out, mask=m_q)
        tl.store(p_partial_lse + o_partial, b_max + tl.log2(b_sum), mask=o_group < GROUP)


@triton.jit
def combine_splits_kernel(
    p_partial_out,
    p_partial_lse,
    p_out,
    p_query_start_loc,
    p_first_item,
    stride_out_token,
    stride_out_head,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_sequence = (tl.program_id(0) // num_heads).to(tl.int64)
    i_head = (tl.program_id(0) % num_heads).to(tl.int64)
    first_item = tl.load(p_first_item + i_sequence)
    last_item = tl.load(p_first_item + i_sequence + 1)
    if last_item - first_item <= 1:
        return
    o_dim = tl.arange(0, BLOCK_DIM)
    m_dim = o_dim < HEAD_DIM
    b_max = tl.full([1], float("-inf"), tl.float32)
    b_sum = tl.zeros([1], tl.float32)
    # b_acc: [BLOCK_DIM] fp32
    b_acc = tl.zeros([BLOCK_DIM], tl.float32)
    for i_first in range(first_item, last_item, SPLITS):
        o_item = i_first + tl.arange(0, SPLITS)
        m_item = o_item < last_item
        o_partial = o_item.to(tl.int64) * num_heads + i_head
        b_lse = tl.load(p_partial_lse + o_partial, mask=m_item, other=float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_lse, axis=0))
        b_weight = tl.exp2(b_lse - b_new_max)
        b_shrink = tl.exp2(b_max - b_new_max)
        # b_part: [SPLITS, BLOCK_DIM] fp32
        p_part = p_partial_out + o_partial[:, None] * HEAD_DIM + o_dim[None, :]
        b_part = tl.load(p_part, mask=m_item[:, None] & m_dim[None, :], other=0.0)
        b_acc = b_acc * b_shrink + tl.sum(b_part * b_weight[:, None], axis=0)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, axis=0)
        b_max = b_new_max
    i_token = tl.load(p_query_start_loc + i_sequence).to(tl.int64)
    p_row = p_out + i_token * stride_out_token + i_head * stride_out_head + o_dim
    tl.store(p_row, (b_acc / b_sum).to(p_out.dtype.element_ty), mask=m_dim)


def decode_step(group: int, block_dim: int, dtype: torch.dtype, *, has_bias: bool = False) -> int:
    """Context tokens a program loads at once, a divisor of CONTEXT_TILE: what fits into its registers."""
    if (group == 1 and has_bias) or (block_dim > 128 and dtype.itemsize == 1):
        return CONTEXT_TILE // 4
    is_wide = dtype == torch.float32 or block_dim > 128 or group == 1 or is_amd()
    return CONTEXT_TILE // 2 if is_wide else CONTEXT_TILE


def decode_warps(block_group: int, block_dim: int, dtype: torch.dtype) -> int:
    """Two, of which three programs kept an H100's memory busiest, where so few hold a program's registers; else four."""
    return 2 if block_group == MIN_DOT and block_dim <= 128 and dtype.itemsize == 2 and not is_amd() else 4


def decode_attention(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    scale: float,
    out: torch.Tensor,
    variant: AttentionVariant = PLAIN,
    scales: KVScales | None = None,
) -> None:
    """Writes the rows of out that belong to sequences of query length 1 and leaves all others alone.

    q, out: [num_tokens, num_heads, head_dim]; caches: [num_blocks, num_kv_heads, block_size, head_dim].
    With scales the caches are uint8, the codes of float8_e4m3fn.
    """
    check_caches(key_cache, value_cache, scales)
    check_attention(q, key_cache, plan.num_tokens, plan.num_heads, scales)
    check_scale(scale)
    check_variant(variant, plan.num_heads, q.device)
    work, batch = plan.decode, plan.batch
    if work is None:
        return
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = plan.num_heads // num_kv_heads
    block_dim = max(next_power_of_2(head_dim), MIN_DOT)
    block_group = 1 if group == 1 else max(next_power_of_2(group), MIN_DOT)
    decode_attention_kernel[(work.item_sequence.shape[0] * num_kv_heads,)](
        p_q=q,
        p_key_cache=key_cache,
        p_value_cache=value_cache,
        p_out=out,
        p_partial_out=work.partial_out,
        p_partial_lse=work.partial_lse,
        p_block_tables=batch.block_tables,
        p_seq_lens=batch.seq_lens,
        p_query_start_loc=batch.query_start_loc,
        p_item_sequence=work.item_sequence,
        p_first_item=work.first_item,
        stride_q_token=q.stride(0),
        stride_q_head=q.stride(1),
        stride_out_token=out.stride(0),
        stride_out_head=out.stride(1),
        stride_key_block=key_cache.stride(0),
        stride_key_head=key_cache.stride(1),
        stride_key_slot=key_cache.stride(2),
        stride_value_block=value_cache.stride(0),
        stride_value_head=value_cache.stride(1),
        stride_value_slot=value_cache.stride(2),
        stride_table=batch.block_tables.stride(0),
        num_seqs=batch.seq_lens.shape[0],
        num_kv_heads=num_kv_heads,
        window=plan.window,
        scale_log2=scale / variant.soft_cap if variant.soft_cap is not None else scale * LOG2_E,
        cap_log2=variant.soft_cap * LOG2_E if variant.soft_cap is not None else None,
        p_alibi_slopes=variant.alibi_slopes,
        p_sinks=variant.sinks,
        p_key_scales=scales.keys if scales is not None else None,
        p_value_scales=scales.values if scales is not None else None,
        GROUP=group,
        BLOCK_GROUP=block_group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_SIZE=block_size,
        TILE=CONTEXT_TILE,
        STEP=decode_step(
            group, block_dim, q.dtype if scales is None else key_cache.dtype, has_bias=variant.alibi_slopes is not None
        ),
        PRECISION=dot_precision(q.dtype, decode_attention_kernel),
        IS_WIDENED=q.dtype == torch.bfloat16 and is_interpreted(decode_attention_kernel),
        IS_WINDOWED=plan.window is not None,
        IS_CAPPED=variant.soft_cap is not None,
        HAS_SLOPES=variant.alibi_slopes is not None,
        HAS_SINKS=variant.sinks is not None,
        IS_FP8=scales is not None,
        num_warps=decode_warps(block_group, block_dim, key_cache.dtype),
        num_stages=2 if is_amd() else 3,
        **overlapped(),
    )
    combine_splits(work, batch.query_start_loc, out)


def combine_splits(work: DecodeWork, query_start_loc: torch.Tensor, out: torch.Tensor) -> None:
    """Writes the rows of out: [num_tokens, num_heads, head_dim] that belong to sequences of several items."""
    _, num_heads, head_dim = out.shape
    combine_splits_kernel[((work.first_item.shape[0] - 1) * num_heads,)](
        p_partial_out=work.partial_out,
        p_partial_lse=work.partial_lse,
        p_out=out,
        p_query_start_loc=query_start_loc,
        p_first_item=work.first_item,
        stride_out_token=out.stride(0),
        stride_out_head=out.stride(1),
        num_heads=num_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(next_power_of_2(head_dim), MIN_DOT),
        SPLITS=_SPLITS,
        # most programs have nothing to join, and the smaller ones end sooner
        num_warps=2,
        **overlapped(),
    )
