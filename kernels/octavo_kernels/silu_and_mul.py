"""The gate of a SwiGLU feed-forward layer: silu(gate) * up, silu(g) = g / (1 + exp(-g)).

Shazeer, "GLU Variants Improve Transformer", 2020. gate and up stand side by side in a row of x. Computes in float32.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_silu_and_mul
from octavo_kernels.launch import ceil_div
from octavo_kernels.overlap import await_inputs, overlapped

_BLOCK = 1024


@triton.jit
def silu_and_mul_kernel(p_x, p_out, stride_x, width, BLOCK: tl.constexpr, IS_OVERLAPPED: tl.constexpr):
    await_inputs(IS_OVERLAPPED)
    i_token = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < width
    p_gate = p_x + i_token * stride_x + o_column
    # b_gate, b_up: [BLOCK] fp32
    b_gate = tl.load(p_gate, mask=m_column, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate + width, mask=m_column, other=0.0).to(tl.float32)
    b_out = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    tl.store(p_out + i_token * width + o_column, b_out.to(p_out.dtype.element_ty), mask=m_column)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x: [num_tokens, 2 * d], gate beside up -> new [num_tokens, d], dtype of x."""
    check_silu_and_mul(x)
    num_tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    silu_and_mul_kernel[(num_tokens, ceil_div(width, _BLOCK))](
        p_x=x,
        p_out=out,
        stride_x=x.stride(0),
        width=width,
        BLOCK=_BLOCK,
        num_warps=4,
        **overlapped(),
    )
    return out
