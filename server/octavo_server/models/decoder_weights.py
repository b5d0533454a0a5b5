"""Builds a decoder's weights from a source: checks names and shapes, fuses projections, hands them to the backend."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from octavo_kernels.backend import Fp8Backend, QuantizedBackend
from octavo_kernels.errors import KernelError
from octavo_kernels.fp8_weight import FP8, Fp8Weight, stack_fp8_rows
from octavo_kernels.handles import KVScales
from octavo_kernels.quantized_weight import GROUP, QuantizedWeight, filled_up, quantize, stack
from octavo_server.errors import StartupError
from octavo_server.layers.rope import rope_table
from octavo_server.models.expected_shapes import EMBEDDING, HEAD, expected_shapes
from octavo_server.models.shard import ALONE, Shard
from octavo_server.models.weights import Fp8Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo_kernels.backend import KernelBackend
    from octavo_kernels.handles import ExpertsHandle, LinearHandle
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.shard import Cut
    from octavo_server.models.weights import Progress, WeightSource

logger = logging.getLogger(__name__)

# Buffers that older checkpoints carry and that follow from the configuration.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")


_BITS = {"int8": 8, "int4": 4}
"""By `--quantization`, what a linear layer's weight is rounded to unless it is stored in fewer bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """A mixture of experts in place of an MLP."""

    router: LinearHandle
    """hidden -> num_experts."""
    experts: ExpertsHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. Norm weights are [hidden] or, for q and k, [head_dim]."""

    input_norm: torch.Tensor
    qkv: LinearHandle
    """hidden -> (num_heads + 2 * num_kv_heads) * head_dim: q, then k, then v."""
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: LinearHandle
    post_attention_norm: torch.Tensor
    gate_up: LinearHandle | None
    """hidden -> 2 * intermediate: gate, then up. None, and down too, where the layer has experts."""
    down: LinearHandle | None
    experts: ExpertWeights | None = None

    @property
    def has_experts(self) -> bool:
        return self.experts is not None

    @property
    def linear_layers(self) -> list[LinearHandle]:
        """Of experts the router alone."""
        router = None if self.experts is None else self.experts.router
        found = (self.qkv, self.output, self.gate_up, self.down, router)
        return [handle for handle in found if handle is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """All of a decoder, on the backend's device."""

    embedding: torch.Tensor
    """[vocab, hidden]; of several ranks each has some rows."""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: LinearHandle
    cos_sin: torch.Tensor
    """[max_positions, head_dim] float32."""
    num_bytes: int
    """Bytes of the parameters as they are kept; a tied head is counted once where it is the embedding itself."""
    kv_scales: KVScales | None = None
    """[num_layers, num_kv_heads] each, on the CPU, of this rank's heads: for a cache of float8, where the checkpoint has them."""

    @property
    def linear_layers(self) -> list[LinearHandle]:
        """All that every token goes through."""
        return [handle for layer in self.layers for handle in layer.linear_layers] + [self.head]


