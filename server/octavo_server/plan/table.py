"""A memory plan for people, as a start logs and `octavo plan` prints it, and for programs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo_server.plan.memory import MemoryPlan

TYPICAL_TOKENS = (512, 2048, 8192, 32_768, 131_072)
"""Prompt and output together: a question, a chat, a long document, a book."""
_SPEED_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One use of memory."""

    name: str
    num_bytes: int
    flags: tuple[str, ...]
    """That change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Sequences of one length, as many as fit and may run."""

    tokens_each: int
    room: float
    """That fit into the KV cache."""
    num_seqs: int
    """That run at once, --max-num-seqs at most."""
    tokens_per_s_limit: float | None
    """Of all together, by the memory's bandwidth."""


def rows(plan: MemoryPlan) -> list[Row]:
    """All of the device's memory, what is left of it last."""
    is_gpu = plan.device.kind == "gpu"
    weights = ("--dtype", "--quantization", *(("--tensor-parallel-size",) if is_gpu else ()))
    steps = ("--max-num-batched-tokens", "--max-num-seqs", *(() if is_gpu else ("--max-model-len",)))
    cache = ("--gpu-memory-utilization",) if is_gpu else ("--max-num-seqs", "--max-model-len")
    found = [
        Row(name="weights", num_bytes=plan.weight_bytes, flags=weights),
        Row(name="rotary tables", num_bytes=plan.rotary_bytes, flags=()),
        Row(name="activations, at most", num_bytes=plan.activation_bytes, flags=steps),
    ]
    if plan.graph_bytes:
        flags = ("--enforce-eager", "--max-num-seqs", "--max-model-len")
        found.append(Row(name="CUDA graphs, at most", num_bytes=plan.graph_bytes, flags=flags))
    if is_gpu:
        found.append(Row(name="driver and libraries", num_bytes=plan.overhead_bytes, flags=()))
    found.append(Row(name="KV cache", num_bytes=plan.kv_bytes, flags=("--kv-cache-memory-bytes", *cache)))
    if plan.device.memory_bytes:
        left = ("--gpu-memory-utilization",) if is_gpu else ("--kv-cache-memory-bytes",)
        found.append(Row(name="left", num_bytes=plan.free_bytes, flags=left))
    return found


def loads(plan: MemoryPlan) -> list[Load]:
    """One sequence, and as many as fit of typical lengths and of the full context."""
    if plan.kv is None:
        return []
    context = plan.kv.max_model_len
    lengths = [tokens for tokens in TYPICAL_TOKENS if tokens < context] + [context]
    single = min(_SPEED_TOKENS, context)
    alone = Load(
        tokens_each=single,
        room=plan.concurrency(single),
        num_seqs=1,
        tokens_per_s_limit=plan.decode_limit(1, single),
    )
    return [alone, *(_load(plan, tokens) for tokens in lengths)]


def table(plan: MemoryPlan) -> str:
    """Lines of text, without a last newline."""
    head = (
        f"{plan.model.architecture}, {_count(plan.model.num_parameters)} parameters, {_types(plan)} on {_where(plan)}"
    )
    all_rows = rows(plan)
    width = max(len(row.name) for row in all_rows)
    title = "memory of each" if plan.layout.ways > 1 else "memory"
    lines = [head, f"{title:<{width}}  {'':>12} {'':>6}  flags that change it"]
    for row in all_rows:
        share = f"{row.num_bytes / plan.device.memory_bytes:6.1%}" if plan.device.memory_bytes else " " * 6
        lines.append(f"{row.name:<{width}}  {size(row.num_bytes):>12} {share}  {' '.join(row.flags)}".rstrip())
    return "\n".join([*lines, *_cache_lines(plan), *_load_lines(plan)])


