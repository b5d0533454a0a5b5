"""The memory table: what a start needs, what the KV cache gets, how much of it fits. Pure.

One function, `plan_memory`, makes it for `octavo plan` from a configuration alone and for an engine that starts, which
passes what it measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.capacity import KVPlan, KVShape, activation_bytes, default_cpu_kv_bytes, graph_bytes, plan_kv_cache
from octavo_server.errors import StartupError
from octavo_server.plan.layout import kv_shape, rotary_bytes, step_widths, weight_sizes

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig, ResolvedLimits
    from octavo_server.plan.gpus import Device
    from octavo_server.plan.layout import Layout
    from octavo_server.plan.model_shape import ModelShape

GPU_OVERHEAD_BYTES = 600 * 2**20
"""What the driver, its context and the libraries' workspaces take of a GPU before anything of ours. An estimate: it
differs by GPU and driver, and an engine that starts measures it."""


QUANTIZED_WORKSPACE_BYTES = 64 * 2**20
"""Of a GPU: what of a matrix of few bits is written out at a time for the product of many rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an engine knows once its weights are loaded."""

    weight_bytes: int
    overhead_bytes: int = 0
    """Of a GPU's memory in use that is neither weights nor free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of one device; of several that share a model, each has the same."""

    model: ModelShape
    layout: Layout
    device: Device
    limits: ResolvedLimits
    utilization: float
    """Share of a GPU that may be taken; 1 on a CPU."""
    weight_bytes: int
    rotary_bytes: int
    activation_bytes: int
    overhead_bytes: int
    kv: KVPlan | None
    """None: it does not fit."""
    graph_bytes: int = 0
    """Of recorded decode steps; 0 where every step is launched operation by operation."""
    problem: str = ""
    """Why it does not fit, with both numbers and the remedy."""

    @property
    def needed_bytes(self) -> int:
        """Beside the KV cache."""
        return self.weight_bytes + self.rotary_bytes + self.activation_bytes + self.graph_bytes + self.overhead_bytes

    @property
    def kv_bytes(self) -> int:
        return 0 if self.kv is None else self.kv.total_bytes

    @property
    def free_bytes(self) -> int:
        """Of the device's memory; below 0 where it does not fit."""
        return self.device.memory_bytes - self.needed_bytes - self.kv_bytes

    @property
    def fits(self) -> bool:
        return not self.problem

    @property
    def kv_shape(self) -> KVShape:
        return kv_shape(self.model, self.layout)

    @property
    def largest_context(self) -> int:
        """Tokens of one sequence, as far as the model goes."""
        return 0 if self.kv is None else min(self.model.max_positions, self.kv.capacity_tokens)

    def concurrency(self, tokens_each: int) -> float:
        """Sequences of that many tokens that fit at once, --max-num-seqs apart."""
        if self.kv is None:
            return 0.0
        return (self.kv.num_blocks - 1) / -(-tokens_each // self.layout.block_size)

    def decode_limit(self, num_seqs: int, tokens_each: int) -> float | None:
        """Tokens a second that the memory's bandwidth allows all sequences together: every step reads weights and cache.

        A limit and no forecast: nothing else takes time in it. None where the bandwidth is not known.
        """
        if self.device.bytes_per_s is None:
            return None
        sizes = weight_sizes(self.model, self.layout)
        visited = 1.0
        if self.model.num_experts:
            visited -= (1 - self.model.experts_per_token / self.model.num_experts) ** num_seqs
        per_layer = self.kv_shape.token_bytes / self.model.num_layers
        cached = sum(min(tokens_each, window or tokens_each) * per_layer for window in self.model.windows)
        step_bytes = sizes.step_bytes + visited * sizes.expert_bytes + num_seqs * cached
        return num_seqs * self.device.bytes_per_s / step_bytes


def plan_memory(
    model: ModelShape,
    layout: Layout,
    device: Device,
    config: EngineConfig,
    measured: Measured | None = None,
) -> MemoryPlan:
    """What a start of `config` on `device` takes.

    Args:
        model: its sizes.
        layout: types and backend, see `choose_layout`.
        device: of several, one.
        config: limits and flags.
        measured: of an engine whose weights are loaded; None: all is computed.

    Raises:
        ConfigError: --max-model-len is beyond the model's context.
    """
    limits = config.resolve(
        context_length=model.max_positions,
        device="cpu" if device.kind == "cpu" else "cuda",
        device_memory_bytes=device.memory_bytes,
    )
    known = measured or _computed(model, layout, device)
    records = records_graphs(config, kind=device.kind, ways=layout.ways)

    def graphs(context: int) -> int:
        return _graphs(model, layout, limits, context) if records else 0

    held_bytes = known.weight_bytes + known.overhead_bytes + rotary_bytes(model)
    if device.kind == "gpu":
        # Nothing else on a GPU depends on the context, which follows from the cache.
        held_bytes += _activations(model, layout, limits, context=0) + graphs(0)
    table_bytes = graphs(layout.block_size) - graphs(0)
    kv, problem = _kv_plan(
        kv_shape(model, layout), device, limits, config, held_bytes=held_bytes, context_block_bytes=table_bytes
    )
    return MemoryPlan(
        model=model,
        layout=layout,
        device=device,
        limits=limits,
        utilization=config.gpu_memory_utilization if device.kind == "gpu" else 1.0,
        weight_bytes=known.weight_bytes,
        rotary_bytes=rotary_bytes(model),
        activation_bytes=_activations(model, layout, limits, context=0 if kv is None else kv.max_model_len),
        overhead_bytes=known.overhead_bytes,
        kv=kv,
        graph_bytes=graphs(limits.max_model_len if kv is None else kv.max_model_len),
        problem=problem,
    )


def records_graphs(config: EngineConfig, *, kind: str, ways: int) -> bool:
    """Whether decode steps are recorded: on one GPU, unless --enforce-eager is given."""
    return kind == "gpu" and ways == 1 and not config.enforce_eager


def _graphs(model: ModelShape, layout: Layout, limits: ResolvedLimits, context: int) -> int:
    return graph_bytes(
        step_widths(model, layout),
        max_num_seqs=limits.max_num_seqs,
        num_blocks=-(-context // layout.block_size),
        itemsize=layout.item_bytes,
    )


def _computed(model: ModelShape, layout: Layout, device: Device) -> Measured:
    overhead = GPU_OVERHEAD_BYTES if device.kind == "gpu" else 0
    return Measured(weight_bytes=weight_sizes(model, layout).total_bytes, overhead_bytes=overhead)


def _kv_plan(
    shape: KVShape,
    device: Device,
    limits: ResolvedLimits,
    config: EngineConfig,
    *,
    held_bytes: int,
    context_block_bytes: int,
) -> tuple[KVPlan | None, str]:
    """The cache beside `held_bytes` and, on a GPU, what each block of the context takes; or why there is none."""
    budget = config.kv_cache_memory_bytes
    is_share_of_gpu = budget is None and device.kind == "gpu"
    if budget is None and device.kind == "gpu":
        budget = max(0, int(config.gpu_memory_utilization * device.memory_bytes) - held_bytes)
    elif budget is None:
        budget = default_cpu_kv_bytes(
            shape=shape,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=limits.max_model_len,
            memory_bytes=device.memory_bytes,
            weight_bytes=held_bytes,
        )
    try:
        plan = plan_kv_cache(
            shape=shape,
            budget_bytes=budget,
            context_length=limits.max_model_len,
            asked_max_model_len=config.max_model_len,
            num_blocks_override=config.num_gpu_blocks_override,
            is_share_of_gpu=is_share_of_gpu,
            context_block_bytes=context_block_bytes if is_share_of_gpu else 0,
        )
    except StartupError as error:
        return None, str(error)
    return plan, ""


def _activations(model: ModelShape, layout: Layout, limits: ResolvedLimits, *, context: int) -> int:
    workspace = QUANTIZED_WORKSPACE_BYTES if layout.backend == "triton" and layout.bits is not None else 0
    return workspace + activation_bytes(
        step_widths(model, layout),
        backend=layout.backend,
        num_tokens=limits.max_num_batched_tokens,
        num_rows=limits.max_num_seqs,
        context=context,
        itemsize=layout.item_bytes,
    )
