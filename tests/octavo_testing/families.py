"""Every way in which the served families differ, as a tiny checkpoint each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo_testing.checkpoints import EVEN, LLAMA3_ROPE, ODD, Checkpoint, a_checkpoint

WINDOW = 33
"""A block of 16 and one of 32 each end within it, and prompts are shorter and longer than it."""

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
# As Qwen's instructions say: max_position_embeddings stays at the length trained on.
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
YARN_WHOLE = {
    **YARN_ROPE,
    "rope_theta": 1_000.0,
    "factor": 6.5,
    "original_max_position_embeddings": 100,
    "beta_fast": 5.0,
    "beta_slow": 1.5,
    "truncate": False,
}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
QWEN3_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40}

VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama2": ("LlamaForCausalLM", EVEN, {}),
    "llama-odd-biased": ("LlamaForCausalLM", ODD, {"attention_bias": True, "mlp_bias": True}),
    "llama-attention-bias": ("LlamaForCausalLM", EVEN, {"attention_bias": True}),
    "llama-mlp-bias": ("LlamaForCausalLM", EVEN, {"mlp_bias": True}),
    "llama3": ("LlamaForCausalLM", EVEN, {"rope_parameters": LLAMA3_ROPE}),
    "llama3-tied": ("LlamaForCausalLM", ODD, {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-linear-eps": ("LlamaForCausalLM", EVEN, {"rope_parameters": LINEAR_ROPE, "rms_norm_eps": 0.05}),
    "llama-dynamic": ("LlamaForCausalLM", EVEN, {"rope_parameters": DYNAMIC_ROPE}),
    "llama-multi-head": ("LlamaForCausalLM", EVEN, {"num_key_value_heads": 4}),
    "mistral": ("MistralForCausalLM", ODD, {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", ODD, {"sliding_window": WINDOW}),
    "mistral-window-16": ("MistralForCausalLM", EVEN, {"sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", EVEN, {}),
    "qwen2-odd-tied": ("Qwen2ForCausalLM", {**ODD, "head_dim": 24}, {"tie_word_embeddings": True}),
    "qwen2-max-window-layers": ("Qwen2ForCausalLM", EVEN, {**SLIDING, "max_window_layers": 2}),
    "qwen2-yarn": ("Qwen2ForCausalLM", EVEN, {"rope_parameters": YARN_ROPE, "max_position_embeddings": 128}),
    "qwen3": ("Qwen3ForCausalLM", ODD, {}),
    "qwen3-biased": ("Qwen3ForCausalLM", EVEN, {"head_dim": 32, "attention_bias": True}),
    "qwen3-layer-types": (
        "Qwen3ForCausalLM",
        ODD,
        {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen3-yarn": ("Qwen3ForCausalLM", ODD, {"rope_parameters": YARN_WHOLE, "max_position_embeddings": 100}),
    "qwen3-yarn-mscale": (
        "Qwen3ForCausalLM",
        EVEN,
        {"head_dim": 16, "rope_parameters": {**YARN_ROPE, "mscale": 1.2, "mscale_all_dim": 0.7}},
    ),
    "mixtral": ("MixtralForCausalLM", ODD, {"num_local_experts": 5}),
    "mixtral-window": ("MixtralForCausalLM", EVEN, {"num_experts_per_tok": 3, "sliding_window": WINDOW}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", ODD, QWEN3_EXPERTS),
    "qwen3-moe-renormalised": (
        "Qwen3MoeForCausalLM",
        EVEN,
        {**QWEN3_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [0, 2], "attention_bias": True},
    ),
    "qwen3-moe-every-second-layer": (
        "Qwen3MoeForCausalLM",
        EVEN,
        {**QWEN3_EXPERTS, **SLIDING, "num_experts_per_tok": 1, "decoder_sparse_step": 2, "tie_word_embeddings": True},
    ),
    "qwen2-yarn-attention-factor": (
        "Qwen2ForCausalLM",
        EVEN,
        {"rope_parameters": {**YARN_ROPE, "attention_factor": 0.8}},
    ),
}


def a_variant(folder: Path, name: str) -> Checkpoint:
    """Written by transformers into `folder`."""
    architecture, sizes, overrides = VARIANTS[name]
    return a_checkpoint(folder, architecture, sizes, **overrides)
