"""Multi-head latent attention of sequences that compute one token, absorbed, split over the context.

    out = softmax(scale * (q_latent . c + q_rope . r)) c      over the cached (c, r) of one sequence

DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1: keys and values of all heads are projections of one latent c, beside one
rotated key r. With the keys' projection moved into q and the values' behind out, c is the one key/value head of all query
heads, and is read once for both products. Work is dealt as in decode_attention.py, whose combine pass joins the splits.

Cache: [num_blocks, block_size, latent + rope], a token's c before its r. Addresses are int64; positions past the end are
not loaded, for a freed block may hold anything, NaN too. Accumulates in float32.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_mla, check_scale
from octavo_kernels.attention_plan import CONTEXT_TILE, PagedAttentionPlan
from octavo_kernels.context_tile import LOWEST, add_values
from octavo_kernels.decode_attention import combine_splits
from octavo_kernels.launch import LOG2_E, MIN_DOT, ceil_div, dot_precision, is_amd, is_interpreted, next_power_of_2
from octavo_kernels.require import require_shape


@triton.jit
def mla_decode_attention_kernel(
    p_q,
    p_cache,
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
    stride_block,
    stride_slot,
    stride_table,
    num_seqs,
    num_heads,
    num_head_tiles,
    scale_log2,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    BLOCK_LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_WIDENED: tl.constexpr,
):
    i_item = (tl.program_id(0) // num_head_tiles).to(tl.int64)
    i_sequence = tl.load(p_item_sequence + i_item).to(tl.int64)
    if i_sequence >= num_seqs:
        return
    first_item = tl.load(p_first_item + i_sequence)
    num_splits = tl.load(p_first_item + i_sequence + 1) - first_item
    i_split = i_item.to(tl.int32) - first_item
    seq_len = tl.load(p_seq_lens + i_sequence)
    num_tiles = tl.cdiv(seq_len, TILE)

    o_head = (tl.program_id(0) % num_head_tiles).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    m_head = o_head < num_heads
    o_latent = tl.arange(0, BLOCK_LATENT)
    m_latent = o_latent < LATENT
    o_rope = tl.arange(0, BLOCK_ROPE)
    m_rope = o_rope < ROPE
    i_token = tl.load(p_query_start_loc + i_sequence).to(tl.int64)
    # b_q: [HEADS, BLOCK_LATENT], b_q_rope: [HEADS, BLOCK_ROPE], the cache's dtype
    p_head = p_q + i_token * stride_q_token + o_head[:, None] * stride_q_head
    b_q = tl.load(p_head + o_latent[None, :], mask=m_head[:, None] & m_latent[None, :], other=0.0)
    b_q_rope = tl.load(p_head + LATENT + o_rope[None, :], mask=m_head[:, None] & m_rope[None, :], other=0.0)
    if IS_WIDENED:
        b_q, b_q_rope = b_q.to(tl.float32), b_q_rope.to(tl.float32)

    b_max = tl.full([HEADS], LOWEST, tl.float32)
    b_sum = tl.zeros([HEADS], tl.float32)
    # b_acc: [HEADS, BLOCK_LATENT] fp32
    b_acc = tl.zeros([HEADS, BLOCK_LATENT], tl.float32)
    p_table = p_block_tables + i_sequence * stride_table
    i_first = num_tiles * i_split // num_splits * TILE
    i_last = num_tiles * (i_split + 1) // num_splits * TILE
    for i_position in range(i_first, i_last, STEP):
        o_position = i_position + tl.arange(0, STEP)
        m_position = o_position < seq_len
        i_block = tl.load(p_table + o_position // BLOCK_SIZE, mask=m_position, other=0).to(tl.int64)
        p_row = (p_cache + i_block * stride_block + o_position % BLOCK_SIZE * stride_slot)[:, None]
        # b_c: [STEP, BLOCK_LATENT], b_r: [STEP, BLOCK_ROPE], the cache's dtype
        b_c = tl.load(p_row + o_latent[None, :], mask=m_position[:, None] & m_latent[None, :], other=0.0)
        b_r = tl.load(p_row + LATENT + o_rope[None, :], mask=m_position[:, None] & m_rope[None, :], other=0.0)
        if IS_WIDENED:
            b_c, b_r = b_c.to(tl.float32), b_r.to(tl.float32)
        b_score = tl.dot(b_q, tl.trans(b_c), input_precision=PRECISION)
        b_score = tl.dot(b_q_rope, tl.trans(b_r), b_score, input_precision=PRECISION)
        b_score = tl.where(m_position[None, :], b_score, float("-inf"))
        b_acc, b_max, b_sum = add_values(b_score, scale_log2, b_c, b_acc, b_max, b_sum, PRECISION, False)

    b_out = b_acc / b_sum[:, None]
    m_out = m_head[:, None] & m_latent[None, :]
    if num_splits == 1:
        p_row_out = p_out + i_token * stride_out_token + o_head[:, None] * stride_out_head + o_latent[None, :]
        tl.store(p_row_out, b_out.to(p_out.dtype.element_ty), mask=m_out)
    else:
        o_partial = i_item * num_heads + o_head
        tl.store(p_partial_out + o_partial[:, None] * LATENT + o_latent[None, :], b_out, mask=m_out)
        tl.store(p_partial_lse + o_partial, b_max + tl.log2(b_sum), mask=m_head)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaTiling:
    """How the kernel is cut for a shape."""

    heads: int
    """Query heads of a program."""
    step: int
    """Context tokens that it loads at once, a divisor of CONTEXT_TILE."""
    num_warps: int
    num_stages: int


def mla_tiling(num_heads: int, latent: int, dtype: torch.dtype) -> MlaTiling:
    """What fits into registers and shared memory on the chips of tests/kernels/test_compile.py."""
    if dtype == torch.float32 or latent <= 128:
        return MlaTiling(heads=MIN_DOT, step=MIN_DOT, num_warps=4, num_stages=1 if is_amd() else 2)
    if is_amd():
        return MlaTiling(heads=MIN_DOT, step=MIN_DOT, num_warps=4, num_stages=1)
    heads = min(max(next_power_of_2(num_heads), MIN_DOT), 32)
    return MlaTiling(heads=heads, step=32, num_warps=8 if heads == 32 else 4, num_stages=2)


def mla_decode_attention(
    q: torch.Tensor, cache: torch.Tensor, plan: PagedAttentionPlan, scale: float, out: torch.Tensor
) -> None:
    """Writes the rows of out that belong to sequences of query length 1 and leaves all others alone.

    q: [num_tokens, num_heads, latent + rope], latent parts first, already multiplied by the up-projection of keys.
    cache: [num_blocks, block_size, latent + rope]; out: [num_tokens, num_heads, latent], before that of values.
    The plan is one of num_kv_heads 1 and head_dim latent.
    """
    check_mla(q, cache, plan.num_tokens, plan.num_heads, out)
    check_scale(scale)
    work, batch = plan.decode, plan.batch
    if work is None:
        return
    num_heads, latent = out.shape[1:]
    require_shape("plan.decode.partial_out", work.partial_out, (None, num_heads, latent))
    rope = q.shape[2] - latent
    tiling = mla_tiling(num_heads, latent, q.dtype)
    num_head_tiles = ceil_div(num_heads, tiling.heads)
    mla_decode_attention_kernel[(work.item_sequence.shape[0] * num_head_tiles,)](
        p_q=q,
        p_cache=cache,
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
        stride_block=cache.stride(0),
        stride_slot=cache.stride(1),
        stride_table=batch.block_tables.stride(0),
        num_seqs=batch.seq_lens.shape[0],
        num_heads=num_heads,
        num_head_tiles=num_head_tiles,
        scale_log2=scale * LOG2_E,
        HEADS=tiling.heads,
        LATENT=latent,
        BLOCK_LATENT=max(next_power_of_2(latent), MIN_DOT),
        ROPE=rope,
        BLOCK_ROPE=max(next_power_of_2(rope), MIN_DOT),
        BLOCK_SIZE=cache.shape[1],
        TILE=CONTEXT_TILE,
        STEP=tiling.step,
        PRECISION=dot_precision(q.dtype, mla_decode_attention_kernel),
        IS_WIDENED=q.dtype == torch.bfloat16 and is_interpreted(mla_decode_attention_kernel),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    combine_splits(work, batch.query_start_loc, out)
