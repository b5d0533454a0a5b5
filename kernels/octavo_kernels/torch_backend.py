"""The torch backend: every operation from stock operators, on a CPU.

Binds the fast ways (torch_attention.py, torch_elementwise.py, torch_experts.py, torch_linear.py, torch_sampling.py), each
tested against its references.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from octavo_kernels import torch_attention, torch_linear, torch_sampling
from octavo_kernels.attention_checks import (
    check_attention,
    check_attention_batch,
    check_cache_spec,
    check_copy_blocks,
    check_layer,
    check_num_heads,
    check_scale,
    check_store_kv,
    check_table_width,
    check_variant,
    check_window,
)
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_kernels.checks import check_expert_weights, check_experts, check_linear, check_linear_weight
from octavo_kernels.composed_prologue import composed_prologue
from octavo_kernels.copy_blocks_ref import copy_blocks
from octavo_kernels.errors import KernelError
from octavo_kernels.fp8_weight import FP8
from octavo_kernels.handles import AttentionPlan, ExpertsHandle, KVCache, KVCacheSpec, KVScales, LinearHandle, QKNorm
from octavo_kernels.moe_routing_ref import route
from octavo_kernels.require import require_own
from octavo_kernels.torch_elementwise import add_rms_norm, rms_norm, rotary, silu_and_mul
from octavo_kernels.torch_experts import TorchExperts, run_experts, torch_mlp
from octavo_kernels.whole_weights import WholeLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchKVCache:
    """One tensor a layer, a token's K beside its V: one gather fetches both, and attention reads them as views."""

    spec: KVCacheSpec
    slots: tuple[torch.Tensor, ...]
    """A layer: [num_slots + 1, 2, num_kv_heads, head_dim]. The last row takes what PAD_SLOT (-1) sends nowhere."""
    keys: tuple[torch.Tensor, ...]
    """A layer: [num_blocks, num_kv_heads, block_size, head_dim], a view."""
    values: tuple[torch.Tensor, ...]
    """Like keys."""


class TorchLinear(WholeLinear):
    """On the CPU."""

    __slots__ = ()


class TorchBackend:
    """`KernelBackend` on a CPU."""

    def __init__(self, device: torch.device, *, is_batch_invariant: bool = False) -> None:
        if device.type != "cpu":
            # the plan reads lengths on the host, which on a GPU would be a synchronisation a step
            raise KernelError(f"the torch backend runs on cpu, not on {device}; use select_backend")
        self._device = device
        self._is_batch_invariant = is_batch_invariant
        self._linear = torch_linear.select_linear()
        if is_batch_invariant:
            self._linear = torch_linear.invariant(self._linear)

    @property
    def name(self) -> str:
        return "torch"

    @property
    def device(self) -> torch.device:
        return self._device

    def allocate_kv_cache(self, spec: KVCacheSpec, scales: KVScales | None = None) -> TorchKVCache:
        check_cache_spec(spec, scales)
        if spec.dtype == FP8:
            raise KernelError("the torch backend has no KV cache in float8_e4m3fn; give it a floating dtype")
        rows = spec.num_blocks * spec.block_size
        shape = (rows + 1, 2, spec.num_kv_heads, spec.head_dim)
        slots = tuple(_lazy_zeros(shape, spec.dtype) for _ in range(spec.num_layers))
        blocks = [layer[:rows].view(spec.num_blocks, spec.block_size, *shape[1:]) for layer in slots]
        return TorchKVCache(
            spec=spec,
            slots=slots,
            keys=tuple(block[:, :, 0].transpose(1, 2) for block in blocks),
            values=tuple(block[:, :, 1].transpose(1, 2) for block in blocks),
        )

    def prepare_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> TorchLinear:
        check_linear_weight(weight, bias)
        return TorchLinear(weight=weight, bias=bias)

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        linear = require_own(handle, TorchLinear)
        check_linear(x, linear.weight)
        return self._linear(x, linear.weight, linear.bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return add_rms_norm(x, residual, weight, eps)

    def rotary(self, q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
        rotary(q, k, cos_sin, positions)

    def store_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, slot_mapping: torch.Tensor
    ) -> None:
        own = require_own(cache, TorchKVCache)
        check_layer(layer, own.spec.num_layers)
        check_store_kv(k, v, own.keys[layer], own.values[layer], slot_mapping)
        keys, values = own.slots[layer].unbind(1)
        keys.index_put_((slot_mapping,), k)
        values.index_put_((slot_mapping,), v)

    def attention_prologue(
        self,
        qkv: torch.Tensor,
        norm: QKNorm | None,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        layer: int,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        return composed_prologue(self, qkv, norm, cos_sin, positions, (cache, layer, slot_mapping))

    def plan_attention(
        self, batch: AttentionBatch, cache: KVCache, num_heads: int, window: int | None = None
    ) -> AttentionPlan:
        check_attention_batch(batch)
        check_num_heads(num_heads, cache.spec.num_kv_heads)
        check_table_width(batch, cache.spec.block_size)
        check_window(window)
        return torch_attention.plan_attention(batch, cache.spec, num_heads, window, is_alone=self._is_batch_invariant)

    def attention(
        self,
        q: torch.Tensor,
        cache: KVCache,
        layer: int,
        plan: AttentionPlan,
        scale: float,
        variant: AttentionVariant = PLAIN,
    ) -> torch.Tensor:
        own = require_own(cache, TorchKVCache)
        own_plan = require_own(plan, torch_attention.TorchAttentionPlan)
        check_layer(layer, own.spec.num_layers)
        check_attention(q, own.keys[layer], own_plan.num_tokens, own_plan.num_heads)
        check_scale(scale)
        check_variant(variant, own_plan.num_heads, q.device)
        return torch_attention.attention(q, own.slots[layer], own_plan, scale, variant)

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        return silu_and_mul(x)

    def route(self, logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return route(logits, num_chosen, renormalizes=renormalizes)

    def prepare_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> TorchExperts:
        check_expert_weights(gate_up, down)
        return TorchExperts(gate_up=gate_up, down=down)

    def experts(
        self, x: torch.Tensor, handle: ExpertsHandle, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        own = require_own(handle, TorchExperts)
        check_experts(x, own.hidden_size, own.down.dtype, expert_ids, expert_weights)
        return run_experts(x, expert_ids, expert_weights, torch_mlp(own, self._linear))

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        return torch_sampling.sample(logits, params)

    def copy_blocks(self, cache: KVCache, source: torch.Tensor, destination: torch.Tensor) -> None:
        own = require_own(cache, TorchKVCache)
        check_copy_blocks(source, destination, self._device)
        for keys, values in zip(own.keys, own.values, strict=True):
            copy_blocks(keys.unsqueeze(0), values.unsqueeze(0), source, destination)


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only once they are written: numpy asks the system for zeroed pages, torch fills them."""
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
