"""Experts on a GPU: the handle, and how matrices that were prepared one by one come to lie in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_kernels.errors import KernelError
from octavo_kernels.expert_matrices import ExpertMatrices, stack_fp8, stack_packed
from octavo_kernels.handles import LinearHandle
from octavo_kernels.require import require_own
from octavo_kernels.triton_linear import TritonFp8Linear, TritonLinear, TritonPackedLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonExperts:
    """On the device."""

    gate_up: ExpertMatrices
    """(num_experts, 2 * inner, hidden)."""
    down: ExpertMatrices
    """(num_experts, hidden, inner)."""

    @property
    def num_experts(self) -> int:
        return self.down.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.down.shape[1]

    @property
    def inner_size(self) -> int:
        return self.down.shape[2]


def stacked(handles: Sequence[LinearHandle]) -> ExpertMatrices:
    """Linear layers, one an expert, all of a kind and a shape and without a bias.

    Raises:
        KernelError: they are not.
    """
    own = [_own(handle) for handle in handles]
    found = {(type(handle).__name__, handle.in_features, handle.out_features) for handle in own}
    if len(found) != 1 or any(handle.bias is not None for handle in own):
        raise KernelError(
            f"experts of one layer are (kind, inputs, outputs) {sorted(found)}; must be all of one, and have no bias"
        )
    # of the three lists one has all
    packed = [handle.weight for handle in own if isinstance(handle, TritonPackedLinear)]
    fp8 = [handle.fp8 for handle in own if isinstance(handle, TritonFp8Linear)]
    whole = [handle.weight for handle in own if isinstance(handle, TritonLinear)]
    return stack_packed(packed) if packed else stack_fp8(fp8) if fp8 else torch.stack(whole)


def _own(handle: LinearHandle) -> TritonLinear | TritonPackedLinear | TritonFp8Linear:
    if isinstance(handle, TritonPackedLinear | TritonFp8Linear):
        return handle
    return require_own(handle, TritonLinear)
