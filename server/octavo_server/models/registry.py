"""The decoders that we serve, one row a family: what each adds to the common decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Bias = Literal["never", "always", "config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """What config.json and the checkpoint of a mixture of experts call things."""

    count: str
    width: str
    block: str
    """The module of a layer that holds router and experts."""
    gate: str
    up: str
    down: str
    """An expert's three matrices."""
    always_renormalizes: bool = False
    """The shares of the chosen experts add up to 1; else as `norm_topk_prob` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What differs between pre-norm, gated-SiLU, rotary decoders."""

    qkv_bias: Bias = "never"
    """"config": as `attention_bias` says."""
    o_bias: Bias = "never"
    mlp_bias: Bias = "never"
    """"config": as `mlp_bias` says."""
    qk_norm: bool = False
    """RMS norm of each head of q and k before the rotation."""
    sliding_window: Literal["ignored", "always", "switched", "by_layer"] = "ignored"
    """Whether `sliding_window` is in force: in all layers, in all where `use_sliding_window` is set, or where that is set
    in those that `layer_types` names, or, without such a list, from layer `max_window_layers` on."""
    experts: ExpertNames | None = None
    """Of a family whose layers may be mixtures of experts."""
    gguf_rows_permuted: bool = False
    """The file stores the rows of q and k with the halves of each rotary pair next to each other."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that config.json may leave out."""


# Keys are the names in config.json's `architectures`.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        qkv_bias="config",
        o_bias="config",
        mlp_bias="config",
        gguf_rows_permuted=True,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    ),
    "MistralForCausalLM": Family(
        sliding_window="always",
        gguf_rows_permuted=True,
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
    "Qwen2ForCausalLM": Family(
        qkv_bias="always",
        sliding_window="by_layer",
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "Qwen3ForCausalLM": Family(
        qkv_bias="config",
        o_bias="config",
        qk_norm=True,
        sliding_window="by_layer",
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "MixtralForCausalLM": Family(
        sliding_window="always",
        gguf_rows_permuted=True,
        experts=ExpertNames(
            count="num_local_experts",
            width="intermediate_size",
            block="block_sparse_moe",
            gate="w1",
            up="w3",
            down="w2",
            always_renormalizes=True,
        ),
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "Qwen3MoeForCausalLM": Family(
        qkv_bias="config",
        o_bias="config",
        qk_norm=True,
        sliding_window="switched",
        experts=ExpertNames(
            count="num_experts",
            width="moe_intermediate_size",
            block="mlp",
            gate="gate_proj",
            up="up_proj",
            down="down_proj",
        ),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
}

# `general.architecture` of a GGUF file -> key of FAMILIES.
GGUF_ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
