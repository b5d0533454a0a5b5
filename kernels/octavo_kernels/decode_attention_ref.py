"""Reference of `decode_attention.py`: sequences that compute one token attend over their paged cache."""

from __future__ import annotations

from itertools import pairwise

import torch

from octavo_kernels.attention_plan import PagedAttentionPlan
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.extend_attention_ref import attend_sequence
from octavo_kernels.handles import KVScales


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
    starts = plan.batch.query_start_loc.tolist()
    for sequence, (start, end) in enumerate(pairwise(starts)):
        if end - start == 1:
            out[start:end] = attend_sequence(
                q[start:end], key_cache, value_cache, plan, sequence, scale, variant, scales
            )
