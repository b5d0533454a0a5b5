"""The compiled CPU backend: quantised weights stay quantised in memory, activations are int8 inside linear layers.

Computes in float32 otherwise. Linear layers and attention are compiled kernels; what is left of single operations is
the torch backend's. A decoder whose layers are all quantised runs as one function (`numba_step.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octavo_kernels import numba_sampling
from octavo_kernels.attention_checks import (
    check_attention_batch,
    check_cache_spec,
    check_copy_blocks,
    check_layer,
    check_num_heads,
    check_scale,
    check_table_width,
    check_window,
)
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_kernels.checks import check_expert_weights, check_experts, check_linear_weight
from octavo_kernels.composed_prologue import composed_prologue
from octavo_kernels.decoder_spec import DecoderSpec, DecoderStep
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import AttentionPlan, ExpertsHandle, KVCache, KVCacheSpec, KVScales, LinearHandle, QKNorm
from octavo_kernels.moe_routing_ref import route
from octavo_kernels.numba_attention import RowPlan, attention_kernel, plan_rows, running_buffers, scaled_queries
from octavo_kernels.numba_cache import TransposedCache, allocate_cache, store_kernel
from octavo_kernels.numba_compile import INSTRUCTIONS
from octavo_kernels.numba_experts import LinearExperts
from octavo_kernels.numba_linear import PackedLinear, linear, pack
from octavo_kernels.numba_step import CompiledDecoder, can_compile
from octavo_kernels.numba_threads import ThreadPool
from octavo_kernels.quantized_weight import QuantizedWeight
from octavo_kernels.require import require_float32, require_own, require_shape
from octavo_kernels.torch_backend import TorchLinear
from octavo_kernels.torch_elementwise import add_rms_norm, rms_norm, rotary, silu_and_mul
from octavo_kernels.torch_experts import run_experts
from octavo_kernels.weight_memory import WeightMemory


class NumbaBackend:
    """`CompilingBackend` on a CPU, with threads of its own."""

    def __init__(self, num_threads: int) -> None:
        if num_threads < 1:
            raise KernelError(f"num_threads is {num_threads}, must be at least 1")
        self._pool = ThreadPool(num_threads)
        self._weights = WeightMemory()
        self._sampling_memory = numba_sampling.SamplingMemory(num_threads)

    @property
    def name(self) -> str:
        return "numba"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def description(self) -> str:
        return f"numba ({INSTRUCTIONS}, {self._pool.num_threads} threads)"

    @property
    def kv_dtype(self) -> torch.dtype:
        return torch.float16

    def allocate_kv_cache(self, spec: KVCacheSpec, scales: KVScales | None = None) -> TransposedCache:
        check_cache_spec(spec, scales)
        if spec.dtype != self.kv_dtype:
            raise KernelError(f"KV cache is {spec.dtype}, the numba backend keeps {self.kv_dtype} only")
        return allocate_cache(spec)

    def prepare_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> TorchLinear:
        check_linear_weight(weight, bias)
        return TorchLinear(weight=weight, bias=bias)

    def prepare_quantized_linear(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> PackedLinear:
        if bias is not None:
            require_shape("bias", bias, (weight.codes.shape[0],))
        return pack(weight, bias, self._weights)

    def compile_decoder(self, spec: DecoderSpec) -> DecoderStep | None:
        return CompiledDecoder(spec, self._pool) if can_compile(spec) else None

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        require_float32("x", x)
        require_shape("x", x, (None, handle.in_features))
        if isinstance(handle, TorchLinear):
            return _row_by_row(x, handle)
        return linear(x, require_own(handle, PackedLinear), self._pool)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return add_rms_norm(x, residual, weight, eps)

    def rotary(self, q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
        rotary(q, k, cos_sin, positions)

    def store_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, slot_mapping: torch.Tensor
    ) -> None:
        own = require_own(cache, TransposedCache)
        check_layer(layer, own.spec.num_layers)
        for name, tensor in (("k", k), ("v", v)):
            require_float32(name, tensor)
            require_shape(name, tensor, (slot_mapping.shape[0], own.spec.num_kv_heads, own.spec.head_dim))
        k, v = k.contiguous(), v.contiguous()
        cached = (own.keys, own.values, own.spec.block_size, own.spec.num_kv_heads)
        self._pool.run(store_kernel, 1, k.numpy(), v.numpy(), cached, layer, slot_mapping.numpy())

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
        check_window(window)
        check_attention_batch(batch)
        check_num_heads(num_heads, cache.spec.num_kv_heads)
        check_table_width(batch, cache.spec.block_size)
        return plan_rows(batch, num_heads, cache.spec.num_kv_heads, window)

    def attention(
        self,
        q: torch.Tensor,
        cache: KVCache,
        layer: int,
        plan: AttentionPlan,
        scale: float,
        variant: AttentionVariant = PLAIN,
    ) -> torch.Tensor:
        if not variant.is_plain:
            raise KernelError(f"the numba backend has no attention with {variant.description}; use the torch backend")
        own, rows = require_own(cache, TransposedCache), require_own(plan, RowPlan)
        check_layer(layer, own.spec.num_layers)
        check_scale(scale)
        require_float32("q", q)
        require_shape("q", q, (rows.num_tokens, rows.num_heads, own.spec.head_dim))
        out = torch.empty(q.shape, dtype=torch.float32)
        self._pool.run(
            attention_kernel,
            1,
            scaled_queries(q, scale),
            (rows.blocks, rows.block_tables, rows.window),
            (own.keys, own.values, own.spec.block_size, rows.num_heads),
            layer,
            running_buffers(self._pool.num_threads),
            out.flatten(1).numpy(),
        )
        return out

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        return silu_and_mul(x)

    def route(self, logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return route(logits, num_chosen, renormalizes=renormalizes)

    def prepare_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> LinearExperts:
        check_expert_weights(gate_up, down)
        return self.prepare_quantized_experts(
            [self.prepare_linear(weight) for weight in gate_up], [self.prepare_linear(weight) for weight in down]
        )

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> LinearExperts:
        return LinearExperts(gate_up=tuple(gate_up), down=tuple(down))

    def experts(
        self, x: torch.Tensor, handle: ExpertsHandle, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        own = require_own(handle, LinearExperts)
        check_experts(x, own.hidden_size, torch.float32, expert_ids, expert_weights)

        def mlp(expert: int, rows: torch.Tensor) -> torch.Tensor:
            return self.linear(silu_and_mul(self.linear(rows, own.gate_up[expert])), own.down[expert])

        return run_experts(x, expert_ids, expert_weights, mlp)

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        return numba_sampling.sample(logits, params, self._pool, self._sampling_memory)

    def copy_blocks(self, cache: KVCache, source: torch.Tensor, destination: torch.Tensor) -> None:
        own = require_own(cache, TransposedCache)
        check_copy_blocks(source, destination, self.device)
        for array in (own.keys, own.values):
            array[:, destination.numpy()] = np.take(array, source.numpy(), axis=1)


def _row_by_row(x: torch.Tensor, linear: TorchLinear) -> torch.Tensor:
    """x: [num_tokens, in] float32 -> new [num_tokens, out].

    A product of many rows rounds as their number decides, which would let a token's mates choose its experts. What is not
    quantised is small: routers.
    """
    out = torch.empty((x.shape[0], linear.out_features), dtype=torch.float32)
    for row, target in zip(x, out, strict=True):
        torch.mv(linear.weight, row, out=target)
    return out if linear.bias is None else out.add_(linear.bias)
