"""How bytes lie: which type weights, activations and cache have, and what they then take. Pure arithmetic.

The one place that says in advance what `models/loader.py` and the backends do; tests hold it to what they allocate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from octavo_server.capacity import KVShape, StepWidths
from octavo_server.models.loaded_dtype import FP8, kv_dtype_name, resolve_dtype_name

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.plan.model_shape import ModelShape, Parameter

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, FP8: 1}
QUANTIZATION_BITS: dict[str, int | None] = {"none": None, "int8": 8, "int4": 4, "fp8": None}
FP8_MULTIPLE = 16
"""Of outputs and of inputs of a float8 matrix; others stay exact."""
GROUP = 32
"""Inputs that share a scale and, but for 8 bits alone, a minimum of 2 bytes each; a matrix of another width stays exact."""
PAIR_BYTES = 4
"""Of a group's scale and minimum, which on a GPU stand together whether the minimum says more or not."""
TILE = 32
"""Output rows a tile of quantised weights on a CPU."""
LANES = 16
"""Elements a vector of the compiled kernels' cache."""
HEAD_BITS = 8
"""The least that an output head is rounded to."""
_FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "w1": "gate_up",
    "w3": "gate_up",
}
"""Matrices that become one; it has the most bits of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Types and backend of one start."""

    backend: Literal["torch", "numba", "triton"]
    dtype: str
    kv_dtype: str
    bits: int | None
    """Of linear layers; None: the dtype."""
    block_size: int
    ways: int = 1
    """Devices that share the model."""
    is_fp8: bool = False
    """Linear layers are float8, a float32 scale for each output; an output head is exact."""

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def tile(self) -> int:
        """Output rows that quantised weights are filled up to a multiple of."""
        return TILE if self.backend == "numba" else 1

    @property
    def quantization(self) -> str:
        return "fp8" if self.is_fp8 else "none" if self.bits is None else f"int{self.bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """Bytes on one device."""

    total_bytes: int
    step_bytes: int
    """That every step reads: all but the embedding, of which it reads a row a token, and the experts."""
    expert_bytes: int


def choose_layout(config: EngineConfig, *, stored_dtype: str, kind: Literal["cpu", "gpu"], ways: int = 1) -> Layout:
    """What the engine chooses on a device of that kind.

    Raises:
        StartupError: SpecInvalid, where that device has no such cache.
    """
    bits = QUANTIZATION_BITS[config.quantization]
    dtype = resolve_dtype_name(config.dtype, stored_dtype, is_cpu=kind == "cpu")
    backend: Literal["torch", "numba", "triton"] = "triton" if kind == "gpu" else "torch" if bits is None else "numba"
    return Layout(
        backend=backend,
        dtype=dtype,
        kv_dtype=kv_dtype_name(config.kv_cache_dtype, dtype, backend=backend),
        bits=bits,
        block_size=config.block_size,
        ways=ways,
        is_fp8=config.quantization == "fp8",
    )


def weight_sizes(model: ModelShape, layout: Layout) -> WeightSizes:
    """Parameters as they are kept; a tied head is counted once where it is the embedding itself."""
    codes = _fp8_by_name(model, layout) if layout.is_fp8 else _codes_by_name(model, layout)
    total = step = experts = 0
    for parameter in model.parameters:
        shape = parameter.share(model, layout.ways)
        size = parameter.copies * _bytes(shape, codes.get(parameter.name), layout)
        total += size
        if parameter.is_expert:
            experts += size
        elif not parameter.is_embedding:
            step += size
        elif model.is_tied:
            # In few bits it is a second matrix beside the embedding, which stays exact.
            is_second = layout.bits is not None and shape[1] % GROUP == 0
            codes_of_head = _Codes(_head_bits(parameter), num_empty_rows=-shape[0] % layout.tile)
            head = _bytes(shape, codes_of_head, layout) if is_second else size
            step += head
            total += head if is_second else 0
    return WeightSizes(total_bytes=total, step_bytes=step, expert_bytes=experts)


def rotary_bytes(model: ModelShape) -> int:
    """Of the tables of angles, float32, made for the longest context."""
    return model.max_positions * model.rotary * 4


def kv_shape(model: ModelShape, layout: Layout) -> KVShape:
    """The cache on one device."""
    return KVShape(
        num_layers=model.num_layers,
        num_kv_heads=model.kv_heads_of(layout.ways),
        head_dim=model.head_dim,
        bytes_per_element=ITEM_BYTES[layout.kv_dtype],
        block_size=layout.block_size,
        lanes=LANES if layout.backend == "numba" else 1,
        has_values=model.has_values,
    )


def step_widths(model: ModelShape, layout: Layout) -> StepWidths:
    """Of one token on one device; logits of the whole vocabulary come together on each."""
    planes = 2 if model.has_values else 1
    return StepWidths(
        hidden=model.hidden,
        qkv=-(-model.qkv // layout.ways),
        attention=-(-model.attention // layout.ways),
        kv=planes * model.kv_heads_of(layout.ways) * model.head_dim,
        inner=-(-model.inner // layout.ways),
        vocab=model.vocab_size,
        experts_per_token=model.experts_per_token,
    )


class _Codes(NamedTuple):
    """How a matrix is rounded."""

    bits: int
    has_4: bool = False
    """Whether parts of it have 4 bits, and so minima."""
    num_empty_rows: int = 0
    """That fill up the last tile of what it is a part of; counted at the first part."""

    @property
    def group_bytes(self) -> int:
        return 2 if self.bits == 8 and not self.has_4 else 4


def _codes_by_name(model: ModelShape, layout: Layout) -> dict[str, _Codes]:
    """Of each matrix that is kept in few bits."""
    if layout.bits is None:
        return {}
    found = {}
    parts: dict[str, list[int]] = {}
    rows: dict[str, int] = {}
    for parameter in model.parameters:
        if not parameter.is_linear:
            continue
        bits = _head_bits(parameter) if parameter.is_head else parameter.stored_bits or layout.bits
        fused = _fused(parameter)
        parts.setdefault(fused, []).append(bits)
        rows[fused] = rows.get(fused, 0) + parameter.share(model, layout.ways)[0]
        found[parameter.name] = fused
    codes = {fused: _Codes(max(each), has_4=4 in each) for fused, each in parts.items()}
    firsts = {fused: name for name, fused in reversed(found.items())}
    return {
        name: codes[fused]._replace(num_empty_rows=-rows[fused] % layout.tile if firsts[fused] == name else 0)
        for name, fused in found.items()
    }


def _fp8_by_name(model: ModelShape, layout: Layout) -> dict[str, _Codes]:
    """Of each matrix that is kept in float8."""
    shapes: dict[str, list[int]] = {}
    linears = [parameter for parameter in model.parameters if parameter.is_linear and not parameter.is_head]
    for parameter in linears:
        rows, columns = parameter.share(model, layout.ways)
        shape = shapes.setdefault(_fused(parameter), [0, columns])
        shape[0] += rows
    return {
        parameter.name: _Codes(8)
        for parameter in linears
        if not any(size % FP8_MULTIPLE for size in shapes[_fused(parameter)])
    }


def _fused(parameter: Parameter) -> str:
    parent = parameter.name.rsplit(".", 2)[0]
    return f"{parent}.{_FUSED.get(parameter.module, parameter.module)}"


def _head_bits(parameter: Parameter) -> int:
    return parameter.stored_bits or HEAD_BITS


def _bytes(shape: tuple[int, ...], codes: _Codes | None, layout: Layout) -> int:
    rows, *rest = shape
    if codes is not None and layout.is_fp8:
        return rows * rest[0] + rows * 4
    if codes is None or rest[0] % GROUP:
        return rows * (rest[0] if rest else 1) * layout.item_bytes
    rows += codes.num_empty_rows
    packed = rows * rest[0] * codes.bits // 8
    if layout.backend == "triton":
        return packed + rows * rest[0] // GROUP * PAIR_BYTES
    # A bias of float32 whether the model has one or not.
    return packed + rows * rest[0] // GROUP * codes.group_bytes + rows * 4
