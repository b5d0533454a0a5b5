"""What config.json, generation_config.json and GGUF metadata mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from octavo_server.errors import StartupError
from octavo_server.layers.rope import RopeConfig
from octavo_server.models.config import (
    GenerationDefaults,
    ModelConfig,
    load_model_config,
    parse_model_config,
)
from octavo_server.models.experts_config import ExpertsConfig


def a_config(**changes: Any) -> dict[str, Any]:
    """config.json of a small Llama, in the hub's spelling; a change to None removes the key."""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def parse(generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    return parse_model_config(a_config(**changes), generation or {}, source="config.json")


def refusal(**changes: Any) -> StartupError:
    with pytest.raises(StartupError) as caught:
        parse(**changes)
    return caught.value


def test_both_spellings_of_llama3_mean_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }

    hub = parse(rope_scaling={"rope_type": "llama3", **scaling})
    new = parse(
        rope_theta=None,
        torch_dtype=None,
        dtype="bfloat16",
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling},
    )

    assert hub == new
    assert new.rope == RopeConfig(
        kind="llama3",
        theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )


def test_the_oldest_spelling_of_linear_scaling_is_read() -> None:
    assert parse(rope_scaling={"type": "linear", "factor": 2.0}).rope == RopeConfig(
        kind="linear", theta=500000.0, factor=2.0
    )


def test_everything_a_decoder_needs_is_read() -> None:
    config = parse(head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)

    assert (config.vocab_size, config.hidden_size, config.num_layers) == (512, 64, 2)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size) == (4, 2, 24, 128)
    assert (config.rms_norm_eps, config.max_positions, config.dtype) == (1e-5, 2048, "bfloat16")
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.tie_word_embeddings) == (True, True, True, True)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 5))
    assert config.kv_bytes_per_token(4) == 2 * 2 * 2 * 24 * 4


def test_left_out_keys_have_the_architectures_defaults() -> None:
    llama = parse(num_key_value_heads=None, rms_norm_eps=None, rope_theta=None)
    qwen3 = parse(architectures=["Qwen3ForCausalLM"])

    assert (llama.num_kv_heads, llama.rms_norm_eps, llama.rope.theta, llama.head_dim) == (4, 1e-6, 10_000.0, 16)
    assert qwen3.head_dim == 128


def test_biases_follow_the_family() -> None:
    qwen2 = parse(architectures=["Qwen2ForCausalLM"], attention_bias=False)

    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)


def test_generation_config_adds_ends_and_defaults() -> None:
    generation = {"eos_token_id": 7, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 64}

    config = parse(generation, eos_token_id=2)

    assert config.eos_token_ids == (7, 2)
    assert config.generation == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=64)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def test_both_spellings_of_yarn_mean_the_same() -> None:
    hub = parse(rope_scaling={**YARN, "rope_type": None, "type": "yarn"})
    new = parse(rope_theta=None, rope_parameters={**YARN, "rope_theta": 500000.0})

    assert hub == new
    assert (new.rope.kind, new.rope.factor, new.rope.original_max_positions) == ("yarn", 4.0, 1024)
    assert new.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        # Qwen's instructions: the scaling is added, max_position_embeddings stays.
        ({"max_position_embeddings": 1024, "rope_scaling": YARN}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, 4096),
        ({"max_position_embeddings": 1280, "rope_scaling": YARN}, 4096),
        ({"max_position_embeddings": 9000, "rope_scaling": YARN}, 9000),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, 2048),
    ],
)
def test_the_context_is_as_long_as_the_rotary_embedding_is_made_for(changes: dict[str, Any], limit: int) -> None:
    assert parse(**changes).max_positions == limit


def test_yarns_factor_follows_from_the_lengths_where_it_is_left_out() -> None:
    config = parse(
        max_position_embeddings=4096, rope_scaling={"type": "yarn", "original_max_position_embeddings": 1024}
    )

    assert (config.rope.factor, config.max_positions) == (4.0, 4096)


