"""RMS norm: y = x / sqrt(mean(x^2) + eps) * weight, and the same of x + residual.

Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. One program a row, the whole row in registers, so x is
read once. Accumulates in float32; the sum with the residual is rounded to its dtype before it is normed, as it would be
if it were read back.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_add_rms_norm, check_rms_norm
from octavo_kernels.launch import next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped


@triton.jit
def rms_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_out,
    stride_x_outer,
    stride_x_inner,
    stride_residual,
    num_inner,
    hidden,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_row = tl.program_id(0).to(tl.int64)
    o_hidden = tl.arange(0, BLOCK)
    m_hidden = o_hidden < hidden
    p_row = p_x + (i_row // num_inner) * stride_x_outer + (i_row % num_inner) * stride_x_inner
    # b_x: [BLOCK] fp32
    b_x = tl.load(p_row + o_hidden, mask=m_hidden, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        p_sum = p_residual + i_row * stride_residual + o_hidden
        b_sum = (b_x + tl.load(p_sum, mask=m_hidden, other=0.0).to(tl.float32)).to(p_residual.dtype.element_ty)
        tl.store(p_sum, b_sum, mask=m_hidden)
        b_x = b_sum.to(tl.float32)
    inverse_rms = 1.0 / tl.sqrt(tl.sum(b_x * b_x, axis=0) / hidden + eps)
    b_weight = tl.load(p_weight + o_hidden, mask=m_hidden, other=0.0).to(tl.float32)
    b_out = (b_x * inverse_rms * b_weight).to(p_out.dtype.element_ty)
    tl.store(p_out + i_row * hidden + o_hidden, b_out, mask=m_hidden)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [..., hidden] of rank 1 to 3, weight: [hidden] -> new contiguous tensor, shape and dtype of x."""
    check_rms_norm(x, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x if x.ndim == 3 else x.view(1, *x.shape) if x.ndim == 2 else x.view(1, 1, -1)
    _launch(rows, None, weight, out, eps)
    return out


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Adds x to residual in place, rounded to its dtype; -> rms_norm of it. Both [num_tokens, hidden]."""
    check_add_rms_norm(x, residual, weight)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x.view(1, *x.shape), residual, weight, out, eps)
    return out


def _launch(
    rows: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, out: torch.Tensor, eps: float
) -> None:
    """rows: [outer, inner, hidden]."""
    if rows.numel() == 0:
        return
    block = next_power_of_2(rows.shape[2])
    rms_norm_kernel[(rows.shape[0] * rows.shape[1],)](
        p_x=rows,
        p_residual=residual,
        p_weight=weight,
        p_out=out,
        stride_x_outer=rows.stride(0),
        stride_x_inner=rows.stride(1),
        stride_residual=residual.stride(0) if residual is not None else 0,
        num_inner=rows.shape[1],
        hidden=rows.shape[2],
        eps=eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
        **overlapped(),
    )
