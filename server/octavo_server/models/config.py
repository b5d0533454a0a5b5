"""What a checkpoint says about its model, checked and in one spelling.

Reads config.json as transformers 5 writes it (`rope_parameters`, `dtype`) and as the hub has it (`rope_theta`,
`rope_scaling`, `torch_dtype`), or a GGUF file's metadata. Never guesses: a field that would change the result and that
we do not serve refuses to load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo_server.errors import StartupError
from octavo_server.layers.rope import RopeConfig
from octavo_server.models.config_fields import ConfigFields
from octavo_server.models.experts_config import ExpertsConfig, parse_experts
from octavo_server.models.fp8_config import Fp8Config, parse_fp8
from octavo_server.models.gguf_config import gguf_config, gguf_generation_config
from octavo_server.models.gguf_file import read_gguf
from octavo_server.models.location import ModelLocation, read_json, resolve_location
from octavo_server.models.registry import FAMILIES, Bias, Family
from octavo_server.models.rope_config import context_length, parse_rope
from octavo_server.models.window_config import parse_windows

MAX_LAYERS = 10_000
"""The largest decoders have a few hundred: a number beyond is damage, and would fill the memory with names of tensors."""


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
    """Of the MLPs that are no experts."""
    experts: ExpertsConfig | None
    """None: every layer has one MLP."""
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    """A layer each: the tokens that one sees, its own among them; None: all."""
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
    fp8: Fp8Config | None = None
    """Of a checkpoint whose weights are float8."""

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer in self.experts.layers

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
    fields = ConfigFields({**family.defaults, **raw}, source)
    _refuse_unserved(fields)
    num_heads = fields.positive("num_attention_heads")
    hidden_size = fields.positive("hidden_size")
    num_kv_heads = fields.positive("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        fields.fail(f"num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}")
    num_layers = fields.positive("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        fields.fail(f"num_hidden_layers is {num_layers}, more than {MAX_LAYERS}")
    head_dim = fields.positive("head_dim", default=hidden_size // num_heads)
    if head_dim % 2:
        fields.fail(f"head_dim {head_dim} is odd, and a rotary embedding turns pairs")
    rope = parse_rope(fields)
    max_positions = context_length(fields, rope)
    advice = ConfigFields(generation, f"{source}, generation_config.json" if generation else source)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.positive("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.positive("intermediate_size"),
        experts=parse_experts(fields, family, num_layers),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        windows=parse_windows(fields, family, num_layers, max_positions),
        qkv_bias=_has_bias(family.qkv_bias, fields.flag("attention_bias")),
        o_bias=_has_bias(family.o_bias, fields.flag("attention_bias")),
        mlp_bias=_has_bias(family.mlp_bias, fields.flag("mlp_bias")),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        max_positions=max_positions,
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=tuple(dict.fromkeys(advice.token_ids("eos_token_id") + fields.token_ids("eos_token_id"))),
        dtype=_dtype_name(fields),
        generation=_generation_defaults(advice),
        vectors=_vector_sizes(fields, hidden_size),
        fp8=parse_fp8(fields),
    )


def _architecture(raw: Mapping[str, Any], source: str) -> str:
    names = ConfigFields(raw, source).names("architectures") or []
    for name in names:
        if name in FAMILIES:
            return name
    named = ", ".join(names) or f"model_type {raw.get('model_type')!r}"
    known = ", ".join(sorted(FAMILIES))
    raise StartupError("UnsupportedArchitecture", f"{source} names {named}; supported architectures are {known}")


def _refuse_unserved(fields: ConfigFields) -> None:
    activation = fields.get("hidden_act")
    if activation not in (None, "silu", "swish"):
        fields.unsupported(f"hidden_act {activation!r} is not supported; supported is silu")


def _has_bias(rule: Bias, configured: bool) -> bool:
    return rule == "always" or (rule == "config" and configured)


def _dtype_name(fields: ConfigFields) -> Literal["float32", "float16", "bfloat16"]:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    if name == "float16":
        return "float16"
    return "bfloat16" if name == "bfloat16" else "float32"


def _generation_defaults(fields: ConfigFields) -> GenerationDefaults:
    top_k, max_new_tokens = fields.optional("top_k"), fields.optional("max_new_tokens")
    return GenerationDefaults(
        temperature=fields.optional("temperature"),
        top_p=fields.optional("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=fields.optional("min_p"),
        repetition_penalty=fields.optional("repetition_penalty"),
        max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
    )


def _vector_sizes(fields: ConfigFields, hidden_size: int) -> VectorSizes:
    trained = fields.get("matryoshka_dimensions") or []
    if not isinstance(trained, list) or not all(type(size) is int and 1 <= size <= hidden_size for size in trained):
        fields.fail(f"matryoshka_dimensions is {trained!r}, not a list of whole numbers from 1 to {hidden_size}")
    return VectorSizes(
        hidden=hidden_size,
        can_shorten=bool(trained) or fields.flag("is_matryoshka"),
        trained=tuple(sorted(trained)),
    )