def test_a_key_that_the_rotary_embedding_does_not_read_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    parse(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta_fast": 3})

    (record,) = caplog.records
    assert record.__dict__["keys"] == ["beta_fast"]


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 256}, (256,) * 4),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, (None,) * 4),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 256}, (None,) * 4),
        ({"sliding_window": 256, "use_sliding_window": False}, (None,) * 4),
        ({"sliding_window": 256, "use_sliding_window": True}, (None,) * 4),
        ({"sliding_window": 256, "use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 256)),
        ({"sliding_window": 256, "use_sliding_window": True, "max_window_layers": 0}, (256,) * 4),
        (
            {
                "sliding_window": 256,
                "use_sliding_window": True,
                "max_window_layers": 3,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (256, None, 256, None),
        ),
        ({"sliding_window": 256, "layer_types": ["full_attention"] * 4}, (None,) * 4),
    ],
)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_each_layer_has_the_window_that_transformers_gives_it(
    architecture: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    config = parse(**{"architectures": [architecture], "num_hidden_layers": 4, **changes})

    assert config.windows == windows
    assert config.max_positions == 2048


def test_an_explicit_null_window_is_off() -> None:
    raw = {**a_config(architectures=["MistralForCausalLM"], max_position_embeddings=8192), "sliding_window": None}

    assert parse_model_config(raw, {}, source="config.json").windows == (None, None)
    del raw["sliding_window"]
    # transformers' own default where the key is absent
    assert parse_model_config(raw, {}, source="config.json").windows == (4096, 4096)


def test_an_unknown_architecture_is_refused_by_name_with_those_supported() -> None:
    error = refusal(architectures=["BartForCausalLM"])

    assert error.reason == "UnsupportedArchitecture"
    assert "BartForCausalLM" in str(error)
    assert "LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM" in str(error)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "'mrope' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer (full_attention)"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention", "linear"]}, "names linear"),
        (
            {
                "architectures": ["MistralForCausalLM"],
                "sliding_window": 64,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "layer_types differs between layers",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_what_would_change_the_result_is_refused(changes: dict[str, Any], named: str) -> None:
    error = refusal(**changes)

    assert error.reason == "UnsupportedArchitecture"
    assert named in str(error)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0, must be above 0"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not an object"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": -1}}, "beta_fast is -1, must be above 0"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, more than 10000"),
        ({"head_dim": 25}, "head_dim 25 is odd"),
        ({"vocab_size": 10**400}, "vocab_size is not a number between"),
        ({"rope_scaling": {"type": "yarn", "factor": 10**17}}, "tokens, is no context"),
        ({"hidden_size": 3}, "head_dim is 0"),
        ({"rope_theta": 1}, "rope_theta is 1, must be above 1"),
        ({"rope_theta": math.nan}, "rope_theta is not a number between"),
        ({"max_position_embeddings": math.inf}, "max_position_embeddings is not a number between"),
        ({"attention_bias": "no"}, "attention_bias is 'no', not true or false"),
        ({"architectures": "LlamaForCausalLM"}, "not a list of names"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id is ['</s>'], not a token id"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window is 0"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "has 1 entries"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["sliding_attention"] * 2}, "no sliding window"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers is -1",
        ),
    ],
)
def test_a_damaged_value_is_refused_with_its_key(changes: dict[str, Any], named: str) -> None:
    error = refusal(**changes)

    assert error.reason == "ModelInvalid"
    assert "config.json" in str(error)
    assert named in str(error)


def test_a_location_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    empty, notes = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    notes.write_text("no model")

    for location, named in [(tmp_path / "gone", "does not exist"), (empty, "neither"), (notes, "not a .gguf")]:
        with pytest.raises(StartupError, match=named) as caught:
            load_model_config(location)
        assert caught.value.reason == "ModelNotFound"


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(StartupError, match=r"config\.json") as caught:
        load_model_config(tmp_path)

    assert caught.value.reason == "ModelInvalid"


def test_a_folder_with_one_gguf_means_that_file_and_with_two_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(StartupError, match="truncated") as caught:
        load_model_config(tmp_path)
    assert caught.value.reason == "ModelInvalid"

    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(StartupError, match=r"a\.gguf, b\.gguf"):
        load_model_config(tmp_path)


def test_a_folder_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(a_config()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"min_p": 0.05}))

    assert load_model_config(tmp_path).generation.min_p == 0.05


QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 6,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
}


def test_experts_stand_in_the_layers_that_are_named() -> None:
    every, second, some = (
        parse(**QWEN3_MOE, **keys).experts
        for keys in ({}, {"decoder_sparse_step": 2}, {"decoder_sparse_step": 2, "mlp_only_layers": [1, 2]})
    )

    assert every == ExpertsConfig(
        num_experts=16, num_chosen=4, inner_size=96, renormalizes=False, layers=frozenset(range(6))
    )
    assert second is not None
    assert second.layers == {1, 3, 5}
    assert some is not None
    assert some.layers == {3, 5}


def test_both_spellings_of_the_number_of_experts_mean_the_same() -> None:
    hub = parse(**QWEN3_MOE, norm_topk_prob=True)
    new = parse(**{**QWEN3_MOE, "num_experts": None, "num_local_experts": 16}, norm_topk_prob=True)

    assert hub == new
    assert hub.experts is not None
    assert hub.experts.renormalizes


def test_mixtral_has_experts_as_wide_as_its_mlp_and_always_divides_their_shares() -> None:
    mixtral = parse(architectures=["MixtralForCausalLM"], rope_theta=None, rms_norm_eps=None)

    assert mixtral.experts == ExpertsConfig(
        num_experts=8, num_chosen=2, inner_size=128, renormalizes=True, layers=frozenset({0, 1})
    )
    assert (mixtral.rope.theta, mixtral.rms_norm_eps) == (1_000_000.0, 1e-5)


@pytest.mark.parametrize("keys", [{"num_experts": 0}, {"mlp_only_layers": [0, 1, 2, 3, 4, 5]}])
def test_a_mixture_without_experts_is_dense(keys: dict[str, Any]) -> None:
    assert parse(**{**QWEN3_MOE, **keys}).experts is None


def test_windows_of_qwen3_moe_are_switched_for_all_layers_at_once() -> None:
    window = {"sliding_window": 48, "max_window_layers": 3}

    assert parse(**QWEN3_MOE, **window).windows == (None,) * 6
    assert parse(**QWEN3_MOE, **window, use_sliding_window=True).windows == (48,) * 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_experts_per_tok": 17}, "num_experts_per_tok is 17, more than the 16 experts of num_experts"),
        ({"mlp_only_layers": [6]}, "mlp_only_layers is [6], not a list of layers from 0 to 5"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is 3, not a list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0, not a positive integer"),
    ],
)
def test_experts_that_contradict_themselves_are_refused(keys: dict[str, Any], message: str) -> None:
    error = refusal(**{**QWEN3_MOE, **keys})

    assert error.reason == "ModelInvalid"
    assert message in str(error)
