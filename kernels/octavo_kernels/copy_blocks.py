"""Whole blocks of the paged cache copied in all layers: what a sequence needs before it writes into a shared block."""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.attention_checks import check_copy_blocks
from octavo_kernels.errors import KernelError
from octavo_kernels.launch import ceil_div

_CHUNK = 1024


@triton.jit
def copy_blocks_kernel(
    p_keys,
    p_values,
    p_source,
    p_destination,
    stride_layer,
    stride_block,
    num_pairs,
    block_elements,
    CHUNK: tl.constexpr,
):
    i_pair = tl.program_id(0) % num_pairs
    i_layer = (tl.program_id(0) // num_pairs).to(tl.int64)
    o_element = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    m_element = o_element < block_elements
    o_source = i_layer * stride_layer + tl.load(p_source + i_pair) * stride_block + o_element
    o_destination = i_layer * stride_layer + tl.load(p_destination + i_pair) * stride_block + o_element
    tl.store(p_keys + o_destination, tl.load(p_keys + o_source, mask=m_element), mask=m_element)
    tl.store(p_values + o_destination, tl.load(p_values + o_source, mask=m_element), mask=m_element)


def copy_blocks(keys: torch.Tensor, values: torch.Tensor, source: torch.Tensor, destination: torch.Tensor) -> None:
    """Copies blocks source[i] to destination[i] in place; the two sets are disjoint.

    keys, values: [num_layers, num_blocks, num_kv_heads, block_size, head_dim] contiguous; source, destination: [n]
    int64.
    """
    check_copy_blocks(source, destination, keys.device)
    if not keys.is_contiguous() or not values.is_contiguous() or keys.shape != values.shape:
        raise KernelError(
            f"keys {list(keys.shape)} and values {list(values.shape)} must be contiguous and of one shape; their "
            f"strides are {keys.stride()} and {values.stride()}"
        )
    if source.shape[0] == 0:
        return
    block_elements = keys[0, 0].numel()
    copy_blocks_kernel[(source.shape[0] * keys.shape[0], ceil_div(block_elements, _CHUNK))](
        p_keys=keys,
        p_values=values,
        p_source=source,
        p_destination=destination,
        stride_layer=keys.stride(0),
        stride_block=keys.stride(1),
        num_pairs=source.shape[0],
        block_elements=block_elements,
        CHUNK=_CHUNK,
        num_warps=4,
    )
