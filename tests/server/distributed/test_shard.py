"""What each rank reads and keeps: together the whole model, each tensor's part alone, and as many bytes as planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from octavo_kernels.torch_backend import TorchLinear
from octavo_server.config import EngineConfig
from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.models.safetensors_weights import SafetensorsWeights
from octavo_server.models.shard import WHOLE, Cut
from octavo_server.plan.command import plan_model
from octavo_testing.checkpoints import ODD, a_checkpoint
from octavo_testing.gguf_files import RandomModel, write_gguf
from octavo_testing.held_bytes import held_bytes
from octavo_testing.model_shapes import SMALL_LLAMA, SMALL_MIXTRAL, SMALL_QWEN3_MOE, a_config
from octavo_testing.ranks import parts_of

BIASED = {**ODD, "num_key_value_heads": 2, "intermediate_size": 101, "attention_bias": True, "mlp_bias": True}


def dense(loaded: LoadedModel, layer: int, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    handle = getattr(loaded.decoder.weights.layers[layer], name)
    assert isinstance(handle, TorchLinear)
    return handle.weight, handle.bias


def bias_of(loaded: LoadedModel, name: str) -> torch.Tensor:
    found = dense(loaded, 1, name)[1]
    assert found is not None
    return found


def split(qkv: torch.Tensor, loaded: LoadedModel) -> tuple[torch.Tensor, ...]:
    """Rows of q, k and v apart."""
    kv = loaded.decoder.num_kv_heads * loaded.config.head_dim
    return torch.split(qkv, [loaded.decoder.num_heads * loaded.config.head_dim, kv, kv])


def check_whole(whole: LoadedModel, parts: list[LoadedModel]) -> None:
    """Parts beside each other are the whole, and what they are filled up with is zero."""
    config = whole.config
    embedding = torch.cat([part.decoder.weights.embedding for part in parts])
    assert torch.equal(embedding[: config.vocab_size], whole.decoder.weights.embedding)
    assert not embedding[config.vocab_size :].any()
    for layer in range(config.num_layers):
        pieces = [split(dense(part, layer, "qkv")[0], part) for part in parts]
        together = torch.cat([torch.cat(rows) for rows in zip(*pieces, strict=True)])
        assert torch.equal(together, dense(whole, layer, "qkv")[0])
        output = torch.cat([dense(part, layer, "output")[0] for part in parts], dim=1)
        assert torch.equal(output, dense(whole, layer, "output")[0])
        down = torch.cat([dense(part, layer, "down")[0] for part in parts], dim=1)
        assert torch.equal(down[:, : config.intermediate_size], dense(whole, layer, "down")[0])
        assert not down[:, config.intermediate_size :].any()
        halves = [dense(part, layer, "gate_up")[0].chunk(2) for part in parts]
        gate, up = (torch.cat(rows)[: config.intermediate_size] for rows in zip(*halves, strict=True))
        assert torch.equal(torch.cat([gate, up]), dense(whole, layer, "gate_up")[0])


def test_parts_of_a_folder_are_the_whole(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", BIASED)

    check_whole(load_model(checkpoint.path), parts_of(checkpoint.path, 2))


def test_a_bias_of_what_is_added_up_is_added_once(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", BIASED)
    whole, (first, second) = load_model(checkpoint.path), parts_of(checkpoint.path, 2)

    for name in ("output", "down"):
        assert torch.equal(bias_of(first, name), bias_of(whole, name))
        assert dense(second, 1, name)[1] is None
    pieces = zip(split(bias_of(first, "qkv"), first), split(bias_of(second, "qkv"), second), strict=True)
    assert torch.equal(torch.cat([torch.cat(rows) for rows in pieces]), bias_of(whole, "qkv"))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_0, Kind.Q8_0, Kind.BF16])
def test_parts_of_a_gguf_file_are_the_whole(tmp_path: Path, kind: Kind) -> None:
    """The rows of q and k are stored in another order, which is put right head by head; columns are cut in blocks of 32
    and, on four ranks, of o within one."""
    sizes = {**SMALL_LLAMA, "num_hidden_layers": 2, "head_dim": 24, "num_attention_heads": 8, "num_key_value_heads": 4}
    write_gguf(tmp_path / "model.gguf", RandomModel(sizes), "llama", kind)
    whole = load_model(tmp_path / "model.gguf")

    for size in (2, 4):
        check_whole(whole, parts_of(tmp_path / "model.gguf", size))


def test_where_there_are_fewer_key_value_heads_than_ranks_several_have_the_same(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "Qwen3ForCausalLM", {**ODD, "num_attention_heads": 8, "num_key_value_heads": 2})
    whole, parts = load_model(checkpoint.path), parts_of(checkpoint.path, 4)

    heads = split(dense(whole, 0, "qkv")[0], whole)[1].chunk(2)
    for rank, part in enumerate(parts):
        assert part.decoder.num_kv_heads == 1
        assert torch.equal(split(dense(part, 0, "qkv")[0], part)[1], heads[rank // 2])


def test_of_a_folder_only_a_ranks_own_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", BIASED)
    read = SafetensorsWeights.read
    num_read: dict[str, int] = {}

    def spy(self: SafetensorsWeights, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        values = read(self, name, cut)
        num_read[name] = values.numel()
        return values

    monkeypatch.setattr(SafetensorsWeights, "read", spy)
    (_, last) = parts_of(checkpoint.path, 2)

    source = SafetensorsWeights(checkpoint.path)
    cut_up = [name for name in num_read if "norm" not in name and not name.endswith(("o_proj.bias", "down_proj.bias"))]
    assert len(cut_up) == 2 + 3 * (4 + 3 + 5)
    for name in cut_up:
        assert num_read[name] <= -(-source.num_bytes(name) // 4 // 2) + source.shape(name)[-1], name
    assert last.decoder.communicator.rank == 1


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "bfloat16"}, {"quantization": "int4"}, {"quantization": "int8"}], ids=str
)
@pytest.mark.parametrize("sizes", [SMALL_LLAMA, SMALL_QWEN3_MOE, SMALL_MIXTRAL], ids=["llama", "qwen3-moe", "mixtral"])
def test_each_rank_holds_what_is_planned(tmp_path: Path, sizes: dict[str, Any], settings: dict[str, Any]) -> None:
    folder = a_config(tmp_path, {**sizes, "num_hidden_layers": 2, "num_key_value_heads": 2})
    config = EngineConfig(model=str(folder), kv_cache_memory_bytes=2**22, device="cpu", **settings)
    plan = plan_model(config, gpu="cpu", ways=2).memory
    assert plan.kv is not None

    for part in parts_of(folder, 2, load_format="dummy", **settings):
        cache = part.backend.allocate_kv_cache(part.kv_cache_spec(plan.kv.num_blocks, config.block_size))
        assert plan.weight_bytes + plan.rotary_bytes == pytest.approx(held_bytes(part.decoder.weights), rel=0.01)
        assert plan.weight_bytes == pytest.approx(part.num_weight_bytes, rel=0.01)
        assert plan.kv_bytes == pytest.approx(held_bytes(cache), rel=0.01)
        assert plan.kv_shape.token_bytes == part.kv_bytes_per_token


def test_random_weights_are_those_of_one_rank(tmp_path: Path) -> None:
    folder = a_config(tmp_path, {**SMALL_LLAMA, "num_hidden_layers": 2})

    check_whole(load_model(folder, load_format="dummy"), parts_of(folder, 2, load_format="dummy"))


def test_a_width_that_has_no_whole_groups_on_a_rank_stays_exact(tmp_path: Path) -> None:
    """96 inner elements are three groups of 32, of which nobody can have one and a half."""
    folder = a_config(tmp_path, {**SMALL_LLAMA, "num_hidden_layers": 1, "intermediate_size": 96})

    (first, _) = parts_of(folder, 2, load_format="dummy", quantization="int8")

    layer = first.decoder.weights.layers[0]
    assert isinstance(layer.down, TorchLinear)
    assert not isinstance(layer.gate_up, TorchLinear)
    plan = plan_model(EngineConfig(model=str(folder), quantization="int8"), gpu="cpu", ways=2).memory
    assert plan.weight_bytes == pytest.approx(first.num_weight_bytes, rel=0.01)


def test_parts_of_a_folder_of_several_files_are_the_whole(tmp_path: Path) -> None:
    """Shards of files and shards of ranks have nothing to do with each other."""
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", BIASED)
    whole = load_model(checkpoint.path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    checkpoint.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 30

    check_whole(whole, parts_of(tmp_path, 2))
