"""A model as sizes alone: its parameters, what a token leaves in the cache, how wide a step is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError
from octavo_server.models.expected_shapes import EMBEDDING, expected_shapes
from octavo_server.models.shard import COLUMNS, KV_ROWS, ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.models.config import ModelConfig

# Matrices that are never kept in few bits.
_EXACT = frozenset({"embed_tokens", "gate", "router", "vision"})

_STORED_FP8 = "the checkpoint is stored as float8; what is planned is its weights in --dtype or --quantization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A tensor, or several of one shape."""

    name: str
    """As a checkpoint of Hugging Face has it, without the number of layer or expert where it stands for many."""
    shape: tuple[int, ...]
    copies: int = 1
    stored_bits: int | None = None
    """Of a matrix that is stored in blocks of few bits, which are kept as they are."""

    @property
    def module(self) -> str:
        return self.name.split(".")[-2]

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    @property
    def is_head(self) -> bool:
        return self.module == "lm_head"

    @property
    def is_embedding(self) -> bool:
        return self.name.endswith(EMBEDDING.removeprefix("model."))

    @property
    def is_expert(self) -> bool:
        return ".experts." in self.name

    @property
    def is_linear(self) -> bool:
        """Whether few bits are for it."""
        return self.is_matrix and self.module not in _EXACT

    @property
    def num_elements(self) -> int:
        return prod(self.shape) * self.copies

    def share(self, model: ModelShape, ways: int) -> tuple[int, ...]:
        """The shape on one of `ways` devices."""
        first, *rest = self.shape
        is_matrix_or_bias = self.is_matrix or self.name.endswith(".bias")
        if self.module in ROWS and is_matrix_or_bias:
            return (-(-first // ways), *rest)
        if self.module in KV_ROWS and is_matrix_or_bias:
            return (first // model.num_kv_heads * model.kv_heads_of(ways), *rest)
        if self.module in COLUMNS and self.is_matrix:
            return (first, -(-rest[0] // ways))
        return self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """All that a plan needs to know of a model."""

    architecture: str
    is_served: bool
    """False: an architecture that this version sizes and does not serve yet."""
    parameters: tuple[Parameter, ...]
    is_tied: bool
    """The output head is the embedding."""
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of what the cache keeps."""
    has_values: bool = True
    """False: the cache keeps one vector for K and V together, the same on every device."""
    qkv: int
    """Elements of a token's query, key and value."""
    attention: int
    """Elements that attention hands on."""
    inner: int
    """The MLP's width; of experts, of all that one token visits together."""
    num_experts: int = 0
    experts_per_token: int = 0
    vocab_size: int
    windows: tuple[int | None, ...]
    """A layer each, see `ModelConfig`."""
    max_positions: int
    rotary: int
    """Elements of the rotary tables for one position."""
    dtype: str
    """That the checkpoint is stored in."""
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.windows)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.num_elements for parameter in self.parameters)

    def kv_heads_of(self, ways: int) -> int:
        """Key/value heads on one of `ways` devices."""
        return self.num_kv_heads if not self.has_values else max(1, self.num_kv_heads // ways)

    def check_ways(self, ways: int) -> None:
        """Raises ConfigError where heads cannot be dealt to `ways` devices, naming the numbers that can."""
        if not self.can_split(ways):
            good = [str(count) for count in range(1, self.num_heads + 1) if self.can_split(count)]
            raise ConfigError(
                f"--tensor-parallel-size {ways}: {self.num_heads} heads with {self.num_kv_heads} key/value heads cannot "
                f"be dealt to {ways} devices; possible are {', '.join(good)}"
            )

    def can_split(self, ways: int) -> bool:
        kv = self.num_kv_heads if self.has_values else 1
        return self.num_heads % ways == 0 and (kv % ways == 0 or ways % kv == 0)


def served_shape(config: ModelConfig, stored_bits: Mapping[str, int] | None = None) -> ModelShape:
    """Of a model that the engine loads; `stored_bits` names the tensors of a file that are in blocks of few bits."""
    bits = stored_bits or {}
    parameters = tuple(
        Parameter(name=name, shape=shape, stored_bits=bits.get(name)) for name, shape in expected_shapes(config).items()
    )
    return ModelShape(
        architecture=config.architecture,
        is_served=True,
        parameters=parameters,
        is_tied=config.tie_word_embeddings,
        hidden=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        qkv=(config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
        attention=config.num_heads * config.head_dim,
        inner=_inner(config),
        num_experts=config.experts.num_experts if config.experts else 0,
        experts_per_token=config.experts.num_chosen if config.experts else 0,
        vocab_size=config.vocab_size,
        windows=config.windows,
        max_positions=config.max_positions,
        rotary=config.head_dim,
        dtype=config.dtype,
        notes=() if config.fp8 is None else (_STORED_FP8,),
    )


def _inner(config: ModelConfig) -> int:
    """The widest layer's; of experts, that of all which a token visits."""
    experts = config.experts
    if experts is None:
        return config.intermediate_size
    visited = experts.num_chosen * experts.inner_size
    return visited if len(experts.layers) == config.num_layers else max(visited, config.intermediate_size)
