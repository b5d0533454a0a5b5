"""Architectures that are sized and not served yet: which parameters a config.json of theirs means.

Those that are served are sized from what the loader expects (`models/expected_shapes.py`); one that gets served leaves
this table. Shapes follow transformers' modules, which the tests count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from octavo_server.models.config_fields import ConfigFields
from octavo_server.plan.model_shape import ModelShape, Parameter

_LAYER = "model.layers.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Keys of config.json that say what experts there are."""

    count: str
    width: str
    shared: str | None = None
    """How many experts every token visits besides, as wide as the others."""
    has_correction: bool = False
    """A bias a expert that only chooses, beside the router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What differs between decoders."""

    norms: int = 2
    """Of [hidden], a layer."""
    has_qk_norm: bool = False
    attention: Literal["grouped", "latent"] = "grouped"
    experts: Experts | None = None
    rotary_tables: int = 1
    text_section: str | None = None
    """The key under which the decoder stands where config.json describes pictures too."""
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA = {"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096}
_GEMMA3 = _GEMMA | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
}
_DEEPSEEK = {"first_k_dense_replace": 0, "moe_layer_freq": 1}

# Keys are the names in config.json's `architectures`.
RECIPES: dict[str, Recipe] = {
    "Gemma2ForCausalLM": Recipe(norms=4, defaults=_GEMMA | {"sliding_window_pattern": 2}),
    "Gemma3ForCausalLM": Recipe(norms=4, has_qk_norm=True, rotary_tables=2, defaults=_GEMMA3),
    "Gemma3ForConditionalGeneration": Recipe(
        norms=4, has_qk_norm=True, rotary_tables=2, text_section="text_config", defaults=_GEMMA3
    ),
    "Phi3ForCausalLM": Recipe(),
    "DeepseekV2ForCausalLM": Recipe(
        attention="latent",
        experts=Experts(count="n_routed_experts", width="moe_intermediate_size", shared="n_shared_experts"),
        defaults=_DEEPSEEK,
    ),
    "DeepseekV3ForCausalLM": Recipe(
        attention="latent",
        experts=Experts(
            count="n_routed_experts",
            width="moe_intermediate_size",
            shared="n_shared_experts",
            has_correction=True,
        ),
        defaults=_DEEPSEEK,
    ),
}


def planned_shape(architecture: str, raw: Mapping[str, Any], *, source: str) -> ModelShape:
    """Sizes of the model that `raw`, a config.json, describes.

    Raises:
        StartupError: ModelInvalid, naming `source` and the key.
    """
    recipe = RECIPES[architecture]
    values = raw if recipe.text_section is None else {**raw, **(raw.get(recipe.text_section) or {})}
    named = {key: value for key, value in values.items() if value is not None}
    fields = ConfigFields({**recipe.defaults, **named}, source)
    shape = _decoder(architecture, recipe, fields)
    pictures = ConfigFields(raw, source).section("vision_config") if recipe.text_section else None
    if pictures is not None:
        tower = Parameter(name="vision_tower.vision.weight", shape=(_vision_elements(pictures, shape.hidden),))
        shape = replace(shape, parameters=(*shape.parameters, tower))
    quantized = raw.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        note = f"the checkpoint is stored quantised ({method}); what is planned is its weights in --dtype or --quantization"
        shape = replace(shape, notes=(note,))
    return shape