def load_decoder_weights(
    config: ModelConfig,
    source: WeightSource,
    backend: KernelBackend,
    dtype: torch.dtype,
    on_progress: Progress,
    quantization: str = "none",
    shard: Shard = ALONE,
) -> DecoderWeights:
    """Reads what `shard` keeps of every tensor that `config` needs, some layers at once, and warns of those left over.

    With `quantization` "int8" or "int4", which need a `QuantizedBackend`, linear layers stay in the few bits that they are
    stored in, and what is stored in more is rounded to 8 or 4; an output head never to less than 8. With "fp8", which
    needs an `Fp8Backend`, all but the head are rounded to float8. What cannot be rounded stays exact, and is warned of.

    Raises:
        StartupError: ModelInvalid, naming the tensor that is missing, mis-shaped or of an unknown type.
    """
    _check_before_reading(config, source)
    total = sum(source.num_bytes(name) for name in source.names)
    on_progress(0, total)
    cut_source = _CutSource(source, lambda name: shard.cut(name, source.shape(name), config))
    reader = _Reader(cut_source, backend, dtype, quantization, lambda num_read: on_progress(num_read, total))
    # Dequantising leaves the interpreter's lock, so two threads read about twice as fast as one.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="weights") as pool:
        embedding_job = pool.submit(reader.tensor, EMBEDDING)
        layers = tuple(pool.map(lambda index: _layer(reader, config, shard, index), range(config.num_layers)))
        embedding = embedding_job.result()
    head = reader.head(EMBEDDING if config.tie_word_embeddings else HEAD, embedding)
    final_norm = reader.tensor("model.norm.weight")
    _warn_of_extra(config, source)
    if reader.kept_exact:
        logger.warning(
            "some matrices stay exact, as they cannot be rounded",
            extra={"count": len(reader.kept_exact), "first": min(reader.kept_exact)},
        )
    cos_sin = rope_table(config.rope, config.head_dim, config.max_positions, source.rope_divisors())
    on_progress(total, total)
    return DecoderWeights(
        embedding=embedding,
        layers=layers,
        final_norm=final_norm,
        head=head,
        cos_sin=cos_sin.to(backend.device),
        num_bytes=reader.num_kept_bytes,
        kv_scales=kv_scales_of(source, config, shard),
    )


def kv_scales_of(source: WeightSource, config: ModelConfig, shard: Shard) -> KVScales | None:
    """Of the heads that `shard` keeps; None where the checkpoint has none."""
    scales = source.kv_scales() if isinstance(source, Fp8Source) else None
    if scales is None:
        return None
    first = shard.rank * config.num_kv_heads // shard.size
    own = slice(first, first + shard.num_kv_heads(config))
    return KVScales(keys=scales.keys[:, own], values=scales.values[:, own])


class _CutSource:
    """A source as one rank sees it: of each tensor what `cut` says, filled up with zeros."""

    def __init__(self, source: WeightSource, cut: Callable[[str], Cut]) -> None:
        self._source = source
        self._cut = cut

    def shape(self, name: str) -> tuple[int, ...]:
        return self._cut(name).shape_of(self._source.shape(name))

    def num_bytes(self, name: str) -> int:
        """Stored bytes, of a tensor that is cut all: ranks read it together."""
        return self._source.num_bytes(name)

    def read_into(self, target: torch.Tensor, name: str) -> None:
        """target: zeros, of `shape(name)`."""
        values = self._source.read(name, self._cut(name))
        target[tuple(slice(size) for size in values.shape)] = values

    def fp8(self, name: str, device: torch.device) -> Fp8Weight | None:
        """As it is stored; None where that is not float8 with a scale for each output."""
        stored = self._source.read_fp8(name, self._cut(name)) if isinstance(self._source, Fp8Source) else None
        if stored is None:
            return None
        (rows, columns), (codes, scales) = self.shape(name), stored
        missing = (0, columns - codes.shape[1], 0, rows - codes.shape[0])
        # torch fills up no float8 with zeros, whose bits are 0
        codes = functional.pad(codes.view(torch.uint8), missing).view(FP8)
        scales = functional.pad(scales, (0, rows - scales.shape[0]), value=1.0)
        return Fp8Weight(codes=codes.to(device), scales=scales.to(device))

    def codes(self, name: str, bits: int, device: torch.device) -> QuantizedWeight:
        """As they are stored, or rounded to `bits` on `device`."""
        rows, columns = self.shape(name)
        stored = self._source.read_codes(name, self._cut(name))
        if stored is not None:
            return filled_up(stored.to(device), rows, columns)
        values = self._source.read(name, self._cut(name))
        missing = rows - values.shape[0], columns - values.shape[1]
        if any(missing):
            values = functional.pad(values, (0, missing[1], 0, missing[0]))
        return quantize(values.to(device), bits)


