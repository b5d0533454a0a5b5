"""`--quantization` with the kernels of GPUs: a whole decoder, what it allocates, and what it does not do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from octavo_kernels.quantized_weight import QuantizedWeight
from octavo_kernels.torch_backend import TorchBackend, TorchLinear
from octavo_kernels.triton_backend import TritonBackend
from octavo_kernels.triton_linear import TritonPackedLinear
from octavo_server.config import EngineConfig
from octavo_server.errors import StartupError
from octavo_server.models.config import read_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import load_decoder_weights
from octavo_server.models.loader import LoadedModel
from octavo_server.models.location import resolve_location
from octavo_server.models.weights import open_weights
from octavo_server.plan.layout import choose_layout, weight_sizes
from octavo_server.plan.model_shape import served_shape
from octavo_testing.checkpoints import EVEN, a_checkpoint, a_model, prompt_tokens
from octavo_testing.gguf_files import write_gguf
from octavo_testing.held_bytes import held_bytes
from octavo_testing.stepping import Stepper

SIZES = {**EVEN, "num_hidden_layers": 2}


class DequantizingBackend(TorchBackend):
    """What is computed with the same numbers, written out."""

    def prepare_quantized_linear(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> DequantizedLinear:
        return DequantizedLinear(weight=weight.dequantize(), bias=bias)


class DequantizedLinear(TorchLinear):
    """Of a backend that has handles of quantised weights."""

    __slots__ = ()

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes


def triton_backend(device: str) -> TritonBackend:
    return TritonBackend(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


def loaded(path: Path, backend: TorchBackend | TritonBackend, bits: int) -> LoadedModel:
    location = resolve_location(path)
    config = read_model_config(location)
    source = open_weights(location, config)
    weights = load_decoder_weights(config, source, backend, torch.float32, lambda *_: None, bits)
    return LoadedModel(
        config=config,
        decoder=Decoder(config, weights, backend),
        backend=backend,
        dtype=torch.float32,
        num_weight_bytes=weights.num_bytes,
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_a_decoder_of_few_bits_is_the_decoder_of_its_rounded_weights(tmp_path: Path, bits: int, device: str) -> None:
    """Prefills and decodes together, biases, a tied head of 8 bits."""
    path = a_checkpoint(tmp_path, "Qwen2ForCausalLM", SIZES, tie_word_embeddings=True).path
    prompts = [prompt_tokens(5, 512), prompt_tokens(20, 512)]

    found = Stepper(loaded(path, triton_backend(device), bits)).generate(
        prompts, max_tokens=3, prompt_logprobs=1, logprobs=1
    )

    expected = Stepper(loaded(path, DequantizingBackend(torch.device("cpu")), bits)).generate(
        prompts, max_tokens=3, prompt_logprobs=1, logprobs=1
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert [item.logprob.logprob for item in mine.prompt_logprobs] == pytest.approx(
            [item.logprob.logprob for item in theirs.prompt_logprobs], abs=5e-4
        )


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_blocks_of_a_file_stay_and_take_what_is_planned(
    tmp_path: Path, kind: Kind, quantization: str, device: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, a_model("LlamaForCausalLM", SIZES), "llama", kind, other_kinds={"q_proj": Kind.Q8_0})
    location = resolve_location(path)
    config = read_model_config(location)
    source = open_weights(location, config)
    shape = served_shape(config, source.stored_bits())  # type: ignore[attr-defined]  # of a GGUF file
    layout = choose_layout(
        EngineConfig(model="x", quantization=quantization, dtype="float32"),  # type: ignore[arg-type]  # parametrised
        stored_dtype=config.dtype,
        kind="gpu",
    )

    model = loaded(path, triton_backend(device), 8 if quantization == "int8" else 4)

    weights = model.decoder.weights
    assert isinstance(weights.layers[0].down, TritonPackedLinear)
    assert weights.layers[0].down.weight.bits == (
        8 if kind == Kind.Q8_0 or (kind, quantization) == (Kind.F16, "int8") else 4
    )
    planned = weight_sizes(shape, layout).total_bytes
    assert model.num_weight_bytes == planned
    assert held_bytes(weights) - held_bytes(weights.cos_sin) == planned


def test_experts_of_few_bits_are_refused_with_the_remedy(tmp_path: Path, device: str) -> None:
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    path = a_checkpoint(tmp_path, "Qwen3MoeForCausalLM", SIZES, **experts).path

    with pytest.raises(StartupError, match="experts of 4 bits run on a CPU, not by the triton kernels") as caught:
        loaded(path, triton_backend(device), 4)

    assert caught.value.reason == "SpecInvalid"
