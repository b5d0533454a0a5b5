"""Which checkpoints of float8 (e4m3) are read: what their `quantization_config` must say. Pure, without torch.

| `quant_method` | who writes it | a weight's scale |
|---|---|---|
| `fp8` | Hugging Face, DeepSeek, AutoFP8 | by blocks (`weight_block_size`), or one |
| `compressed-tensors` | llm-compressor | one, by output, or by blocks |
| `modelopt` | NVIDIA's ModelOpt | one, or by output |
| `quark` | AMD's Quark | one, or by output |

What would change a result and is not done is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from octavo_server.models.config_fields import ConfigFields

_REMEDY = "use an unquantised checkpoint, one of float8, or a GGUF file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Config:
    """That a checkpoint has weights of float8, each with its scale beside it."""

    block: tuple[int, int] | None
    """Outputs and inputs that share a scale, where scales are by blocks."""


def parse_fp8(fields: ConfigFields) -> Fp8Config | None:
    """None: the checkpoint is not quantised.

    Raises:
        StartupError: UnsupportedArchitecture, naming what is not read.
    """
    for key in ("quantization_config", "compression_config"):
        given = fields.get(key)
        if not given:
            continue
        method = given.get("quant_method") if isinstance(given, dict) else given
        if not isinstance(given, dict) or method not in _METHODS:
            fields.unsupported(f"{key} {method!r} is not supported; {_REMEDY}")
        problems, block = _METHODS[method]
        for problem in problems(given):
            fields.unsupported(f"{key} {method!r}: {problem} is not supported; {_REMEDY}")
        return Fp8Config(block=block(fields, given))
    return None


def _hugging_face_problems(given: dict[str, Any]) -> Iterator[str]:
    if given.get("fmt") not in (None, "e4m3"):
        yield f"fmt {given['fmt']!r}"


def _compressed_problems(given: dict[str, Any]) -> Iterator[str]:
    if given.get("format") not in ("float-quantized", "naive-quantized"):
        yield f"format {given.get('format')!r}"
    if (given.get("sparsity_config") or {}).get("format", "dense") != "dense":
        yield f"sparsity_config {given['sparsity_config'].get('format')!r}"
    if given.get("transform_config"):
        yield "transform_config"
    for group in _groups(given):
        yield from _group_problems(group)


def _modelopt_problems(given: dict[str, Any]) -> Iterator[str]:
    if given.get("quant_algo") not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        yield f"quant_algo {given.get('quant_algo')!r}"


def _quark_problems(given: dict[str, Any]) -> Iterator[str]:
    for layers in (given.get("global_quant_config") or {}, *(given.get("layer_quant_config") or {}).values()):
        weight = layers.get("weight") or {}
        kind, scheme = (weight.get(key) if isinstance(weight, dict) else weight for key in ("dtype", "qscheme"))
        if kind not in (None, "fp8_e4m3") or scheme not in (None, "per_tensor", "per_channel"):
            yield f"weight of {kind!r} {scheme!r}"


def _groups(given: dict[str, Any]) -> list[dict[str, Any]]:
    return list((given.get("config_groups") or {}).values())


def _group_problems(group: dict[str, Any]) -> Iterator[str]:
    for part in ("weights", "input_activations"):
        scheme = group.get(part)
        if scheme and (scheme.get("num_bits"), scheme.get("type"), scheme.get("symmetric", True)) != (8, "float", True):
            yield f"{part} of {scheme.get('num_bits')} bits, {scheme.get('type')!r}"
    strategy = (group.get("weights") or {}).get("strategy", "tensor")
    if strategy not in ("tensor", "channel", "block"):
        yield f"strategy {strategy!r}"
    if group.get("output_activations"):
        yield "output_activations"


def _hugging_face_block(fields: ConfigFields, given: dict[str, Any]) -> tuple[int, int] | None:
    return _pair(fields, "weight_block_size", given.get("weight_block_size"))


def _compressed_block(fields: ConfigFields, given: dict[str, Any]) -> tuple[int, int] | None:
    found = {
        _pair(fields, "block_structure", weights.get("block_structure"))
        for weights in (group.get("weights") or {} for group in _groups(given))
        if weights.get("strategy") == "block"
    }
    if len(found) > 1:
        fields.unsupported(f"block_structure has {len(found)} sizes; {_REMEDY}")
    return next(iter(found), None)


def _no_block(_fields: ConfigFields, _given: dict[str, Any]) -> None:
    return None


_METHODS: dict[str, tuple[Callable[[dict[str, Any]], Iterator[str]], Callable[..., tuple[int, int] | None]]] = {
    "fp8": (_hugging_face_problems, _hugging_face_block),
    "compressed-tensors": (_compressed_problems, _compressed_block),
    "modelopt": (_modelopt_problems, _no_block),
    "quark": (_quark_problems, _no_block),
}
"""What of it is not read, and the blocks that share a scale."""


def _pair(fields: ConfigFields, key: str, given: object) -> tuple[int, int] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2 or not all(type(size) is int and size > 0 for size in given):
        fields.fail(f"{key} is {given!r}, not two whole numbers above 0")
    return given[0], given[1]
