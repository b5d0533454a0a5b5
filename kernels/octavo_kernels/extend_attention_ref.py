"""Reference of `extend_attention.py`: sequences that compute many tokens, with or without a cached prefix.

out = softmax(scale * q K^T + mask) V, in float32; row j of n sees the keys up to position seq_len - n + j, of them the
last `window` where one is set. What else a score may be: attention_variant.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from octavo_kernels.attention_plan import PagedAttentionPlan
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.handles import KVScales


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
    starts = plan.batch.query_start_loc.tolist()
    for sequence, (start, end) in enumerate(pairwise(starts)):
        if end - start > 1:
            out[start:end] = attend_sequence(
                q[start:end], key_cache, value_cache, plan, sequence, scale, variant, scales
            )


def attend_sequence(
    q: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    plan: PagedAttentionPlan,
    sequence: int,
    scale: float,
    variant: AttentionVariant = PLAIN,
    scales: KVScales | None = None,
) -> torch.Tensor:
    """q: [query_len, num_heads, head_dim], the last tokens of one sequence -> like q."""
    seq_len, block_table = int(plan.batch.seq_lens[sequence]), plan.batch.block_tables[sequence]
    group = q.shape[1] // key_cache.shape[1]
    # k, v: [seq_len, num_heads, head_dim] fp32
    key_scales, value_scales = (None, None) if scales is None else (scales.keys, scales.values)
    k = _gather(key_cache, block_table, seq_len, key_scales).repeat_interleave(group, dim=1)
    v = _gather(value_cache, block_table, seq_len, value_scales).repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    query_positions = torch.arange(seq_len - q.shape[0], seq_len, device=q.device)
    # distance: [query_len, seq_len] int64, how far each key lies before each query
    distance = query_positions[:, None] - torch.arange(seq_len, device=q.device)
    if variant.soft_cap is not None:
        scores = variant.soft_cap * torch.tanh(scores / variant.soft_cap)
    if variant.alibi_slopes is not None:
        scores = scores - variant.alibi_slopes[:, None, None] * distance
    is_hidden = (distance < 0) | (distance >= (plan.window or seq_len))
    scores = scores.masked_fill(is_hidden, -torch.inf)
    if variant.sinks is not None:
        scores = torch.cat((scores, variant.sinks[:, None, None].expand(-1, q.shape[0], 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., :seq_len]
    # a key that nobody sees may have been freed, and then hold NaN, which times 0 would still be NaN
    v = v.masked_fill(is_hidden.all(dim=0)[:, None, None], 0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def _gather(cache: torch.Tensor, block_table: torch.Tensor, seq_len: int, scales: torch.Tensor | None) -> torch.Tensor:
    """One sequence's keys or values in order: [seq_len, num_kv_heads, head_dim] fp32."""
    positions = torch.arange(seq_len, device=cache.device)
    block_size = cache.shape[2]
    rows = cache[block_table.long()[positions // block_size], :, positions % block_size]
    return rows.float() if scales is None else rows.view(torch.float8_e4m3fn).float() * scales[:, None]
