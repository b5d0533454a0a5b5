"""Writes GGUF files the way llama.cpp's converter does: its names, its order of rows, its tokenizer keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from octavo_server.models.config import parse_model_config
from octavo_server.models.expected_shapes import expected_shapes

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    other_kinds: Mapping[str, GGMLQuantizationType] | None = None,
    rope_factors: Iterable[float] | None = None,
    **metadata: Any,
) -> None:
    """`model` as transformers has it; matrices of type `kind`, or what `other_kinds` says of a module's last name.

    Vectors are float32.
    """
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if getattr(config, "head_dim", None) else _head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "num_experts_per_tok", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    for key, value in metadata.items():
        getattr(writer, key)(value)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(list(rope_factors), dtype=np.float32))
    for name, tensor in _as_converted(model.state_dict()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().clone()
        if architecture == "llama" and "q_proj" in name:
            values = pairs_together(values, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            values = pairs_together(values, config.num_key_value_heads)
        _add(writer, stored_name(name), values.numpy(), (other_kinds or {}).get(name.split(".")[-2], kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_converted(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """transformers keeps all experts of a layer in two tensors, the converter writes three."""
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True):
                yield f"{name.removesuffix('gate_up_proj')}{part}.weight", half
        else:
            yield f"{name}.weight" if name.endswith("experts.down_proj") else name, tensor


class RandomModel:
    """What `write_gguf` reads of a model, of the sizes in a config.json, without transformers, which takes long to import."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        parsed = parse_model_config(values, {}, source="random")
        self.config = SimpleNamespace(
            **{"rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 10_000.0}, "head_dim": parsed.head_dim, **values}
        )
        self.config.tie_word_embeddings = parsed.tie_word_embeddings
        generator = torch.Generator().manual_seed(7)
        self._tensors = {
            name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(parsed).items()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._tensors


def stored_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, index, rest = stem.split(".", 3)
    return f"blk.{index}.{_NAMES[rest]}.{kind}"


def pairs_together(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbours: row i and row i + d/2 of a head become rows 2i and 2i + 1."""
    half = rows.shape[0] // num_heads // 2
    order = [
        head * 2 * half + pair + part * half for head in range(num_heads) for pair in range(half) for part in (0, 1)
    ]
    return rows[order].contiguous()


def _add(writer: GGUFWriter, name: str, values: Any, kind: GGMLQuantizationType) -> None:
    stored = GGMLQuantizationType.F32 if values.ndim == 1 else kind
    writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)


def _head_dim(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)
