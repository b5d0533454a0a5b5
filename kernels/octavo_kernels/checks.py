"""What each operation requires of its tensors, said once for the kernels, the references and the fast CPU paths.

A broken requirement is a `KernelError` that names the tensor, what was given and what is needed. Values inside tensors
(a slot past the cache, a wrong length) are never looked at: that would make the host wait for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo_kernels.batches import SamplingBatch
from octavo_kernels.errors import KernelError
from octavo_kernels.require import (
    require_device,
    require_dtype,
    require_floating,
    require_last_contiguous,
    require_rank,
    require_shape,
)

if TYPE_CHECKING:
    from octavo_kernels.expert_matrices import ExpertMatrices
    from octavo_kernels.fp8_weight import Fp8Weight
    from octavo_kernels.packed_weight import PackedWeight


def check_linear_weight(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """weight: [out, in], bias: [out], same floating dtype."""
    require_rank("weight", weight, 2)
    require_floating("weight", weight.dtype)
    if bias is not None:
        require_shape("bias", bias, (weight.shape[0],))
        require_dtype("bias", bias, weight.dtype)


def check_linear(x: torch.Tensor, weight: torch.Tensor) -> None:
    """x: [num_tokens, in] of the weight's dtype, on its device."""
    require_rank("x", x, 2)
    if x.shape[1] != weight.shape[1]:
        raise KernelError(f"x has {x.shape[1]} features, the linear layer takes {weight.shape[1]}")
    require_dtype("x", x, weight.dtype)
    require_device("x", x, weight.device)


def check_packed_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> None:
    """x: [num_tokens, in] of any floating dtype, last dimension contiguous; bias: [out], dtype of x."""
    require_shape("x", x, (None, weight.in_features))
    require_floating("x", x.dtype)
    require_last_contiguous("x", x)
    require_device("x", x, weight.codes.device)
    if bias is not None:
        require_shape("bias", bias, (weight.out_features,))
        require_dtype("bias", bias, x.dtype)


def check_fp8_linear(x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None) -> None:
    """x: [num_tokens, in] bfloat16, last dimension contiguous; bias: [out] bfloat16."""
    require_shape("x", x, (None, weight.codes.shape[1]))
    require_dtype("x", x, torch.bfloat16)
    require_last_contiguous("x", x)
    require_device("x", x, weight.codes.device)
    if bias is not None:
        require_shape("bias", bias, (weight.codes.shape[0],))
        require_dtype("bias", bias, torch.bfloat16)


def check_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> None:
    """x: [..., hidden] of rank 1 to 3, last dimension contiguous; weight: [hidden] contiguous; any floating dtypes."""
    if not 1 <= x.ndim <= 3:
        raise KernelError(f"x has shape {list(x.shape)}, rms_norm takes 1 to 3 dimensions")
    require_floating("x", x.dtype)
    require_floating("weight", weight.dtype)
    require_shape("weight", weight, (x.shape[-1],))
    require_last_contiguous("x", x)
    require_last_contiguous("weight", weight)
    require_device("weight", weight, x.device)


def check_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> None:
    """x, residual: [num_tokens, hidden] of one dtype; weight: [hidden]."""
    require_rank("x", x, 2)
    check_rms_norm(x, weight)
    require_shape("residual", residual, tuple(x.shape))
    require_dtype("residual", residual, x.dtype)
    require_last_contiguous("residual", residual)
    require_device("residual", residual, x.device)


