"""Which experts a token goes to: top-k of the softmax of its router's logits, ties to the lowest id.

    p = softmax(logits); ids = the k largest, largest first; shares = p[ids], or p[ids] / sum(p[ids])

Shazeer et al., "Outrageously Large Neural Networks", 2017; softmax before the choice as in Mixtral and Qwen's. A row is a
program: k times the largest of what is left. Computes in float32.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.checks import check_route
from octavo_kernels.launch import next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped


@triton.jit
def moe_routing_kernel(
    p_logits,
    p_ids,
    p_shares,
    stride_logits,
    num_experts,
    num_chosen,
    RENORMALIZES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_token = tl.program_id(0).to(tl.int64)
    o_expert = tl.arange(0, BLOCK)
    o_slot = tl.arange(0, BLOCK_CHOSEN)
    m_expert = o_expert < num_experts
    # b_logit: [BLOCK] fp32
    b_logit = tl.load(p_logits + i_token * stride_logits + o_expert, mask=m_expert, other=float("-inf"))
    b_share = tl.exp(b_logit - tl.max(b_logit, axis=0))
    b_share = b_share / tl.sum(b_share, axis=0)
    # below every share: not an expert, or chosen already
    b_left = tl.where(m_expert, b_share, -1.0)
    b_ids = tl.zeros([BLOCK_CHOSEN], tl.int32)
    b_shares = tl.zeros([BLOCK_CHOSEN], tl.float32)
    for i_slot in range(num_chosen):
        b_largest = tl.max(b_left, axis=0)
        i_best = tl.min(tl.where(b_left == b_largest, o_expert, BLOCK), axis=0)
        # nothing equals a NaN, and the id must be some expert's all the same
        i_best = tl.minimum(i_best, num_experts - 1)
        b_ids = tl.where(o_slot == i_slot, i_best, b_ids)
        b_shares = tl.where(o_slot == i_slot, tl.sum(tl.where(o_expert == i_best, b_share, 0.0), axis=0), b_shares)
        b_left = tl.where(o_expert == i_best, -1.0, b_left)
    if RENORMALIZES:
        b_shares = b_shares / tl.sum(b_shares, axis=0)
    m_slot = o_slot < num_chosen
    tl.store(p_ids + i_token * num_chosen + o_slot, b_ids.to(tl.int64), mask=m_slot)
    tl.store(p_shares + i_token * num_chosen + o_slot, b_shares, mask=m_slot)


def route(logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [num_tokens, num_experts] float32 -> ids int64 and shares float32, both [num_tokens, num_chosen]."""
    check_route(logits, num_chosen)
    num_tokens, num_experts = logits.shape
    ids = torch.empty((num_tokens, num_chosen), dtype=torch.int64, device=logits.device)
    shares = torch.empty((num_tokens, num_chosen), dtype=torch.float32, device=logits.device)
    if num_tokens:
        moe_routing_kernel[(num_tokens,)](
            p_logits=logits,
            p_ids=ids,
            p_shares=shares,
            stride_logits=logits.stride(0),
            num_experts=num_experts,
            num_chosen=num_chosen,
            RENORMALIZES=renormalizes,
            BLOCK=next_power_of_2(num_experts),
            BLOCK_CHOSEN=next_power_of_2(num_chosen),
            num_warps=1,
            **overlapped(),
        )
    return ids, shares
