"""Says a GGUF file's metadata in the words of config.json and generation_config.json, so that one parser reads both."""

from __future__ import annotations

from typing import Any

from octavo_server.errors import StartupError
from octavo_server.models.gguf_file import GGUFFile
from octavo_server.models.registry import GGUF_ARCHITECTURES

# config.json's key -> the metadata key after the architecture's prefix.
_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_ROPE_SCALING_KEYS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
# What llama.cpp multiplies in and config.json has no word for.
_NEUTRAL_YARN = {"attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0}
_SAMPLING_KEYS = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """What config.json of the same model would say.

    Raises:
        StartupError: UnsupportedArchitecture.
    """
    prefix = file.metadata.get("general.architecture")
    architecture = GGUF_ARCHITECTURES.get(str(prefix))
    if architecture is None:
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        message = f"{file.path.name} is of architecture {prefix!r}; supported GGUF architectures are {known}"
        raise StartupError("UnsupportedArchitecture", message)
    if architecture == "LlamaForCausalLM" and file.metadata.get(f"{prefix}.expert_count"):
        # as Mixtral is converted
        architecture = "MixtralForCausalLM"
    config: dict[str, Any] = {"architectures": [architecture], "hidden_act": "silu", "torch_dtype": "float16"}
    for key, suffix in _KEYS.items():
        value = file.metadata.get(f"{prefix}.{suffix}")
        if value is not None:
            config[key] = value
    if isinstance(config.get("num_attention_heads"), list) or isinstance(config.get("num_key_value_heads"), list):
        message = f"{file.path.name} has another number of heads in each layer, which is not supported"
        raise StartupError("UnsupportedArchitecture", message)
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    if "token_embd.weight" in file.tensors:
        config["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    config |= _experts(file, str(prefix))
    config["rope_scaling"] = _rope_scaling(file, str(prefix))
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    config["sliding_window"] = file.metadata.get(f"{prefix}.attention.sliding_window")
    config["bos_token_id"] = file.metadata.get("tokenizer.ggml.bos_token_id")
    config["eos_token_id"] = end_token_ids(file)
    return config


def _experts(file: GGUFFile, prefix: str) -> dict[str, Any]:
    """What llama.cpp knows of a mixture without being told: which layers are one, and that shares add up to 1."""
    num_layers = file.metadata.get(f"{prefix}.block_count")
    if not file.metadata.get(f"{prefix}.expert_count") or not isinstance(num_layers, int):
        return {}
    scale = file.metadata.get(f"{prefix}.expert_weights_scale", 1.0)
    if scale not in (0.0, 1.0):
        message = f"{file.path.name} has {prefix}.expert_weights_scale {scale}; supported is 1"
        raise StartupError("UnsupportedArchitecture", message)
    dense = [index for index in range(num_layers) if f"blk.{index}.ffn_gate_inp.weight" not in file.tensors]
    return {"mlp_only_layers": dense, "norm_topk_prob": True}


def gguf_generation_config(file: GGUFFile) -> dict[str, Any]:
    """The sampling defaults that newer files carry."""
    found = {key: file.metadata.get(f"general.sampling.{suffix}") for key, suffix in _SAMPLING_KEYS.items()}
    return {key: value for key, value in found.items() if value is not None}


def end_token_ids(file: GGUFFile) -> list[int]:
    """Tokens that end an answer: end of sequence, of turn, of message."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [file.metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return list(dict.fromkeys(int(item) for item in ids if item is not None))


def _rope_scaling(file: GGUFFile, prefix: str) -> dict[str, Any] | None:
    kind = file.metadata.get(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        # Files older than that key.
        factor = file.metadata.get(f"{prefix}.rope.scale_linear")
        return None if factor is None else {"rope_type": "linear", "factor": factor}
    scaling = {
        key: file.metadata.get(f"{prefix}.rope.scaling.{suffix}")
        for key, suffix in _ROPE_SCALING_KEYS.items()
        if kind == "yarn" or key == "factor"
    }
    for suffix, neutral in _NEUTRAL_YARN.items():
        value = file.metadata.get(f"{prefix}.rope.scaling.{suffix}", neutral)
        if value != neutral:
            message = f"{file.path.name} has rope.scaling.{suffix} {value}; supported is {neutral}"
            raise StartupError("UnsupportedArchitecture", message)
    found = {key: value for key, value in scaling.items() if value is not None}
    return {"rope_type": kind, "factor": 1.0, **found}
