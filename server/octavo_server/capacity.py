"""How much fits: pure arithmetic from bytes to blocks, tokens and sequences.

It reads nothing from the machine and allocates nothing. Block 0 is the null block everywhere: a cache of `num_blocks`
blocks holds `num_blocks - 1` blocks of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from octavo_server.errors import ConfigError, StartupError

CPU_KV_LIMIT_BYTES = 4 * 2**30
CPU_KV_SHARE = 0.4
"""Of the memory beside the weights; the rest is for activations, the tokenizer, the server and its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """What one token leaves in the cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    bytes_per_element: int
    block_size: int
    """Tokens in a block."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_element * self.block_size

    def bytes_for(self, num_sequences: int, tokens_each: int) -> int:
        """Bytes of a cache that holds so many sequences of that many tokens at once."""
        return (num_sequences * -(-tokens_each // self.block_size) + 1) * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPlan:
    """The cache that will be allocated, and the context that it allows."""

    shape: KVShape
    num_blocks: int
    """The null block included."""
    max_model_len: int
    """Tokens of prompt and output together."""

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.shape.block_bytes

    @property
    def capacity_tokens(self) -> int:
        """Tokens that all sequences together can keep."""
        return (self.num_blocks - 1) * self.shape.block_size

    @property
    def max_concurrency(self) -> float:
        """Sequences of the full context that fit at once."""
        return (self.num_blocks - 1) / -(-self.max_model_len // self.shape.block_size)


def plan_kv_cache(
    *,
    shape: KVShape,
    budget_bytes: int,
    context_length: int,
    asked_max_model_len: int | None = None,
    num_blocks_override: int | None = None,
) -> KVPlan:
    """Blocks for a budget, and the context length: what was asked, or by default what the model and the blocks allow.

    Raises:
        StartupError: KVCacheTooSmall, where what was asked for does not fit.
    """
    num_blocks = budget_bytes // shape.block_bytes if num_blocks_override is None else num_blocks_override
    capacity = max(0, num_blocks - 1) * shape.block_size
    asked = 1 if asked_max_model_len is None else asked_max_model_len
    if asked > capacity:
        raise StartupError("KVCacheTooSmall", _too_small(shape, asked, capacity, num_blocks, num_blocks_override))
    return KVPlan(
        shape=shape,
        num_blocks=num_blocks,
        max_model_len=min(context_length, capacity) if asked_max_model_len is None else asked_max_model_len,
    )


def default_cpu_kv_bytes(
    *, shape: KVShape, max_num_seqs: int, max_model_len: int, memory_bytes: int, weight_bytes: int
) -> int:
    """Bytes for the cache on a CPU where nobody chose: the least of need, 4 GiB and 40 % of what the weights leave."""
    need = shape.bytes_for(max_num_seqs, max_model_len)
    return min(need, CPU_KV_LIMIT_BYTES, int(CPU_KV_SHARE * max(0, memory_bytes - weight_bytes)))


def usable_memory_bytes(*, meminfo: str, cgroup_limits: Iterable[str]) -> int:
    """Memory that this process may count on: the cgroup's limit, else what the machine has available.

    Args:
        meminfo: the text of /proc/meminfo.
        cgroup_limits: the texts of cgroup v2's memory.max and v1's memory.limit_in_bytes, those that exist. A limit at
            or above the machine's memory is none (v1 writes 2^63 less a page).

    Raises:
        ConfigError: neither is known.
    """
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", meminfo, re.MULTILINE)}
    limits = [int(text) for text in cgroup_limits if text.strip().isdigit()]
    real = [limit for limit in limits if limit < sizes.get("MemTotal", 2**60)]
    if real:
        return min(real)
    if "MemAvailable" not in sizes:
        raise ConfigError("the machine does not say how much memory it has; set --kv-cache-memory-bytes")
    return sizes["MemAvailable"]


def _too_small(shape: KVShape, asked: int, capacity: int, num_blocks: int, override: int | None) -> str:
    flag, unit = (
        ("--num-gpu-blocks-override", "blocks") if override is not None else ("--kv-cache-memory-bytes", "bytes")
    )
    need = shape.bytes_for(1, asked)
    have = max(0, num_blocks) * shape.block_bytes
    least = need if override is None else need // shape.block_bytes
    shorter = f"lower --max-model-len to {capacity:,} or " if capacity else ""
    return (
        f"a context of {asked:,} tokens needs {_mib(need)} of KV cache, there are {_mib(have)}, room for {capacity:,} "
        f"tokens; {shorter}raise {flag} to {least:,} {unit}"
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