def check_rotary(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
    """See `KernelBackend.rotary`."""
    require_rank("q", q, 3)
    require_floating("q", q.dtype)
    require_shape("k", k, (q.shape[0], None, q.shape[2]))
    require_dtype("k", k, q.dtype)
    require_last_contiguous("q", q)
    require_last_contiguous("k", k)
    require_device("k", k, q.device)
    check_angles(cos_sin, positions, q)


def check_angles(cos_sin: torch.Tensor, positions: torch.Tensor, heads: torch.Tensor) -> None:
    """cos_sin, positions: see `KernelBackend.rotary`; heads: [num_tokens, any, head_dim]."""
    require_rank("cos_sin", cos_sin, 2)
    require_dtype("cos_sin", cos_sin, torch.float32)
    require_last_contiguous("cos_sin", cos_sin)
    num_tokens, _, head_dim = heads.shape
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise KernelError(f"cos_sin has {rotary_dim} columns, must be even and at most head_dim {head_dim}")
    require_shape("positions", positions, (num_tokens,))
    require_dtype("positions", positions, torch.int64)
    for name, tensor in (("cos_sin", cos_sin), ("positions", positions)):
        require_device(name, tensor, heads.device)


def check_silu_and_mul(x: torch.Tensor) -> None:
    """x: [num_tokens, 2 * d], last dimension contiguous."""
    require_rank("x", x, 2)
    require_floating("x", x.dtype)
    require_last_contiguous("x", x)
    if x.shape[1] % 2:
        raise KernelError(f"x has {x.shape[1]} columns, silu_and_mul needs an even number: gate beside up")


def check_route(logits: torch.Tensor, num_chosen: int) -> None:
    """logits: [num_tokens, num_experts] float32, last dimension contiguous."""
    require_rank("logits", logits, 2)
    require_dtype("logits", logits, torch.float32)
    require_last_contiguous("logits", logits)
    if not 1 <= num_chosen <= logits.shape[1]:
        raise KernelError(f"num_chosen is {num_chosen}, must be between 1 and the {logits.shape[1]} experts")


def check_expert_weights(gate_up: ExpertMatrices, down: ExpertMatrices) -> None:
    """Of shapes (num_experts, 2 * inner, hidden) and (num_experts, hidden, inner); tensors of one floating dtype."""
    for name, matrices in (("gate_up", gate_up), ("down", down)):
        if isinstance(matrices, torch.Tensor):
            require_rank(name, matrices, 3)
            require_floating(name, matrices.dtype)
    num_experts, num_rows, hidden = gate_up.shape
    if num_experts == 0 or num_rows % 2:
        raise KernelError(
            f"gate_up has shape {list(gate_up.shape)}, must be [1 or more experts, an even number: gate before up, any]"
        )
    wanted = (num_experts, hidden, num_rows // 2)
    if tuple(down.shape) != wanted:
        raise KernelError(f"down has shape {list(down.shape)}, must be {list(wanted)}")
    if isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor):
        require_dtype("down", down, gate_up.dtype)


def check_experts(
    x: torch.Tensor, hidden: int, dtype: torch.dtype, expert_ids: torch.Tensor, expert_weights: torch.Tensor
) -> None:
    """x: [num_tokens, hidden] of the weights' dtype, last dimension contiguous; the others: see `KernelBackend.experts`."""
    require_shape("x", x, (None, hidden))
    require_dtype("x", x, dtype)
    require_last_contiguous("x", x)
    require_shape("expert_ids", expert_ids, (x.shape[0], None))
    require_dtype("expert_ids", expert_ids, torch.int64)
    require_shape("expert_weights", expert_weights, tuple(expert_ids.shape))
    require_dtype("expert_weights", expert_weights, torch.float32)
    for name, tensor in (("expert_ids", expert_ids), ("expert_weights", expert_weights)):
        require_device(name, tensor, x.device)


_SAMPLING_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seed": torch.int64,
    "position": torch.int64,
}


def check_sample(logits: torch.Tensor, params: SamplingBatch) -> None:
    """logits: [num_rows, vocab] float32, last dimension contiguous; params: see `SamplingBatch`."""
    require_rank("logits", logits, 2)
    require_dtype("logits", logits, torch.float32)
    require_last_contiguous("logits", logits)
    if logits.shape[1] == 0:
        raise KernelError("logits has 0 columns, needs at least one token to choose")
    for name, dtype in _SAMPLING_DTYPES.items():
        tensor: torch.Tensor = getattr(params, name)
        require_shape(name, tensor, (logits.shape[0],))
        require_dtype(name, tensor, dtype)
        require_last_contiguous(name, tensor)
        require_device(name, tensor, logits.device)
