"""A GGUF file of a Qwen2 shape with random weights of 8 bits, for engines that read such files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

KIND = gguf.GGMLQuantizationType.Q8_0


def write_random_gguf(path: Path, config: Mapping[str, Any], tokenizer: Path, seed: int = 0) -> None:
    """Whole or not at all. The tokens of `tokenizer`, a .gguf file, are filled up to the vocabulary."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    _write_numbers(writer, config)
    _write_tokenizer(writer, gguf.GGUFReader(tokenizer), config["vocab_size"])
    _write_weights(writer, config, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def _write_numbers(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def _write_tokenizer(writer: gguf.GGUFWriter, source: gguf.GGUFReader, vocab_size: int) -> None:
    def field(name: str) -> Any:
        return source.fields[f"tokenizer.ggml.{name}"].contents()

    tokens = field("tokens")
    unused = [f"[UNUSED{number}]" for number in range(vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*field("token_type"), *[gguf.TokenType.UNUSED] * len(unused)])
    writer.add_token_merges(field("merges"))
    writer.add_eos_token_id(field("eos_token_id"))
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def _write_weights(writer: gguf.GGUFWriter, config: Mapping[str, Any], rng: np.random.Generator) -> None:
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv = config["num_key_value_heads"] * (hidden // heads)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = 0.02 * rng.standard_normal((rows, columns), dtype=np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, KIND), raw_dtype=KIND)

    def vector(name: str, size: int, mean: float) -> None:
        writer.add_tensor(name, (mean + 0.1 * rng.standard_normal(size)).astype(np.float32))

    matrix("token_embd", config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"blk.{layer}"
        for name, rows in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv)):
            matrix(f"{block}.{name}", rows, hidden)
            vector(f"{block}.{name}.bias", rows, 0.0)
        matrix(f"{block}.attn_output", hidden, hidden)
        for name in ("ffn_gate", "ffn_up"):
            matrix(f"{block}.{name}", inner, hidden)
        matrix(f"{block}.ffn_down", hidden, inner)
        vector(f"{block}.attn_norm.weight", hidden, 1.0)
        vector(f"{block}.ffn_norm.weight", hidden, 1.0)
    vector("output_norm.weight", hidden, 1.0)
