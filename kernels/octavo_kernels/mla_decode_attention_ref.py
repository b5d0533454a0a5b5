"""Reference of `mla_decode_attention.py`: one token a sequence attends to the latents of its paged cache."""

from __future__ import annotations

from itertools import pairwise

import torch

from octavo_kernels.attention_checks import check_mla
from octavo_kernels.attention_plan import PagedAttentionPlan


def mla_decode_attention(
    q: torch.Tensor, cache: torch.Tensor, plan: PagedAttentionPlan, scale: float, out: torch.Tensor
) -> None:
    """Writes the rows of out that belong to sequences of query length 1 and leaves all others alone.

    q: [num_tokens, num_heads, latent + rope], latent parts first, already multiplied by the up-projection of keys.
    cache: [num_blocks, block_size, latent + rope]; out: [num_tokens, num_heads, latent], before that of values.
    """
    check_mla(q, cache, plan.num_tokens, plan.num_heads, out)
    latent, block_size = out.shape[2], cache.shape[1]
    for sequence, (start, end) in enumerate(pairwise(plan.batch.query_start_loc.tolist())):
        if end - start != 1:
            continue
        positions = torch.arange(int(plan.batch.seq_lens[sequence]), device=cache.device)
        blocks = plan.batch.block_tables[sequence].long()[positions // block_size]
        # rows: [seq_len, latent + rope] fp32
        rows = cache[blocks, positions % block_size].float()
        weights = (scale * q[start].float() @ rows.T).softmax(dim=-1)
        out[start] = (weights @ rows[:, :latent]).to(out.dtype)
