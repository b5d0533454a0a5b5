"""Attention with a soft cap, ALiBi or sinks on a CPU: scores in memory, since torch's fused attention has none of them.

Takes what torch_attention.py hands to `scaled_dot_product_attention`, and where each key stands before each query.
"""

from __future__ import annotations

import torch

from octavo_kernels.attention_variant import AttentionVariant

_SCORES = 1 << 24
"""Scores that are in memory at once, 64 MiB of float32; one row of queries at least."""


def attend_rows(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    lens: tuple[int, ...],
    scale: float,
    variant: AttentionVariant,
) -> torch.Tensor:
    """One query a sequence. q: [num_rows, num_kv_heads, group, head_dim]; keys, values: [num_rows, num_kv_heads, max_len, head_dim].

    mask: [num_rows, 1, 1, max_len], 0 or -inf, or None; lens: keys of each row -> like q.
    """
    # distance: [num_rows, 1, 1, max_len], from the query to the key, 0 or below where there is a key
    distance = torch.arange(keys.shape[2]) - (torch.tensor(lens)[:, None, None, None] - 1)
    return _attend(q, keys, values, mask, distance, scale, variant, (q.shape[1], q.shape[2], 1))


def attend_sequence(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    variant: AttentionVariant,
) -> torch.Tensor:
    """The last queries of one sequence. q: [num_kv_heads, group, query_len, head_dim]; keys, values: [num_kv_heads, group, num_keys, head_dim].

    mask: [query_len, num_keys], 0 or -inf; None is plain causal -> like q.
    """
    num_kv_heads, group, query_len, _ = q.shape
    num_keys = keys.shape[2]
    # distance: [query_len, num_keys], from the query to the key
    distance = torch.arange(num_keys) - torch.arange(num_keys - query_len, num_keys)[:, None]
    if mask is None:
        mask = torch.zeros(distance.shape).masked_fill_(distance > 0, -torch.inf)
    rows = max(1, _SCORES // (num_kv_heads * group * num_keys))
    parts = [
        _attend(q[:, :, own], keys, values, mask[own], distance[own], scale, variant, (num_kv_heads, group, 1, 1))
        for own in (slice(start, start + rows) for start in range(0, query_len, rows))
    ]
    return torch.cat(parts, dim=2)


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    distance: torch.Tensor,
    scale: float,
    variant: AttentionVariant,
    heads: tuple[int, ...],
) -> torch.Tensor:
    """Scores are the last two dimensions of q @ keys; heads: the shape in which a number a head meets them."""
    scores = (q.float() @ keys.float().transpose(-1, -2)).mul_(scale)
    if variant.soft_cap is not None:
        scores.div_(variant.soft_cap).tanh_().mul_(variant.soft_cap)
    if variant.alibi_slopes is not None:
        scores.add_(variant.alibi_slopes.view(heads) * distance)
    if mask is not None:
        scores.add_(mask)
    if variant.sinks is not None:
        sinks = variant.sinks.view(heads).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[-2]]
    return (weights @ values.float()).to(q.dtype)