def as_json(plan: MemoryPlan) -> dict[str, Any]:
    """The same as numbers: bytes, tokens, tokens a second."""
    kv = plan.kv
    return {
        "architecture": plan.model.architecture,
        "parameters": plan.model.num_parameters,
        "dtype": plan.layout.dtype,
        "quantization": plan.layout.quantization,
        "kv_cache_dtype": plan.layout.kv_dtype,
        "device": {
            "name": plan.device.name,
            "kind": plan.device.kind,
            "memory_bytes": plan.device.memory_bytes,
            "bytes_per_s": plan.device.bytes_per_s,
        },
        "tensor_parallel_size": plan.layout.ways,
        "memory": [{"name": row.name, "bytes": row.num_bytes, "flags": list(row.flags)} for row in rows(plan)],
        "weight_bytes": plan.weight_bytes,
        "rotary_bytes": plan.rotary_bytes,
        "activation_bytes": plan.activation_bytes,
        "graph_bytes": plan.graph_bytes,
        "overhead_bytes": plan.overhead_bytes,
        "kv_cache_bytes": plan.kv_bytes,
        "left_bytes": plan.free_bytes,
        "kv_bytes_per_token": plan.kv_shape.token_bytes,
        "block_size": plan.layout.block_size,
        "num_blocks": 0 if kv is None else kv.num_blocks,
        "capacity_tokens": 0 if kv is None else kv.capacity_tokens,
        "max_model_len": None if kv is None else kv.max_model_len,
        "largest_context": plan.largest_context,
        "model_context": plan.model.max_positions,
        "max_num_seqs": plan.limits.max_num_seqs,
        "max_num_batched_tokens": plan.limits.max_num_batched_tokens,
        "loads": [
            {
                "tokens_each": load.tokens_each,
                "room": round(load.room, 2),
                "sequences": load.num_seqs,
                "tokens_per_s_limit": None if load.tokens_per_s_limit is None else round(load.tokens_per_s_limit, 1),
            }
            for load in loads(plan)
        ],
    }


def size(num_bytes: int) -> str:
    """Bytes for a person."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if abs(num_bytes) >= scale:
            return f"{num_bytes / scale:,.2f} {unit}"
    return f"{num_bytes / 1024:,.1f} KiB"


def _load(plan: MemoryPlan, tokens: int) -> Load:
    room = plan.concurrency(tokens)
    num_seqs = min(plan.limits.max_num_seqs, int(room))
    limit = plan.decode_limit(num_seqs, tokens) if num_seqs else None
    return Load(tokens_each=tokens, room=room, num_seqs=num_seqs, tokens_per_s_limit=limit)


def _cache_lines(plan: MemoryPlan) -> list[str]:
    kv, model = plan.kv, plan.model
    per_token = f"KV cache: {size(plan.kv_shape.token_bytes)} a token in {plan.layout.kv_dtype} (--kv-cache-dtype)"
    if kv is None:
        return [per_token]
    whole = (
        "all that the model has"
        if plan.largest_context == model.max_positions
        else f"of the model's {model.max_positions:,}"
    )
    return [
        f"{per_token}, {kv.num_blocks:,} blocks of {plan.layout.block_size} tokens (--block-size, "
        f"--num-gpu-blocks-override), room for {kv.capacity_tokens:,} tokens",
        f"context: {kv.max_model_len:,} tokens (--max-model-len); the largest that fits is {plan.largest_context:,}, {whole}",
    ]


def _load_lines(plan: MemoryPlan) -> list[str]:
    all_loads = loads(plan)
    if not all_loads:
        return []
    has_limit = any(load.tokens_per_s_limit is not None for load in all_loads)
    title = f"tokens each   sequences at once (--max-num-seqs {plan.limits.max_num_seqs:,})"
    lines = [title + ("   decode tok/s, limit*" if has_limit else "")]
    for load in all_loads:
        more = f" (room for {int(load.room):,})" if int(load.room) > load.num_seqs else ""
        limit = f"{load.tokens_per_s_limit:,.0f}" if load.tokens_per_s_limit is not None else ""
        lines.append(
            f"{load.tokens_each:>11,}   {f'{load.num_seqs:,}{more}':<{len(title) - 14}}   {limit:>20}".rstrip()
        )
    if has_limit:
        lines.append("* what the memory's bandwidth allows if nothing else took time: a limit, no forecast")
    return lines


def _where(plan: MemoryPlan) -> str:
    device = plan.device
    speed = f", {device.bytes_per_s / 1e12:g} TB/s" if device.bytes_per_s else ""
    known = f" ({size(device.memory_bytes)}{speed})" if device.memory_bytes else ""
    return f"{plan.layout.ways} x {device.name}{known}" if plan.layout.ways > 1 else f"{device.name}{known}"


def _types(plan: MemoryPlan) -> str:
    quantization = plan.layout.quantization
    return plan.layout.dtype if quantization == "none" else f"{quantization} in {plan.layout.dtype}"


def _count(number: int) -> str:
    return f"{number / 1e9:,.2f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"
