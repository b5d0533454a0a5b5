"""The Triton backend: NVIDIA and AMD GPUs. Binds the kernels to `KernelBackend`; large matrix products are the vendor's BLAS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from octavo_kernels.attention_checks import (
    check_attention_batch,
    check_cache_spec,
    check_layer,
    check_num_heads,
    check_table_width,
    check_window,
)
from octavo_kernels.attention_plan import PagedAttentionPlan, plan_paged_attention
from octavo_kernels.attention_prologue import attention_prologue
from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_kernels.checks import check_expert_weights, check_linear_weight
from octavo_kernels.copy_blocks import copy_blocks
from octavo_kernels.decode_attention import decode_attention, decode_attention_kernel
from octavo_kernels.errors import KernelError
from octavo_kernels.extend_attention import extend_attention, extend_tiling
from octavo_kernels.fp8_weight import FP8, Fp8Weight, check_fp8_device, quantize_fp8
from octavo_kernels.fused_moe import fused_moe
from octavo_kernels.handles import AttentionPlan, ExpertsHandle, KVCache, KVCacheSpec, KVScales, LinearHandle, QKNorm
from octavo_kernels.launch import is_amd, is_interpreted
from octavo_kernels.linear_tuning import TuningCache, cache_folder
from octavo_kernels.moe_routing import route
from octavo_kernels.packed_weight import pack
from octavo_kernels.quantized_weight import QuantizedWeight
from octavo_kernels.require import require_own, require_shape
from octavo_kernels.rms_norm import add_rms_norm, rms_norm
from octavo_kernels.rotary import rotary
from octavo_kernels.sample import sample
from octavo_kernels.silu_and_mul import silu_and_mul
from octavo_kernels.store_kv import store_kv
from octavo_kernels.triton_experts import TritonExperts, stacked
from octavo_kernels.triton_linear import LinearShapes, TritonFp8Linear, TritonLinear, TritonPackedLinear

_PROGRAMS_PER_PROCESSOR = 3
"""Decode programs to aim at for each multiprocessor: as many as run at once on an H100."""

_INVARIANT_TILES = 16
"""Context tiles of a decode item where its size may depend on nothing else: 1,024 tokens."""

_INTERPRETED_PROCESSORS = 4
"""What the interpreter pretends to have: few, for each program costs it milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonKVCache:
    """Head-major blocks: the tokens of a block that one head reads lie side by side."""

    spec: KVCacheSpec
    keys: torch.Tensor
    """[num_layers, num_blocks, num_kv_heads, block_size, head_dim]."""
    values: torch.Tensor
    """Like keys."""
    scales: KVScales | None
    """[num_layers, num_kv_heads] each, of codes of float8_e4m3fn; None where keys and values are numbers themselves."""

    def scales_of(self, layer: int) -> KVScales | None:
        if self.scales is None:
            return None
        return KVScales(keys=self.scales.keys[layer], values=self.scales.values[layer])


