"""Reference of `rotary.py`: rotary position embedding, halves layout.

With d = rotary_dim, pair i of a head is (x[i], x[i + d/2]) and turns by the angle of its position and frequency:
    y[i] = x[i] cos - x[i + d/2] sin,  y[i + d/2] = x[i + d/2] cos + x[i] sin
Dimensions from d on stay as they are.
"""

from __future__ import annotations

import torch

from octavo_kernels.checks import check_rotary


def rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """Rotates q: [num_tokens, num_heads, head_dim] and k: [num_tokens, num_kv_heads, head_dim] in place.

    cos_sin: [max_positions, rotary_dim] float32, cosines then sines; positions: [num_tokens] int64.
    """
    check_rotary(q, k, cos_sin, positions)
    half = cos_sin.shape[1] // 2
    # cos, sin: [num_tokens, 1, rotary_dim / 2] fp32
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        low, high = x[..., :half].float(), x[..., half : 2 * half].float()
        # both before either is written: low and high are views when x is float32
        turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
        x[..., : 2 * half] = turned.to(x.dtype)
