"""Folders of safetensors: every layout of files loads to the same model, every damage is named."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo_server.errors import StartupError
from octavo_server.models.loader import load_model
from octavo_testing.checkpoints import EVEN, a_model, prompt_tokens
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, worst_logprob_error

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Any:
    return a_model("LlamaForCausalLM", EVEN, num_hidden_layers=2)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def error_of(folder: Path, oracle: Any) -> float:
    stepper = Stepper(load_model(folder))
    prompt = prompt_tokens(30, oracle.config.vocab_size)
    return worst_logprob_error(stepper.generate([prompt], max_tokens=2, prompt_logprobs=4)[0], oracle)


def refusal(folder: Path) -> StartupError:
    with pytest.raises(StartupError) as caught:
        load_model(folder)
    return caught.value


def test_shards_with_an_index_load(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="150KB")

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert error_of(tmp_path, model) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load(model: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """Computed in float32, so a file of rounded weights equals the oracle with rounded weights."""
    copy.deepcopy(model).to(dtype).save_pretrained(tmp_path)
    # Not `.to(dtype)`, which would round the rotary frequencies too.
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(dtype))

    assert error_of(tmp_path, rounded) < LOGPROB_TOLERANCE


def test_a_tied_head_is_the_embedding_though_its_key_is_present(tmp_path: Path) -> None:
    tied = a_model("LlamaForCausalLM", EVEN, num_hidden_layers=2, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(512, 64)}))

    assert error_of(tmp_path, tied) < LOGPROB_TOLERANCE


def test_an_extra_tensor_is_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(
        folder,
        lambda tensors: tensors.update(
            {"model.extra": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        ),
    )

    with caplog.at_level(logging.WARNING):
        load_model(folder)

    (record,) = caplog.records
    assert record.__dict__["tensors"] == ["model.extra"]


def test_a_sound_checkpoint_loads_without_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_model(folder)

    assert caplog.records == []


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.__delitem__(name))

    error = refusal(folder)

    assert (error.reason, f"tensor {name} is missing" in str(error)) == ("ModelInvalid", True)


def test_a_misshaped_tensor_is_named_with_both_shapes(folder: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(16, 64)}))

    error = refusal(folder)

    assert error.reason == "ModelInvalid"
    assert f"{name} has shape [16, 64], the configuration needs [32, 64]" in str(error)


def test_a_tensor_of_integers_is_named(folder: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(64, 128, dtype=torch.int8)}))

    error = refusal(folder)

    assert (error.reason, f"{name} is I8" in str(error)) == ("ModelInvalid", True)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    error = refusal(folder)

    assert (error.reason, str(path) in str(error)) == ("ModelInvalid", True)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    error = refusal(folder)

    assert (error.reason, "model.safetensors" in str(error)) == ("ModelNotFound", True)


def test_a_missing_shard_and_a_wrong_index_are_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="150KB")
    index = tmp_path / "model.safetensors.index.json"
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    content = first.read_bytes()

    first.unlink()
    error = refusal(tmp_path)
    assert (error.reason, first.name in str(error)) == ("ModelNotFound", True)

    first.write_bytes(content)
    listing = json.loads(index.read_text())
    listing["weight_map"]["model.unheard.of"] = first.name
    index.write_text(json.dumps(listing))
    error = refusal(tmp_path)
    assert (error.reason, "model.unheard.of" in str(error)) == ("ModelInvalid", True)


def test_progress_rises_to_the_whole(folder: Path) -> None:
    calls: list[tuple[int, int]] = []

    load_model(folder, on_progress=lambda done, total: calls.append((done, total)))

    sizes = [tensor.numel() * 4 for tensor in load_file(folder / "model.safetensors").values()]
    assert calls[0] == (0, sum(sizes))
    assert calls[-1] == (sum(sizes), sum(sizes))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_each_expert_moves_the_progress(tmp_path: Path) -> None:
    """A layer of a large mixture takes longer to read than a server may stand still."""
    a_model("MixtralForCausalLM", EVEN, num_hidden_layers=1, num_local_experts=16).save_pretrained(tmp_path)
    steps: set[int] = set()

    load_model(tmp_path, on_progress=lambda done, _: steps.add(done))

    assert len(steps) > 16 * 3


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(StartupError, match="int3"):
        load_model(folder, dtype="int3")


def test_an_experts_missing_tensor_is_named(tmp_path: Path) -> None:
    a_model("MixtralForCausalLM", EVEN, num_hidden_layers=2).save_pretrained(tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.5.w3.weight"
    rewrite(tmp_path, lambda tensors: tensors.pop(name))

    error = refusal(tmp_path)

    assert error.reason == "ModelInvalid"
    assert f"tensor {name} is missing" in str(error)
