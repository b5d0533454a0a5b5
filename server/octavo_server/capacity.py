"""How much fits: pure arithmetic from bytes to blocks, tokens and sequences.

It reads nothing from the machine and allocates nothing. Block 0 is the null block everywhere: a cache of `num_blocks`
blocks holds `num_blocks - 1` blocks of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from octavo_server.errors import ConfigError, StartupError
from octavo_server.graph_sizes import graph_sizes

LOGIT_COPIES = 3
"""Float32 copies of the logits of all rows at once: the product, what log-probabilities are told of, what is drawn from."""
GRAPH_BYTES = 8 * 2**20
"""Of one recorded step, some hundreds of launches, in the driver: an estimate, which differs by GPU and driver."""
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
    lanes: int = 1
    """Whole vectors that a backend keeps: K is filled up to so many tokens a block, V to so many elements a head."""
    has_values: bool = True
    """False where V is computed from what stands for K, as from the latent of multi-head latent attention."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: keys and values of all layers."""
        keys = _filled_up(self.block_size, self.lanes) * self.head_dim
        values = self.block_size * _filled_up(self.head_dim, self.lanes) if self.has_values else 0
        return self.num_layers * self.num_kv_heads * (keys + values) * self.bytes_per_element

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, its share of what fills a block up included."""
        return -(-self.block_bytes // self.block_size)

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
    is_share_of_gpu: bool = False,
    context_block_bytes: int = 0,
) -> KVPlan:
    """Blocks for a budget, and the context length: what was asked, or by default what the model and the blocks allow.

    `is_share_of_gpu`: the budget is what --gpu-memory-utilization leaves. `context_block_bytes`: what else each block of the
    longest sequence takes of it.

    Raises:
        StartupError: KVCacheTooSmall, where what was asked for does not fit.
    """
    num_blocks = num_blocks_override
    if num_blocks is None:
        context = context_length if asked_max_model_len is None else asked_max_model_len
        beside = -(-context // shape.block_size) * context_block_bytes
        num_blocks = (budget_bytes - beside) // shape.block_bytes
        if asked_max_model_len is None:
            # A context that shrinks has each block of the cache but the null block.
            each = shape.block_bytes + context_block_bytes
            num_blocks = max(num_blocks, (budget_bytes + context_block_bytes) // each)
    capacity = max(0, num_blocks - 1) * shape.block_size
    asked = 1 if asked_max_model_len is None else asked_max_model_len
    if asked > capacity:
        need = shape.bytes_for(1, asked)
        more = f"raise --kv-cache-memory-bytes to {need:,} bytes"
        if num_blocks_override is not None:
            more = f"raise --num-gpu-blocks-override to {need // shape.block_bytes:,} blocks"
        elif is_share_of_gpu:
            more = "raise --gpu-memory-utilization or take a larger GPU"
        raise StartupError("KVCacheTooSmall", _too_small(shape, asked, num_blocks, more))
    return KVPlan(
        shape=shape,
        num_blocks=num_blocks,
        max_model_len=min(context_length, capacity) if asked_max_model_len is None else asked_max_model_len,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWidths:
    """Elements of one token at the points of a step, on one device."""

    hidden: int
    qkv: int
    """Query, key and value of all heads."""
    attention: int
    """What attention hands on."""
    kv: int
    """Key and value alone."""
    inner: int
    """The MLP's inner width, once; of experts, that of all which one token visits."""
    vocab: int
    experts_per_token: int = 0
    """0: no layer has experts."""