class _Reader:
    """Reads tensors into the wanted dtype and device; owns the record of what was read, and tells each time it grows."""

    def __init__(
        self,
        source: _CutSource,
        backend: KernelBackend,
        dtype: torch.dtype,
        quantization: str,
        on_read: Callable[[int], None],
    ) -> None:
        self.source = source
        self.backend = backend
        self.dtype = dtype
        self.bits = _BITS.get(quantization)
        self.is_fp8 = quantization == "fp8"
        self.on_read = on_read
        self._lock = threading.Lock()
        self.num_read = 0
        """Stored bytes."""
        self.num_kept_bytes = 0
        self.kept_exact: list[str] = []
        """Why matrices were not rounded that should have been, one sentence each."""

    def tensor(self, name: str) -> torch.Tensor:
        return self.stacked([name])

    def stacked(self, names: list[str]) -> torch.Tensor:
        """The named tensors one below the other: [sum of rows, ...], new memory on the backend's device."""
        shapes = [self.source.shape(name) for name in names]
        num_rows = sum(shape[0] for shape in shapes)
        target = torch.zeros((num_rows, *shapes[0][1:]), dtype=self.dtype, device=self.backend.device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            part = target[start : start + shape[0]]
            self.source.read_into(part, name)
            start += shape[0]
            # One by one: all experts of a layer are one stack, which may be gigabytes.
            self._record([name], part.nbytes)
        return target

    def linear(self, names: list[str], *, has_bias: bool) -> LinearHandle:
        weights = [f"{name}.weight" for name in names]
        bias = self.stacked([f"{name}.bias" for name in names]) if has_bias else None
        if self.is_fp8:
            return self._fp8(weights, bias)
        if self.bits is None:
            return self.backend.prepare_linear(self.stacked(weights), bias)
        num_columns = self.source.shape(weights[0])[1]
        if num_columns % GROUP:
            self._keep_exact(f"{num_columns} inputs of {weights[0]} are no multiple of {GROUP}")
            return self.backend.prepare_linear(self.stacked(weights), bias)
        return self._quantized(weights, self.bits, bias)

    def exact_linear(self, name: str) -> LinearHandle:
        """Of a matrix that is never kept in few bits."""
        return self.backend.prepare_linear(self.tensor(name))

    def experts(self, gate_up: list[list[str]], down: list[list[str]]) -> ExpertsHandle:
        """gate_up: an expert's two names each, down: its one."""
        if self.bits is not None or self.is_fp8:
            return self._quantized_experts(gate_up, down)
        # one below the other: [num_experts * rows, columns]
        gates_and_ups, downs = (
            self.stacked([f"{name}.weight" for names in matrices for name in names]) for matrices in (gate_up, down)
        )
        return self.backend.prepare_experts(
            gates_and_ups.view(len(gate_up), -1, gates_and_ups.shape[1]), downs.view(len(down), -1, downs.shape[1])
        )

    def _quantized_experts(self, gate_up: list[list[str]], down: list[list[str]]) -> ExpertsHandle:
        if not isinstance(self.backend, QuantizedBackend | Fp8Backend):
            raise TypeError(f"the {self.backend.name} backend takes no quantised experts")
        gates_and_ups, downs = (
            [self.linear(names, has_bias=False) for names in matrices] for matrices in (gate_up, down)
        )
        try:
            return self.backend.prepare_quantized_experts(gates_and_ups, downs)
        except KernelError as error:
            raise StartupError("ModelInvalid", f"--quantization: {error}; use --quantization none") from error

    def head(self, name: str, embedding: torch.Tensor) -> LinearHandle:
        """The output projection; `embedding` is its weight where `name` is the embedding's."""
        if self.bits is not None and embedding.shape[1] % GROUP == 0:
            return self._quantized([name], 8, None)
        return self.backend.prepare_linear(embedding if name == EMBEDDING else self.tensor(name))

    def _quantized(self, names: list[str], bits: int, bias: torch.Tensor | None) -> LinearHandle:
        if not isinstance(self.backend, QuantizedBackend):
            raise TypeError(f"the {self.backend.name} backend takes no quantised weights")
        weight = stack([self.source.codes(name, bits, self.backend.device) for name in names])
        handle = self.backend.prepare_quantized_linear(weight, bias)
        self._record([name for name in names if name != EMBEDDING], handle.weight_bytes)
        return handle

    def _fp8(self, names: list[str], bias: torch.Tensor | None) -> LinearHandle:
        if not isinstance(self.backend, Fp8Backend):
            raise TypeError(f"the {self.backend.name} backend takes no float8 weights")
        if (stored := self._stored_fp8(names)) is not None:
            handle = self.backend.prepare_fp8_linear(stored, bias)
            self._record(names, handle.weight_bytes)
            return handle
        weight = self.stacked(names)
        try:
            handle = self.backend.prepare_fp8_linear(weight, bias)
        except KernelError as error:
            self._keep_exact(str(error))
            return self.backend.prepare_linear(weight, bias)
        self._record([], handle.weight_bytes - weight.nbytes)
        return handle

    def _stored_fp8(self, names: list[str]) -> Fp8Weight | None:
        """One below the other, where all are stored so and float8 can hold them; they are not rounded again."""
        try:
            parts = [self.source.fp8(name, self.backend.device) for name in names]
        except KernelError:
            return None
        found = [part for part in parts if part is not None]
        return stack_fp8_rows(found) if len(found) == len(names) else None

    def _keep_exact(self, reason: str) -> None:
        with self._lock:
            self.kept_exact.append(reason)

    def _record(self, names: list[str], num_kept_bytes: int) -> None:
        with self._lock:
            self.num_read += sum(self.source.num_bytes(name) for name in names)
            self.num_kept_bytes += num_kept_bytes
            self.on_read(self.num_read)


def _check_before_reading(config: ModelConfig, source: WeightSource) -> None:
    for name, shape in expected_shapes(config).items():
        if name not in source.names:
            raise StartupError("ModelInvalid", f"{source.description}: tensor {name} is missing")
        found = source.shape(name)
        if found != shape:
            message = (
                f"{source.description}: tensor {name} has shape {list(found)}, the configuration needs {list(shape)}"
            )
            raise StartupError("ModelInvalid", message)


def _layer(reader: _Reader, config: ModelConfig, shard: Shard, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    has_qk_norm = config.family.qk_norm
    has_experts = config.has_experts(index)
    gate_up_names = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
    qkv_names = [f"{attention}.{part}_proj" for part in ("q", "k", "v")]
    has_down_bias = config.mlp_bias and shard.has_bias("down_proj")
    return LayerWeights(
        input_norm=reader.tensor(f"{prefix}.input_layernorm.weight"),
        qkv=reader.linear(qkv_names, has_bias=config.qkv_bias),
        q_norm=reader.tensor(f"{attention}.q_norm.weight") if has_qk_norm else None,
        k_norm=reader.tensor(f"{attention}.k_norm.weight") if has_qk_norm else None,
        output=reader.linear([f"{attention}.o_proj"], has_bias=config.o_bias and shard.has_bias("o_proj")),
        post_attention_norm=reader.tensor(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=None if has_experts else reader.linear(gate_up_names, has_bias=config.mlp_bias),
        down=None if has_experts else reader.linear([f"{mlp}.down_proj"], has_bias=has_down_bias),
        experts=_experts(reader, config, prefix) if has_experts else None,
    )


def _experts(reader: _Reader, config: ModelConfig, layer: str) -> ExpertWeights:
    names, sizes = config.family.experts, config.experts
    assert names is not None
    assert sizes is not None
    block = f"{layer}.{names.block}"
    each = [f"{block}.experts.{expert}" for expert in range(sizes.num_experts)]
    return ExpertWeights(
        router=reader.exact_linear(f"{block}.gate.weight"),
        experts=reader.experts(
            [[f"{expert}.{names.gate}", f"{expert}.{names.up}"] for expert in each],
            [[f"{expert}.{names.down}"] for expert in each],
        ),
    )


def _warn_of_extra(config: ModelConfig, source: WeightSource) -> None:
    # A tied checkpoint may hold its head under both names.
    known = expected_shapes(config).keys() | {HEAD}
    extra = sorted(name for name in source.names if name not in known and not name.endswith(_IGNORED_SUFFIXES))
    if extra:
        logger.warning(
            "checkpoint holds tensors that the model does not use",
            extra={"model": source.description, "count": len(extra), "tensors": extra[:10]},
        )
