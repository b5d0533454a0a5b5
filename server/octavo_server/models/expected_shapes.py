"""Which tensors a checkpoint must hold: what is read, sized and made up at random. Pure, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.models.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of `config` must hold."""
    hidden = config.hidden_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    projections = {
        "self_attn.q_proj": (q_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q_size, config.o_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.family.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}"
        shapes |= {f"{prefix}.{name}.weight": (size,) for name, size in norms.items()}
        for name, (out_size, in_size, has_bias) in [*projections.items(), *_mlp(config, index)]:
            shapes[f"{prefix}.{name}.weight"] = (out_size, in_size)
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = (out_size,)
    return shapes


def _mlp(config: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, int, bool]]]:
    """Matrices of a layer's MLP or of its experts: name, (outputs, inputs, whether it has a bias)."""
    hidden, inner, names, experts = config.hidden_size, config.intermediate_size, config.family.experts, config.experts
    if experts is None or names is None or layer not in experts.layers:
        yield "mlp.gate_proj", (inner, hidden, config.mlp_bias)
        yield "mlp.up_proj", (inner, hidden, config.mlp_bias)
        yield "mlp.down_proj", (hidden, inner, config.mlp_bias)
        return
    yield f"{names.block}.gate", (experts.num_experts, hidden, False)
    for expert in range(experts.num_experts):
        prefix = f"{names.block}.experts.{expert}"
        yield f"{prefix}.{names.gate}", (experts.inner_size, hidden, False)
        yield f"{prefix}.{names.up}", (experts.inner_size, hidden, False)
        yield f"{prefix}.{names.down}", (hidden, experts.inner_size, False)