def activation_bytes(
    widths: StepWidths, *, backend: str, num_tokens: int, num_rows: int, context: int, itemsize: int
) -> int:
    """Peak of the largest step beside weights and cache.

    Layers run one after another and what they leave is freed, so one layer counts, at the point where most is alive:
    in the MLP, or in attention. Logits come after the layers, when those are gone.

    Args:
        widths: of one token.
        backend: "torch", "numba" or "triton".
        num_tokens: computed in the step.
        num_rows: of which a token is sampled.
        context: tokens of the longest sequence.
        itemsize: bytes of an element.
    """
    logits = num_rows * widths.vocab * 4 * LOGIT_COPIES
    if backend == "numba":
        token_bytes = _single_token_bytes(widths) if widths.experts_per_token else _compiled_token_bytes(widths)
        return max(num_tokens * token_bytes, logits)
    if backend == "triton":
        in_attention = num_tokens * (2 * widths.hidden + widths.qkv + 2 * widths.attention)
        in_mlp = num_tokens * (2 * widths.hidden + 3 * widths.inner)
        # Each expert that a token visits leaves its part of the sum in float32.
        in_experts = num_tokens * (3 * widths.hidden * itemsize + 4 * widths.experts_per_token * widths.hidden)
        # Torch's allocator on a GPU keeps what the layers left, in pieces that logits need not fit into.
        return max(max(in_attention, in_mlp) * itemsize, in_experts + num_tokens * widths.inner * itemsize) + logits
    # Torch's attention has its output in its own order and in ours, and one sequence's keys and values side by side; its
    # operations on 16 bits make four copies in float32, which are eight of these elements.
    upcast = 8 if itemsize < 4 else 0
    in_attention = num_tokens * (2 * widths.hidden + widths.qkv + widths.attention * (upcast or 4))
    # Experts gather their rows and add them up in float32; the most is where all tokens choose the same ones.
    gathered = 4 * widths.hidden if widths.experts_per_token else 0
    in_mlp = num_tokens * (2 * widths.hidden + gathered + widths.inner * (2 + (upcast or 1)))
    # A chunk of a long prompt brings a mask of all that it sees, made from a second one.
    mask = num_tokens * context
    return max(
        max(in_attention + context * widths.kv, in_mlp) * itemsize + mask * itemsize, 2 * mask * itemsize, logits
    )


def graph_bytes(widths: StepWidths, *, max_num_seqs: int, num_blocks: int, itemsize: int) -> int:
    """What recorded decode steps keep on a GPU beside all else, so that nothing of theirs ever moves.

    Activations of the largest, which all share, logits and tokens, the table of blocks with a step's copy of it, and what
    the driver keeps of each.

    Args:
        widths: of one token.
        max_num_seqs: of the largest step.
        num_blocks: of the longest sequence.
        itemsize: bytes of an element.
    """
    activations = activation_bytes(
        widths, backend="triton", num_tokens=max_num_seqs, num_rows=max_num_seqs, context=0, itemsize=itemsize
    )
    tables = 2 * (max_num_seqs + 1) * num_blocks * 4
    return activations + max_num_seqs * widths.vocab * 4 + tables + len(graph_sizes(max_num_seqs)) * GRAPH_BYTES


def _compiled_token_bytes(widths: StepWidths) -> int:
    """Scratch of the compiled step: float32, and int8 codes with their scales, a quarter of the codes' bytes."""
    codes = (2 * widths.hidden + widths.attention + widths.inner) * 5 // 4
    return 4 * (2 * widths.hidden + widths.qkv + widths.attention) + codes


def _single_token_bytes(widths: StepWidths) -> int:
    """Of the same kernels operation by operation, as experts are computed: each result stands beside what it is made of."""
    in_attention = 2 * widths.hidden + widths.qkv + 3 * widths.attention
    in_mlp = 6 * widths.hidden + 3 * widths.inner
    return 4 * max(in_attention, in_mlp) + max(widths.hidden, widths.inner) * 5 // 4


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


def _too_small(shape: KVShape, asked: int, num_blocks: int, more: str) -> str:
    capacity = max(0, num_blocks - 1) * shape.block_size
    have = max(0, num_blocks) * shape.block_bytes
    shorter = f"lower --max-model-len to {capacity:,} or " if capacity else ""
    return (
        f"a context of {asked:,} tokens needs {_mib(shape.bytes_for(1, asked))} of KV cache, there are {_mib(have)}, room "
        f"for {capacity:,} tokens; {shorter}{more}"
    )


def _filled_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
