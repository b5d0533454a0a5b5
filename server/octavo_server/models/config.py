"""What a checkpoint says about its model, checked and in one spelling.

Reads config.json as transformers 5 writes it (`rope_parameters`, `dtype`) and as the hub has it (`rope_theta`,
`rope_scaling`, `torch_dtype`), or a GGUF file's metadata. Never guesses: a field that would change the result and that
we do not serve refuses to load.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from octavo_server.errors import StartupError
from octavo_server.layers.rope import RopeConfig
from octavo_server.models.gguf_config import gguf_config, gguf_generation_config
from octavo_server.models.gguf_file import read_gguf
from octavo_server.models.location import ModelLocation, read_json, resolve_location
from octavo_server.models.registry import FAMILIES, Bias, Family

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the checkpoint recommends for a request that leaves a field out; None: nothing recommended."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSizes:
    """How long an embedding of the model may be."""

    hidden: int
    """Numbers of a hidden state: the whole vector."""
    can_shorten: bool = False
    """Whether the model was trained so that the beginning of a vector is one too (Matryoshka)."""
    trained: tuple[int, ...] = ()
    """The lengths it was trained for; empty: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's shape and constants."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_positions: int
    """Tokens of the longest context, prompt and output together."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Any of them ends an answer."""
    dtype: str
    """What the weights are stored in: float32, float16 or bfloat16."""
    generation: GenerationDefaults
    vectors: VectorSizes

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of K and V of one token in all layers, at `itemsize` bytes an element."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize


def load_model_config(location: str | Path) -> ModelConfig:
    """Reads the configuration of the model at `location`; no weights are touched.

    Raises:
        StartupError: ModelNotFound, ModelInvalid or UnsupportedArchitecture.
    """
    return read_model_config(resolve_location(location))


def read_model_config(location: ModelLocation) -> ModelConfig:
    """As load_model_config, for a location that is already resolved."""
    if location.is_gguf:
        file = read_gguf(location.path)
        return parse_model_config(gguf_config(file), gguf_generation_config(file), source=location.path.name)
    generation_path = location.path / "generation_config.json"
    generation = read_json(generation_path) if generation_path.is_file() else {}
    path = location.path / "config.json"
    return parse_model_config(read_json(path), generation, source=str(path))


