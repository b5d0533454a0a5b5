"""GGUF files: our reader against the gguf package's, and models against transformers on the dequantised weights."""

from __future__ import annotations

import copy
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from octavo_server.errors import StartupError
from octavo_server.models.config import load_model_config
from octavo_server.models.gguf_file import read_gguf
from octavo_server.models.loader import load_model
from octavo_server.quantization.gguf_types import GGUF_TYPES, dequantize_rows
from octavo_testing.checkpoints import EVEN, LLAMA3_ROPE, ODD, a_model, prompt_tokens
from octavo_testing.gguf_files import write_gguf
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, worst_logprob_error

# Rows must be whole blocks of 32.
SIZES = {**EVEN, "num_hidden_layers": 2}

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}


def error_of(path: Path, oracle: Any) -> float:
    stepper = Stepper(load_model(path))
    prompts = [prompt_tokens(n, oracle.config.vocab_size) for n in (9, 70)]
    results = stepper.generate(prompts, max_tokens=2, prompt_logprobs=4)
    return max(worst_logprob_error(item, oracle) for item in results)


def with_rounded_matrices(model: Any, kind: Kind) -> Any:
    """The model whose matrices went through `kind` and back, by the gguf package. Heads move whole, so order is free."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                blocks = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy()))
    return rounded


@pytest.mark.parametrize(
    ("architecture", "stored", "sizes", "overrides"),
    [
        ("LlamaForCausalLM", "llama", ODD, {"attention_bias": True, "tie_word_embeddings": True}),
        ("LlamaForCausalLM", "llama", EVEN, {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}),
        ("Qwen2ForCausalLM", "qwen2", EVEN, {}),
        ("Qwen3ForCausalLM", "qwen3", ODD, {"tie_word_embeddings": True}),
        ("Qwen3MoeForCausalLM", "qwen3moe", ODD, {**EXPERTS, "mlp_only_layers": [1]}),
        ("MixtralForCausalLM", "llama", EVEN, {"num_local_experts": 3}),
    ],
)
def test_each_architecture_loads(
    tmp_path: Path, architecture: str, stored: str, sizes: dict[str, Any], overrides: dict[str, Any]
) -> None:
    model = a_model(architecture, sizes, **overrides)
    write_gguf(tmp_path / "model.gguf", model, stored)

    assert error_of(tmp_path / "model.gguf", model) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_blocks_of_experts_are_not_rounded_again(tmp_path: Path, quantization: str) -> None:
    """What is left is the rounding of activations and of the cache."""
    write_gguf(tmp_path / "model.gguf", a_model("Qwen3MoeForCausalLM", SIZES, **EXPERTS), "qwen3moe", Kind.Q4_0)
    prompt = prompt_tokens(70, 512)

    kept, exact = (
        Stepper(load_model(tmp_path / "model.gguf", quantization=how)).generate(
            [prompt], max_tokens=1, prompt_logprobs=0
        )
        for how in (quantization, "none")
    )

    pairs = zip(kept[0].prompt_logprobs, exact[0].prompt_logprobs, strict=True)
    assert 0 < np.mean([abs(a.logprob.logprob - b.logprob.logprob) for a, b in pairs]) < 0.15


def test_an_expert_of_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, a_model("Qwen3MoeForCausalLM", SIZES, **EXPERTS), "qwen3moe")
    name = b"blk.1.ffn_up_exps.weight"
    data = bytearray(path.read_bytes())
    # the type follows the name, how many dimensions there are, and the three of them
    code = data.index(name) + len(name) + 4 + 3 * 8
    data[code : code + 4] = struct.pack("<I", 16)
    path.write_bytes(data)

    with pytest.raises(StartupError, match=r"blk\.1\.ffn_up\.0\.weight is IQ2_XXS; supported are"):
        load_model(path)


def test_experts_that_are_scaled_are_refused(tmp_path: Path) -> None:
    model = a_model("Qwen3MoeForCausalLM", SIZES, **EXPERTS)
    write_gguf(tmp_path / "model.gguf", model, "qwen3moe", add_expert_weights_scale=2.5)

    with pytest.raises(StartupError, match=r"qwen3moe\.expert_weights_scale 2\.5; supported is 1"):
        load_model_config(tmp_path / "model.gguf")


def test_a_gguf_file_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, a_model("LlamaForCausalLM", EVEN), "llama")

    assert load_model(path, load_format="gguf").config.architecture == "LlamaForCausalLM"
    with pytest.raises(StartupError, match=r"--load-format safetensors: .* holds gguf"):
        load_model(path, load_format="safetensors")


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_each_type_equals_the_oracle_on_dequantised_weights(tmp_path: Path, kind: Kind) -> None:
    model = a_model("LlamaForCausalLM", SIZES)
    write_gguf(tmp_path / "model.gguf", model, "llama", kind)

    assert error_of(tmp_path / "model.gguf", with_rounded_matrices(model, kind)) < LOGPROB_TOLERANCE


# Not BF16 (30), which torch reads as it is.
@pytest.mark.parametrize("code", sorted(GGUF_TYPES.keys() - {30}))
def test_blocks_of_each_type_become_the_gguf_packages_numbers(code: int) -> None:
    """Random bytes reach every branch of the K-quants, which the package reads but cannot write."""
    kind = GGUF_TYPES[code]
    blocks = np.random.default_rng(code).integers(0, 64, (6, 2 * kind.block_bytes * 16), dtype=np.uint8)

    values = dequantize_rows(blocks, code)

    expected = gguf.quants.dequantize(blocks, Kind(code)) if code > 1 else blocks.view(f"<f{kind.block_bytes}")
    assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[Kind(code)]
    assert values.shape == (6, 32 * kind.block_size)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected.astype(np.float32))


def test_the_frequencies_that_a_file_carries_are_used(tmp_path: Path) -> None:
    """llama.cpp stores Llama 3.1's scaling as one divisor a frequency."""
    model = a_model("LlamaForCausalLM", EVEN, rope_parameters=LLAMA3_ROPE)
    exponents = torch.arange(0, 16, 2) / 16
    divisors = (1 / 10_000.0**exponents) / model.model.rotary_emb.inv_freq
    write_gguf(tmp_path / "model.gguf", model, "llama", rope_factors=divisors.tolist())

    assert divisors.max() > 7
    assert error_of(tmp_path / "model.gguf", model) < LOGPROB_TOLERANCE


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    model = a_model("LlamaForCausalLM", EVEN, rope_parameters=linear)
    write_gguf(
        tmp_path / "model.gguf",
        model,
        "llama",
        add_rope_scaling_type=gguf.RopeScalingType.LINEAR,
        add_rope_scaling_factor=4.0,
    )

    assert error_of(tmp_path / "model.gguf", model) < LOGPROB_TOLERANCE