class TritonBackend:
    """`KernelBackend` on a GPU, or on a CPU under TRITON_INTERPRET=1 (exact, and far too slow for a model)."""

    def __init__(self, device: torch.device, *, is_batch_invariant: bool = False) -> None:
        if is_interpreted(decode_attention_kernel) != (device.type == "cpu"):
            raise KernelError(f"device is {device}: Triton needs a GPU, or a CPU and TRITON_INTERPRET=1")
        num_processors, cache = _INTERPRETED_PROCESSORS, None
        if device.type != "cpu":
            # kernels are launched on the current device, whatever device their tensors are on
            if device.index != torch.cuda.current_device():
                raise KernelError(
                    f"{device} is not the current device; call torch.cuda.set_device({device.index}) first"
                )
            properties = torch.cuda.get_device_properties(device)
            num_processors = properties.multi_processor_count
            versions = {"torch": torch.__version__, "triton": triton.__version__}
            cache = TuningCache(cache_folder(), properties.name, versions)
        self._device = device
        self._num_processors = num_processors
        self._is_batch_invariant = is_batch_invariant
        self._linear_shapes = LinearShapes(num_processors, cache)
        self._target_items = num_processors * _PROGRAMS_PER_PROCESSOR

    @property
    def name(self) -> str:
        return "triton"

    @property
    def device(self) -> torch.device:
        return self._device

    def allocate_kv_cache(self, spec: KVCacheSpec, scales: KVScales | None = None) -> TritonKVCache:
        check_cache_spec(spec, scales)
        dtype = torch.uint8 if spec.dtype == FP8 else spec.dtype
        shape = (spec.num_layers, spec.num_blocks, spec.num_kv_heads, spec.block_size, spec.head_dim)
        return TritonKVCache(
            spec=spec,
            keys=torch.zeros(shape, dtype=dtype, device=self._device),
            values=torch.zeros(shape, dtype=dtype, device=self._device),
            scales=self._scales(spec, scales) if spec.dtype == FP8 else None,
        )

    def _scales(self, spec: KVCacheSpec, scales: KVScales | None) -> KVScales:
        if scales is None:
            ones = torch.ones(spec.num_layers, spec.num_kv_heads, device=self._device)
            return KVScales(keys=ones, values=ones)
        return KVScales(
            keys=scales.keys.to(self._device).contiguous(), values=scales.values.to(self._device).contiguous()
        )

    def prepare_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> TritonLinear:
        check_linear_weight(weight, bias)
        return TritonLinear(
            weight=weight.to(self._device).contiguous(),
            bias=bias.to(self._device) if bias is not None else None,
            few=None if self._is_batch_invariant else self._linear_shapes.few(weight),
        )

    def prepare_quantized_linear(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> TritonPackedLinear:
        if bias is not None:
            require_shape("bias", bias, (weight.codes.shape[0],))
        return TritonPackedLinear(
            weight=pack(weight, self._device),
            bias=bias.to(self._device) if bias is not None else None,
            num_processors=self._num_processors,
        )

    def prepare_fp8_linear(self, weight: torch.Tensor | Fp8Weight, bias: torch.Tensor | None = None) -> TritonFp8Linear:
        if isinstance(weight, torch.Tensor):
            check_linear_weight(weight, bias)
            fp8 = quantize_fp8(weight.to(self._device))
        else:
            fp8 = Fp8Weight(codes=weight.codes.to(self._device), scales=weight.scales.to(self._device))
        if bias is not None:
            require_shape("bias", bias, (fp8.codes.shape[0],))
        return TritonFp8Linear(
            fp8=fp8,
            bias=bias.to(self._device) if bias is not None else None,
            few=self._linear_shapes.few(fp8.codes),
        )

    def check_fp8(self) -> None:
        if self._device.type == "cpu":
            return
        capability = None if is_amd() else torch.cuda.get_device_capability(self._device)
        check_fp8_device(torch.cuda.get_device_name(self._device), capability)

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        if isinstance(handle, TritonPackedLinear | TritonFp8Linear):
            return handle(x)
        return require_own(handle, TritonLinear)(x)

    def tune(self, handles: Sequence[LinearHandle]) -> None:
        self._linear_shapes.tune([handle for handle in handles if isinstance(handle, TritonLinear | TritonFp8Linear)])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return add_rms_norm(x, residual, weight, eps)

    def rotary(self, q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
        rotary(q, k, cos_sin, positions)

    def store_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, slot_mapping: torch.Tensor
    ) -> None:
        own = require_own(cache, TritonKVCache)
        check_layer(layer, own.spec.num_layers)
        store_kv(k, v, own.keys[layer], own.values[layer], slot_mapping, own.scales_of(layer))

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
        own = require_own(cache, TritonKVCache)
        check_layer(layer, own.spec.num_layers)
        return attention_prologue(
            qkv, norm, cos_sin, positions, own.keys[layer], own.values[layer], slot_mapping, own.scales_of(layer)
        )

    def plan_attention(
        self, batch: AttentionBatch, cache: KVCache, num_heads: int, window: int | None = None
    ) -> AttentionPlan:
        spec = require_own(cache, TritonKVCache).spec
        check_attention_batch(batch)
        check_num_heads(num_heads, spec.num_kv_heads)
        check_table_width(batch, spec.block_size)
        check_window(window)
        tiling = extend_tiling(num_heads // spec.num_kv_heads, spec.head_dim, spec.dtype)
        return plan_paged_attention(
            batch,
            num_heads=num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            query_tile=tiling.query_tile,
            target_items=self._target_items,
            tiles_per_item=_INVARIANT_TILES if self._is_batch_invariant else None,
            window=window,
        )

    def attention(
        self,
        q: torch.Tensor,
        cache: KVCache,
        layer: int,
        plan: AttentionPlan,
        scale: float,
        variant: AttentionVariant = PLAIN,
    ) -> torch.Tensor:
        own = require_own(cache, TritonKVCache)
        own_plan = require_own(plan, PagedAttentionPlan)
        check_layer(layer, own.spec.num_layers)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        caches, scales = (own.keys[layer], own.values[layer]), own.scales_of(layer)
        decode_attention(q, *caches, own_plan, scale, out, variant, scales)
        extend_attention(q, *caches, own_plan, scale, out, variant, scales)
        return out

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        return silu_and_mul(x)

    def route(self, logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return route(logits, num_chosen, renormalizes=renormalizes)

    def prepare_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> TritonExperts:
        check_expert_weights(gate_up, down)
        return TritonExperts(gate_up=gate_up.to(self._device).contiguous(), down=down.to(self._device).contiguous())

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> TritonExperts:
        handle = TritonExperts(gate_up=stacked(gate_up), down=stacked(down))
        check_expert_weights(handle.gate_up, handle.down)
        return handle

    def experts(
        self, x: torch.Tensor, handle: ExpertsHandle, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        own = require_own(handle, TritonExperts)
        return fused_moe(x, own.gate_up, own.down, expert_ids, expert_weights, has_one_tiling=self._is_batch_invariant)

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        return sample(logits, params)

    def copy_blocks(self, cache: KVCache, source: torch.Tensor, destination: torch.Tensor) -> None:
        own = require_own(cache, TritonKVCache)
        copy_blocks(own.keys, own.values, source, destination)
