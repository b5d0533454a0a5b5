"""Paged causal attention of sequences that compute many tokens, with or without a cached prefix.

    out = softmax(scale * q K^T + mask) V, in float32; row j of n sees the keys up to position seq_len - n + j,
    of them the last w where a window w is set.
    What else a score may be: attention_variant.py, each a branch at compile time.
    FlashAttention-2 (Dao, 2023) over a paged cache: one program holds a tile of query rows and walks the context.

A row of the tile is a pair (query token, head of the group): all heads that share a key/value head read it together.
The context is walked in two runs: tiles that every row sees whole, without a mask, and those that the diagonal or the
window's edge cuts. One run with masks where they are needed took an H100 a tenth longer.

Caches: [num_blocks, num_kv_heads, block_size, head_dim]. Addresses are int64; positions past the end are not loaded, for
a freed block may hold anything, NaN too.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_attention, check_caches, check_scale, check_variant
from octavo_kernels.attention_plan import PagedAttentionPlan
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.context_tile import add_values, alibi_bias, fold_scales, head_slopes, load_tile, scores, start_rows
from octavo_kernels.handles import KVScales
from octavo_kernels.launch import (
    LOG2_E,
    MIN_DOT,
    dot_precision,
    has_wide_tiles,
    is_amd,
    is_interpreted,
    next_power_of_2,
)
from octavo_kernels.overlap import await_inputs, overlapped


@triton.jit
def extend_attention_kernel(
    p_q,
    p_key_cache,
    p_value_cache,
    p_out,
    p_block_tables,
    p_seq_lens,
    p_query_start_loc,
    p_tile_sequence,
    p_tile_start,
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
    QUERY_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
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
    i_tile = tl.program_id(0) // num_kv_heads
    i_kv_head = (tl.program_id(0) % num_kv_heads).to(tl.int64)
    i_sequence = tl.load(p_tile_sequence + i_tile).to(tl.int64)
    if i_sequence >= num_seqs:
        return
    query_start = tl.load(p_query_start_loc + i_sequence)
    query_len = tl.load(p_query_start_loc + i_sequence + 1) - query_start
    prefix_len = tl.load(p_seq_lens + i_sequence) - query_len
    tile_start = tl.load(p_tile_start + i_tile)

    o_row = tl.arange(0, ROWS)
    o_dim = tl.arange(0, BLOCK_DIM)
    num_queries = tl.minimum(QUERY_TILE, query_len - tile_start)
    m_row = o_row < num_queries * GROUP
    # o_query: the row's token, counted from the sequence's first of this step; what pads the rows sees as the last does
    o_query = tile_start + tl.minimum(o_row // GROUP, num_queries - 1)
    m_dim = o_dim < HEAD_DIM
    m_q = m_row[:, None] & m_dim[None, :]
    o_token = (query_start + o_query).to(tl.int64)[:, None]
    o_head = (i_kv_head * GROUP + o_row % GROUP)[:, None]
    # b_q: [ROWS, BLOCK_DIM], the cache's dtype
    b_q = tl.load(p_q + o_token * stride_q_token + o_head * stride_q_head + o_dim[None, :], mask=m_q, other=0.0)
    if IS_WIDENED:
        b_q = b_q.to(tl.float32)

    o_row_head = i_kv_head * GROUP + o_row % GROUP
    b_max, b_sum = start_rows(p_sinks, o_row_head, m_row, HAS_SINKS)
    b_slope = head_slopes(p_alibi_slopes, o_row_head, m_row, HAS_SLOPES)
    o_row_position = prefix_len + o_query
    scale_log2, value_scale = fold_scales(scale_log2, p_key_scales, p_value_scales, i_kv_head, IS_FP8)
    # b_acc: [ROWS, BLOCK_DIM] fp32
    b_acc = tl.zeros([ROWS, BLOCK_DIM], tl.float32)
    p_table = p_block_tables + i_sequence * stride_table
    p_key = p_key_cache + i_kv_head * stride_key_head
    p_value = p_value_cache + i_kv_head * stride_value_head
    # columns below `whole` are seen by every row, columns from `end` on by none
    whole = (prefix_len + tile_start + 1) // COLUMNS * COLUMNS
    end = prefix_len + tile_start + num_queries
    first, inner = _window_edge(prefix_len + tile_start, end, whole, window, COLUMNS, IS_WINDOWED)
    for i_column in range(inner, whole, COLUMNS):
        o_position = i_column + tl.arange(0, COLUMNS)
        b_k, b_v = load_tile(
            p_key,
            p_value,
            p_table,
            o_position,
            None,
            m_dim,
            o_dim,
            stride_key_block,
            stride_key_slot,
            stride_value_block,
            stride_value_slot,
            BLOCK_SIZE,
            b_q.dtype,
            True,
            IS_FP8,
        )
        b_bias = alibi_bias(b_slope, o_position[None, :], o_row_position[:, None], HAS_SLOPES)
        b_score, factor = scores(b_q, b_k, scale_log2, cap_log2, b_bias, PRECISION, False, IS_CAPPED, HAS_SLOPES)
        b_acc, b_max, b_sum = add_values(b_score, factor, b_v, b_acc, b_max, b_sum, PRECISION, False)
    # the columns cut by the window's edge, [first, inner), then those cut by the diagonal, [whole, end); a third stage of
    # loads would spill, and the run is too short for it
    for i_cut in tl.range(whole - (inner - first), end, COLUMNS, num_stages=2):
        i_column = tl.where(i_cut < whole, i_cut - (whole - inner), i_cut) if IS_WINDOWED else i_cut
        o_position = i_column + tl.arange(0, COLUMNS)
        m_position, is_seen = _seen(o_position, prefix_len + tile_start, end, o_row_position, window, IS_WINDOWED)
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
        b_bias = alibi_bias(b_slope, o_position[None, :], o_row_position[:, None], HAS_SLOPES)
        b_score, factor = scores(b_q, b_k, scale_log2, cap_log2, b_bias, PRECISION, False, IS_CAPPED, HAS_SLOPES)
        b_score = tl.where(is_seen, b_score, float("-inf"))
        b_acc, b_max, b_sum = add_values(b_score, factor, b_v, b_acc, b_max, b_sum, PRECISION, False)

    b_out = (b_acc * (value_scale / b_sum)[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + o_token * stride_out_token + o_head * stride_out_head + o_dim[None, :], b_out, mask=m_q)


@triton.jit
def _window_edge(i_low, end, whole, window, COLUMNS: tl.constexpr, IS_WINDOWED: tl.constexpr):
    """Columns of the first tile that the row at i_low sees, and of the first that the last row, at end - 1, sees whole."""
    first = 0
    inner = 0
    if IS_WINDOWED:
        first = tl.maximum(i_low + 1 - window, 0) // COLUMNS * COLUMNS
        inner = tl.minimum(tl.cdiv(tl.maximum(end - window, 0), COLUMNS) * COLUMNS, whole)
        inner = tl.maximum(inner, first)
    return first, inner


@triton.jit
def _seen(o_position, i_low, end, o_row_position, window, IS_WINDOWED: tl.constexpr):
    """Which columns any row sees, [COLUMNS], and which each row does, [ROWS, COLUMNS]."""
    m_position = o_position < end
    if IS_WINDOWED:
        m_position = m_position & (o_position > i_low - window)
        # 0 <= b_back < window by their signs: AMD's scalar registers hold one mask of a tile, not two
        b_back = o_row_position[:, None] - o_position[None, :]
        is_seen = (b_back | (window - 1 - b_back)) >= 0
    else:
        is_seen = o_position[None, :] <= o_row_position[:, None]
    return m_position, is_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendTiling:
    """How the kernel is cut for a shape."""

    rows: int
    columns: int
    query_tile: int
    num_warps: int


def extend_tiling(group: int, head_dim: int, dtype: torch.dtype, *, has_bias: bool = False) -> ExtendTiling:
    """The largest tiles of each kind that stay in registers on the chips of tests/kernels/test_compile.py.

    has_bias: each score has one of its own; it does not change query_tile, which a plan goes by.
    """
    block_dim = next_power_of_2(head_dim)
    # each takes registers of its own: a bias, codes that become numbers, rows divided by a group that is no power of two
    is_coded, is_odd = dtype.itemsize == 1, group & (group - 1) != 0
    if dtype == torch.float32:
        rows, columns, num_warps = (32, 32, 4) if block_dim <= 64 and not has_bias else (32, 16, 8)
    elif block_dim > 128 or (block_dim > 64 and is_coded and is_odd):
        rows, columns, num_warps = 64, 32, 8
    elif block_dim > 64 and (has_bias or is_coded or is_odd):
        rows, columns, num_warps = 128, 32, 8
    else:
        rows, columns, num_warps = 128, 128 if block_dim == 128 and has_wide_tiles() else 64, 8
    rows = max(rows, next_power_of_2(group))
    # a wavefront of AMD's has 64 lanes, so half as many hold as much
    return ExtendTiling(
        rows=rows, columns=columns, query_tile=rows // group, num_warps=num_warps // 2 if is_amd() else num_warps
    )


def extend_attention(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    scale: float,
    out: torch.Tensor,
    variant: AttentionVariant = PLAIN,
    scales: KVScales | None = None,
) -> None:
    """Writes the rows of out that belong to sequences of query length 2 or more and leaves all others alone.

    q, out: [num_tokens, num_heads, head_dim]; caches: [num_blocks, num_kv_heads, block_size, head_dim].
    With scales the caches are uint8, the codes of float8_e4m3fn.
    """
    check_caches(key_cache, value_cache, scales)
    check_attention(q, key_cache, plan.num_tokens, plan.num_heads, scales)
    check_scale(scale)
    check_variant(variant, plan.num_heads, q.device)
    work, batch = plan.extend, plan.batch
    if work is None:
        return
    _, num_kv_heads, block_size, head_dim = key_cache.shape
    group = plan.num_heads // num_kv_heads
    # as the plan was made by: of codes, the tiles of 16 bits
    tiling = extend_tiling(
        group, head_dim, q.dtype if scales is None else key_cache.dtype, has_bias=variant.alibi_slopes is not None
    )
    extend_attention_kernel[(work.tile_sequence.shape[0] * num_kv_heads,)](
        p_q=q,
        p_key_cache=key_cache,
        p_value_cache=value_cache,
        p_out=out,
        p_block_tables=batch.block_tables,
        p_seq_lens=batch.seq_lens,
        p_query_start_loc=batch.query_start_loc,
        p_tile_sequence=work.tile_sequence,
        p_tile_start=work.tile_start,
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
        QUERY_TILE=work.query_tile,
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        HEAD_DIM=head_dim,
        BLOCK_DIM=max(next_power_of_2(head_dim), MIN_DOT),
        BLOCK_SIZE=block_size,
        PRECISION=dot_precision(q.dtype, extend_attention_kernel),
        IS_WIDENED=q.dtype == torch.bfloat16 and is_interpreted(extend_attention_kernel),
        IS_WINDOWED=plan.window is not None,
        IS_CAPPED=variant.soft_cap is not None,
        HAS_SLOPES=variant.alibi_slopes is not None,
        HAS_SINKS=variant.sinks is not None,
        IS_FP8=scales is not None,
        num_warps=tiling.num_warps,
        num_stages=2 if is_amd() else 3,
        **overlapped(),
    )
