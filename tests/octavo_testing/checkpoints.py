"""Tiny random checkpoints of each architecture, made by transformers itself, and the log-probabilities it gives them.

transformers is the oracle: float32, sdpa. Every 1-D parameter is perturbed, since norm weights are ones and biases zero
by default, and bugs in them would stay hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Even sizes, and odd ones that catch kernels padded to powers of two.
EVEN: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ODD: dict[str, Any] = {
    **EVEN,
    "vocab_size": 517,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 24,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder that `load_model` takes and the transformers model that wrote it."""

    path: Path
    model: Any


def a_model(architecture: str, sizes: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """A seeded transformers model; `overrides` are fields of its config."""
    import transformers

    model_class = getattr(transformers, architecture)
    values = {"initializer_range": 0.25, "bos_token_id": 1, "eos_token_id": 2, **(sizes or EVEN), **overrides}
    config = model_class.config_class(**values)
    config._attn_implementation = "sdpa"
    # its grouped products take no odd widths
    config._experts_implementation = "eager"
    torch.manual_seed(7)
    model = model_class(config).to(torch.float32).eval()
    perturb(model)
    return model


def perturb(model: Any) -> None:
    """Adds 0.15 * randn to every 1-D parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.15 * torch.randn_like(parameter)


def a_checkpoint(
    folder: Path, architecture: str = "LlamaForCausalLM", sizes: dict[str, Any] | None = None, **overrides: Any
) -> Checkpoint:
    """`a_model`, saved as one float32 safetensors file."""
    model = a_model(architecture, sizes, **overrides)
    model.save_pretrained(folder)
    return Checkpoint(path=folder, model=model)


def prompt_tokens(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, vocab_size, (length,), generator=generator).tolist()


def oracle_logprobs(model: Any, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids), vocab] float32: transformers' log-probabilities after each token."""
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits.float().log_softmax(dim=-1)