def _decoder(architecture: str, recipe: Recipe, fields: ConfigFields) -> ModelShape:
    hidden, vocab = fields.positive("hidden_size"), fields.positive("vocab_size")
    num_layers, num_heads = fields.positive("num_hidden_layers"), fields.positive("num_attention_heads")
    attention = _latent(fields, hidden) if recipe.attention == "latent" else _grouped(recipe, fields, hidden)
    is_tied = fields.flag("tie_word_embeddings")
    parameters = [
        Parameter(name="model.embed_tokens.weight", shape=(vocab, hidden)),
        Parameter(name="model.norm.weight", shape=(hidden,)),
        Parameter(name=f"{_LAYER}.layernorm.weight", shape=(hidden,), copies=num_layers * recipe.norms),
        *(replace(parameter, copies=num_layers) for parameter in attention.parameters),
        *_mlps(recipe, fields, hidden, num_layers),
    ]
    if not is_tied:
        parameters.append(Parameter(name="lm_head.weight", shape=(vocab, hidden)))
    return ModelShape(
        architecture=architecture,
        is_served=False,
        parameters=tuple(parameters),
        is_tied=is_tied,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        has_values=recipe.attention == "grouped",
        qkv=attention.qkv,
        attention=attention.out,
        inner=_inner(recipe, fields),
        num_experts=fields.positive(recipe.experts.count) if recipe.experts else 0,
        experts_per_token=fields.positive("num_experts_per_tok") if recipe.experts else 0,
        vocab_size=vocab,
        windows=_windows(fields, num_layers),
        max_positions=fields.positive("max_position_embeddings"),
        rotary=attention.rotary * recipe.rotary_tables,
        dtype=_dtype(fields),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    parameters: tuple[Parameter, ...]
    num_kv_heads: int
    head_dim: int
    qkv: int
    out: int
    rotary: int


def _grouped(recipe: Recipe, fields: ConfigFields, hidden: int) -> _Attention:
    heads = fields.positive("num_attention_heads")
    kv_heads = fields.positive("num_key_value_heads", default=heads)
    head_dim = fields.positive("head_dim", default=hidden // heads)
    q_size, kv_size = heads * head_dim, kv_heads * head_dim
    has_bias = fields.flag("attention_bias")
    parameters = [
        *_linear("self_attn.q_proj", q_size, hidden, has_bias=has_bias),
        *_linear("self_attn.k_proj", kv_size, hidden, has_bias=has_bias),
        *_linear("self_attn.v_proj", kv_size, hidden, has_bias=has_bias),
        *_linear("self_attn.o_proj", hidden, q_size, has_bias=has_bias),
    ]
    if recipe.has_qk_norm:
        parameters += [
            Parameter(name=f"{_LAYER}.self_attn.{name}.weight", shape=(head_dim,)) for name in ("q_norm", "k_norm")
        ]
    return _Attention(
        parameters=tuple(parameters),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        qkv=q_size + 2 * kv_size,
        out=q_size,
        rotary=head_dim,
    )


def _latent(fields: ConfigFields, hidden: int) -> _Attention:
    """DeepSeek's: the cache keeps one latent and one rotated key a token, whatever the heads."""
    heads = fields.positive("num_attention_heads")
    latent, rotated = fields.positive("kv_lora_rank"), fields.positive("qk_rope_head_dim")
    plain, value = fields.positive("qk_nope_head_dim"), fields.positive("v_head_dim")
    q_size = heads * (plain + rotated)
    has_bias = fields.flag("attention_bias")
    if fields.get("q_lora_rank") is None:
        queries = _linear("self_attn.q_proj", q_size, hidden)
    else:
        q_rank = fields.positive("q_lora_rank")
        queries = [
            *_linear("self_attn.q_a_proj", q_rank, hidden, has_bias=has_bias),
            Parameter(name=f"{_LAYER}.self_attn.q_a_layernorm.weight", shape=(q_rank,)),
            *_linear("self_attn.q_b_proj", q_size, q_rank),
        ]
    parameters = [
        *queries,
        *_linear("self_attn.kv_a_proj_with_mqa", latent + rotated, hidden, has_bias=has_bias),
        Parameter(name=f"{_LAYER}.self_attn.kv_a_layernorm.weight", shape=(latent,)),
        *_linear("self_attn.kv_b_proj", heads * (plain + value), latent),
        *_linear("self_attn.o_proj", hidden, heads * value, has_bias=has_bias),
    ]
    return _Attention(
        parameters=tuple(parameters),
        num_kv_heads=1,
        head_dim=latent + rotated,
        qkv=q_size + latent + rotated,
        out=heads * value,
        rotary=rotated,
    )


def _mlps(recipe: Recipe, fields: ConfigFields, hidden: int, num_layers: int) -> Iterator[Parameter]:
    experts = recipe.experts
    num_sparse = sum(_is_sparse(fields, index) for index in range(num_layers)) if experts else 0
    if num_layers > num_sparse:
        yield from _mlp("mlp", hidden, fields.positive("intermediate_size"), num_layers - num_sparse)
    if experts is None or not num_sparse:
        return
    count, width = fields.positive(experts.count), fields.positive(experts.width)
    yield from _mlp("mlp.experts.*", hidden, width, num_sparse * count)
    yield Parameter(name=f"{_LAYER}.mlp.router.weight", shape=(count, hidden), copies=num_sparse)
    if experts.has_correction:
        yield Parameter(name=f"{_LAYER}.mlp.router.correction", shape=(count,), copies=num_sparse)
    shared = fields.natural(experts.shared, default=0) if experts.shared else 0
    if shared:
        yield from _mlp("mlp.shared_experts", hidden, width * shared, num_sparse)


def _is_sparse(fields: ConfigFields, index: int) -> bool:
    is_dense = index < fields.natural("first_k_dense_replace", default=0)
    return not is_dense and index % fields.positive("moe_layer_freq", default=1) == 0


def _inner(recipe: Recipe, fields: ConfigFields) -> int:
    if recipe.experts is None:
        return fields.positive("intermediate_size")
    shared = fields.natural(recipe.experts.shared, default=0) if recipe.experts.shared else 0
    visited = (fields.positive("num_experts_per_tok") + shared) * fields.positive(recipe.experts.width)
    return max(visited, fields.positive("intermediate_size", default=1))


def _windows(fields: ConfigFields, num_layers: int) -> tuple[int | None, ...]:
    """Layers that slide, by `layer_types`, or by the pattern whose last layer sees all."""
    window = fields.positive("sliding_window") if fields.get("sliding_window") is not None else None
    kinds = fields.names("layer_types")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    pattern = fields.positive("sliding_window_pattern", default=num_layers + 1)
    return tuple(window if (index + 1) % pattern else None for index in range(num_layers))


def _vision_elements(fields: ConfigFields, text_hidden: int) -> int:
    """Of a SigLIP tower and Gemma's projector."""
    hidden, inner = fields.positive("hidden_size", default=768), fields.positive("intermediate_size", default=3072)
    patch, image = fields.positive("patch_size", default=16), fields.positive("image_size", default=224)
    embeddings = hidden * 3 * patch**2 + hidden + (image // patch) ** 2 * hidden
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    projector = hidden * text_hidden + hidden
    # The head that pools is one more layer with one norm less, and a query that it learnt.
    head = layer - 2 * hidden + hidden if fields.flag("vision_use_head", default=True) else 0
    return embeddings + fields.positive("num_hidden_layers", default=12) * layer + head + 2 * hidden + projector


def _mlp(name: str, hidden: int, inner: int, copies: int) -> Iterator[Parameter]:
    for part, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        yield Parameter(name=f"{_LAYER}.{name}.{part}.weight", shape=shape, copies=copies)


def _linear(name: str, out: int, inputs: int, *, has_bias: bool = False) -> list[Parameter]:
    weight = Parameter(name=f"{_LAYER}.{name}.weight", shape=(out, inputs))
    return [weight, Parameter(name=f"{_LAYER}.{name}.bias", shape=(out,))] if has_bias else [weight]


def _dtype(fields: ConfigFields) -> str:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in ("float16", "bfloat16") else "float32"
