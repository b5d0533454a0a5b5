"""`--quantization` with the kernels of GPUs on several ranks: as one rank, or as near to what is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.triton_backend import TritonBackend
from octavo_kernels.triton_linear import TritonFp8Linear, TritonPackedLinear
from octavo_server.models.config import read_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import DecoderWeights, load_decoder_weights
from octavo_server.models.loader import LoadedModel
from octavo_server.models.location import resolve_location
from octavo_server.models.shard import Shard
from octavo_server.models.weights import open_weights
from octavo_testing.checkpoints import EVEN, a_checkpoint, prompt_tokens
from octavo_testing.kernels import a_paged_case, assert_close
from octavo_testing.turns import TurnTaker, on_turns

SIZES = {**EVEN, "num_hidden_layers": 2}
LENGTHS = [5, 20]


def triton_backend(device: str) -> TritonBackend:
    return TritonBackend(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


def part_of(
    path: Path, rank: int, size: int, backend: TorchBackend | TritonBackend, quantization: str, dtype: torch.dtype
) -> DecoderWeights:
    location = resolve_location(path)
    config = read_model_config(location)
    source = open_weights(location, config)
    shard = Shard(rank=rank, size=size)
    return load_decoder_weights(config, source, backend, dtype, lambda *_: None, quantization, shard)


def logits(path: Path, size: int, make_backend: Callable[[], TritonBackend], quantization: str) -> torch.Tensor:
    """Of two prompts' every token: [25, vocabulary], computed by so many ranks."""
    case = a_paged_case(LENGTHS, LENGTHS)

    def compute(communicator: TurnTaker) -> torch.Tensor:
        backend = make_backend()
        weights = part_of(path, communicator.rank, size, backend, quantization, torch.float32)
        config = read_model_config(resolve_location(path))
        decoder = Decoder(config, weights, backend, communicator)
        model = LoadedModel(config=config, decoder=decoder, backend=backend, dtype=torch.float32, num_weight_bytes=0)
        batch = a_paged_case(LENGTHS, LENGTHS, device=backend.device.type).batch
        tokens = torch.tensor([token for length in LENGTHS for token in prompt_tokens(length, 512)])
        positions = torch.cat([torch.arange(length) for length in LENGTHS])
        cache = backend.allocate_kv_cache(model.kv_cache_spec(num_blocks=case.key_cache.shape[0], block_size=16))
        with torch.inference_mode():
            hidden = decoder.forward(tokens.to(backend.device), positions.to(backend.device), batch, cache)
            return decoder.logits(hidden).float().cpu()

    return on_turns(size, compute)


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("Qwen3ForCausalLM", {}),
        ("MixtralForCausalLM", {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 64}),
    ],
    ids=["biases", "norms", "experts"],
)
def test_two_ranks_of_few_bits_compute_what_one_does(
    tmp_path: Path, architecture: str, changed: dict[str, Any], quantization: str, device: str
) -> None:
    """Groups of 32 inputs are cut between each other, so that the numbers are the same and the sums alone are not."""
    path = a_checkpoint(tmp_path, architecture, SIZES, **changed).path

    one, two = (logits(path, size, lambda: triton_backend(device), quantization) for size in (1, 2))

    assert one.shape == two.shape == (sum(LENGTHS), 512)
    assert_close(two, one, 5e-4)


@pytest.mark.parametrize(
    ("quantization", "kind", "dtype"),
    [
        ("int4", TritonPackedLinear, torch.float32),
        ("int8", TritonPackedLinear, torch.float32),
        ("fp8", TritonFp8Linear, torch.bfloat16),
    ],
)
def test_every_matrix_of_a_part_is_kept_in_few_bits(
    tmp_path: Path, quantization: str, kind: type, dtype: torch.dtype, device: str
) -> None:
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path
    backend = triton_backend(device)

    for rank in range(2):
        layers = part_of(path, rank, 2, backend, quantization, dtype).layers
        handles = [handle for each in layers for handle in (each.qkv, each.output, each.gate_up, each.down)]
        assert {type(handle) for handle in handles} == {kind}


def test_sums_of_parts_in_float8_are_as_near_to_what_is_exact_as_the_whole(tmp_path: Path, device: str) -> None:
    """An output's scale is of the inputs that its rank has: other codes than one rank's, and none that are worse."""
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path
    backend = triton_backend(device)

    def products(size: int, quantization: str) -> torch.Tensor:
        """Of all matrices whose inputs are dealt out."""
        parts = [part_of(path, rank, size, backend, quantization, torch.bfloat16).layers for rank in range(size)]
        found = []
        for index in range(SIZES["num_hidden_layers"]):
            for handles in ([part[index].output for part in parts], [part[index].down for part in parts]):
                width = sum(handle.in_features for handle in handles if handle is not None)
                x = torch.randn(64, width, generator=torch.Generator().manual_seed(1)).bfloat16().to(backend.device)
                each = [
                    backend.linear(mine.contiguous(), handle).double()
                    for mine, handle in zip(x.chunk(size, dim=1), handles, strict=True)
                    if handle is not None
                ]
                found.append(torch.stack(each).sum(0).flatten())
        return torch.cat(found)

    exact = products(1, "none")
    one, two = (float((products(size, "fp8") - exact).std() / exact.std()) for size in (1, 2))
    assert 0.01 < one < 0.06
    assert two < 1.1 * one