def parse_model_config(raw: Mapping[str, Any], generation: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Checks the two objects and joins them.

    Raises:
        StartupError: UnsupportedArchitecture or ModelInvalid, naming `source` and the key.
    """
    architecture = _architecture(raw, source)
    family = FAMILIES[architecture]
    fields = _Fields({**family.defaults, **raw}, source)
    _refuse_unserved(fields)
    num_heads = fields.positive("num_attention_heads")
    hidden_size = fields.positive("hidden_size")
    num_kv_heads = fields.positive("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        fields.fail(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
    rope = _rope(fields)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.positive("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.positive("head_dim", default=hidden_size // num_heads),
        intermediate_size=fields.positive("intermediate_size"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        qkv_bias=_has_bias(family.qkv_bias, fields.flag("attention_bias")),
        o_bias=_has_bias(family.o_bias, fields.flag("attention_bias")),
        mlp_bias=_has_bias(family.mlp_bias, fields.flag("mlp_bias")),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        max_positions=_max_positions(fields, family),
        bos_token_id=_first_id(raw.get("bos_token_id")),
        eos_token_ids=_unique_ids(generation.get("eos_token_id"), raw.get("eos_token_id")),
        dtype=_dtype_name(fields),
        generation=_generation_defaults(generation, source),
        vectors=_vector_sizes(fields, hidden_size),
    )


class _Fields:
    """Typed reads of one object; every failure names the key and the file."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, message: str) -> NoReturn:
        raise StartupError("ModelInvalid", f"{self.source}: {message}")

    def unsupported(self, message: str) -> NoReturn:
        raise StartupError("UnsupportedArchitecture", f"{self.source}: {message}")

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            self.fail(f"key {key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{key} is {value!r}, not a number")
        return float(value)

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value < 1 or value != int(value):
            self.fail(f"{key} is {value:g}, not a positive integer")
        return int(value)

    def flag(self, key: str) -> bool:
        return bool(self.get(key))


def _architecture(raw: Mapping[str, Any], source: str) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return str(name)
    named = ", ".join(str(name) for name in names) or f"model_type {raw.get('model_type')!r}"
    known = ", ".join(sorted(FAMILIES))
    raise StartupError("UnsupportedArchitecture", f"{source} names {named}; supported architectures are {known}")


def _refuse_unserved(fields: _Fields) -> None:
    activation = fields.get("hidden_act")
    if activation not in (None, "silu", "swish"):
        fields.unsupported(f"hidden_act {activation!r} is not supported; supported is silu")
    for key in ("quantization_config", "compression_config"):
        method = fields.get(key)
        if method:
            name = method.get("quant_method") if isinstance(method, dict) else method
            fields.unsupported(f"{key} {name!r} is not supported; use an unquantised checkpoint or a GGUF file")
    rotary = fields.number("partial_rotary_factor", default=1.0)
    if rotary != 1.0:
        fields.unsupported(f"partial_rotary_factor {rotary:g} is not supported; supported is 1")


def _rope(fields: _Fields) -> RopeConfig:
    scaling = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    nested = _Fields(scaling, f"{fields.source}: rope_parameters" if fields.get("rope_parameters") else fields.source)
    theta = nested.number("rope_theta", default=fields.number("rope_theta", default=10_000.0))
    # The hub's older spelling of the key is `type`.
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(kind="linear", theta=theta, factor=nested.number("factor"))
    if kind != "llama3":
        fields.unsupported(f"rope type {kind!r} is not supported; supported are default, linear and llama3")
    return RopeConfig(
        kind="llama3",
        theta=theta,
        factor=nested.number("factor"),
        low_freq_factor=nested.number("low_freq_factor"),
        high_freq_factor=nested.number("high_freq_factor"),
        original_max_positions=nested.positive("original_max_position_embeddings"),
    )


def _max_positions(fields: _Fields, family: Family) -> int:
    """The longest context whose attention is exact: a sliding window, where one is in force, is not slid past."""
    limit = fields.positive("max_position_embeddings")
    in_force = family.sliding_window == "always" or (
        family.sliding_window == "use_sliding_window" and fields.flag("use_sliding_window")
    )
    if not in_force or fields.get("sliding_window") is None:
        return limit
    window = fields.positive("sliding_window")
    if window < limit:
        logger.warning(
            "sliding-window attention is not served yet; the context is limited to the window",
            extra={"max_positions": limit, "sliding_window": window},
        )
    return min(limit, window)


def _has_bias(rule: Bias, configured: bool) -> bool:
    return rule == "always" or (rule == "config" and configured)


def _dtype_name(fields: _Fields) -> Literal["float32", "float16", "bfloat16"]:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    if name == "float16":
        return "float16"
    return "bfloat16" if name == "bfloat16" else "float32"


def _generation_defaults(raw: Mapping[str, Any], source: str) -> GenerationDefaults:
    fields = _Fields(raw, f"{source}, generation_config.json" if raw else source)

    def optional(key: str) -> float | None:
        return None if raw.get(key) is None else fields.number(key)

    top_k, max_new_tokens = optional("top_k"), optional("max_new_tokens")
    return GenerationDefaults(
        temperature=optional("temperature"),
        top_p=optional("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=optional("min_p"),
        repetition_penalty=optional("repetition_penalty"),
        max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
    )


def _vector_sizes(fields: _Fields, hidden_size: int) -> VectorSizes:
    trained = fields.get("matryoshka_dimensions") or []
    if not isinstance(trained, list) or not all(type(size) is int and 1 <= size <= hidden_size for size in trained):
        fields.fail(f"matryoshka_dimensions is {trained!r}, not a list of whole numbers from 1 to {hidden_size}")
    return VectorSizes(
        hidden=hidden_size,
        can_shorten=bool(trained) or fields.flag("is_matryoshka"),
        trained=tuple(sorted(trained)),
    )


def _first_id(value: Any) -> int | None:
    ids = _unique_ids(value)
    return ids[0] if ids else None


def _unique_ids(*values: Any) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for value in values:
        items = value if isinstance(value, list) else [value]
        found.update({int(item): None for item in items if item is not None})
    return tuple(found)
