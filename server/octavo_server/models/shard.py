"""Which part of each tensor one rank of several keeps. Pure, without torch.

| module | what is cut | how |
|---|---|---|
| q, gate, up (of each expert too), embedding, head | rows | in equal parts; what is missing of the last is filled up with zeros |
| k, v | rows | whole key/value heads; where there are fewer than ranks, several keep the same |
| o, down (of each expert too) | columns | as the rows of what feeds them; the bias is rank 0's alone, since the parts are added |
| all else | nothing | every rank has it whole |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.models.config import ModelConfig

# By the last word of a module's name.
ROWS = frozenset({"q_proj", "gate_proj", "up_proj", "w1", "w3", "q_b_proj", "kv_b_proj", "embed_tokens", "lm_head"})
KV_ROWS = frozenset({"k_proj", "v_proj"})
COLUMNS = frozenset({"o_proj", "down_proj", "w2"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Indices [start, stop) of one dimension, filled up with zeros to `size`."""

    start: int
    stop: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is kept of a tensor; None: that dimension whole."""

    rows: Span | None = None
    columns: Span | None = None

    @property
    def index(self) -> tuple[slice, ...]:
        """Of what is stored of it, in a tensor of its kind."""
        parts = (self.rows,) if self.columns is None else (self.rows, self.columns)
        return tuple(slice(None) if part is None else slice(part.start, part.stop) for part in parts)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a tensor's shape."""
        parts = (self.rows, self.columns)[: len(shape)]
        return tuple(size if part is None else part.size for size, part in zip(shape, parts, strict=True))


WHOLE = Cut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's share of a model whose heads can be dealt to `size`."""

    rank: int = 0
    size: int = 1

    def num_heads(self, config: ModelConfig) -> int:
        return config.num_heads // self.size

    def num_kv_heads(self, config: ModelConfig) -> int:
        return max(1, config.num_kv_heads // self.size)

    def part(self, count: int) -> int:
        """Of `count` rows or columns in equal parts, how many each rank has."""
        return -(-count // self.size)

    def cut(self, name: str, shape: tuple[int, ...], config: ModelConfig) -> Cut:
        """What this rank keeps of the tensor `name` of a checkpoint."""
        if self.size == 1:
            return WHOLE
        module, kind = name.split(".")[-2:]
        if module in ROWS:
            return Cut(rows=self._span(shape[0]))
        if module in KV_ROWS:
            num_heads = self.num_kv_heads(config)
            first = self.rank * config.num_kv_heads // self.size * config.head_dim
            size = num_heads * config.head_dim
            return Cut(rows=Span(start=first, stop=first + size, size=size))
        if module in COLUMNS and kind == "weight":
            return Cut(columns=self._span(shape[1]))
        return WHOLE

    def has_bias(self, module: str) -> bool:
        """Whether this rank adds the bias of a linear layer called so."""
        return self.rank == 0 or module not in COLUMNS

    def _span(self, count: int) -> Span:
        size = self.part(count)
        start = min(count, self.rank * size)
        return Span(start=start, stop=min(count, start + size), size=size)


ALONE = Shard()