def test_yarn_is_read(tmp_path: Path) -> None:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
    }
    model = a_model("Qwen2ForCausalLM", EVEN, rope_parameters=yarn, max_position_embeddings=64)
    scaling = {
        "add_rope_scaling_type": gguf.RopeScalingType.YARN,
        "add_rope_scaling_factor": 4.0,
        "add_rope_scaling_orig_ctx_len": 64,
        "add_rope_scaling_yarn_beta_fast": 4.0,
    }
    write_gguf(tmp_path / "model.gguf", model, "qwen2", **scaling)

    assert load_model_config(tmp_path / "model.gguf").max_positions == 256
    assert error_of(tmp_path / "model.gguf", model) < LOGPROB_TOLERANCE

    write_gguf(tmp_path / "model.gguf", model, "qwen2", **scaling, add_rope_scaling_yarn_attn_factor=1.5)
    with pytest.raises(StartupError, match=r"rope\.scaling\.yarn_attn_factor 1\.5; supported is 1"):
        load_model_config(tmp_path / "model.gguf")


def test_ends_of_an_answer_are_all_read(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "model.gguf",
        a_model("LlamaForCausalLM", SIZES),
        "llama",
        add_bos_token_id=1,
        add_eos_token_id=2,
        add_eot_token_id=9,
    )

    config = load_model_config(tmp_path / "model.gguf")

    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 9))


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", a_model("LlamaForCausalLM", SIZES), "mamba")

    with pytest.raises(StartupError, match=r"mamba.*llama, qwen2, qwen3") as caught:
        load_model(tmp_path / "model.gguf")

    assert caught.value.reason == "UnsupportedArchitecture"


def test_an_unsupported_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, a_model("LlamaForCausalLM", SIZES), "llama", Kind.Q8_0)
    content = path.read_bytes()
    # name, two sizes, then the type: make it Q3_K (11)
    pattern = re.escape(b"blk.1.ffn_up.weight" + (2).to_bytes(4, "little")) + b".{16}"
    match = re.search(pattern, content, re.DOTALL)
    assert match is not None
    path.write_bytes(content[: match.end()] + (11).to_bytes(4, "little") + content[match.end() + 4 :])

    with pytest.raises(StartupError, match=r"blk\.1\.ffn_up\.weight is Q3_K; supported") as caught:
        load_model(path)

    assert caught.value.reason == "ModelInvalid"


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, a_model("LlamaForCausalLM", SIZES), "llama")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])

    with pytest.raises(StartupError) as caught:
        load_model(path)

    assert caught.value.reason == "ModelInvalid"
    assert "model.gguf" in str(caught.value)


def _header(*pairs: bytes, tensors: bytes = b"", num_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(pairs)) + b"".join(pairs) + tensors


def _pair(key: str, code: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", code) + value


@pytest.mark.parametrize(
    "damaged",
    [
        _header(_pair("general.alignment", 4, struct.pack("<I", 0))),
        _header(_pair("general.alignment", 8, struct.pack("<Q", 1) + b"x")),
        _header(_pair("a", 9, struct.pack("<IQ", 9, 1) * 100_000)),
        _header(_pair("a", 9, struct.pack("<IQ", 9, 2**60))),
        _header(_pair("a", 9, struct.pack("<IQ", 4, 2**60))),
        _header(_pair("a", 9, struct.pack("<IQ", 8, 2**62))),
        _header(tensors=struct.pack("<Q1sIIQ", 1, b"t", 0, 0, 0), num_tensors=1),
    ],
    ids=["alignment 0", "alignment x", "nested", "arrays", "numbers", "strings", "a tensor without dimensions"],
)
def test_a_damaged_header_is_the_files_fault(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged)

    with pytest.raises(StartupError, match="damaged") as raised:
        read_gguf(path)

    assert raised.value.reason == "ModelInvalid"


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = a_model("LlamaForCausalLM", SIZES)
    del model.model.layers[1].mlp.up_proj
    write_gguf(tmp_path / "model.gguf", model, "llama")

    with pytest.raises(StartupError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        load_model(tmp_path / "model.gguf")


@pytest.mark.model
def test_the_header_is_what_the_gguf_package_reads(smollm2_path: Path) -> None:
    ours, theirs = read_gguf(smollm2_path), gguf.GGUFReader(smollm2_path)

    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.shape, found.type_code) == (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type)
        assert (found.start, found.num_bytes) == (tensor.data_offset, tensor.n_bytes)
