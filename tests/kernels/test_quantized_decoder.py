"""`--quantization` with the kernels of GPUs: a whole decoder, what it allocates, and what it does not do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from octavo_kernels import fp8_linear_ref
from octavo_kernels.errors import KernelError
from octavo_kernels.expert_matrices import Fp8Matrices, PackedMatrices
from octavo_kernels.fp8_weight import Fp8Weight, quantize_fp8
from octavo_kernels.handles import ExpertsHandle, LinearHandle
from octavo_kernels.numba_experts import LinearExperts
from octavo_kernels.quantized_weight import QuantizedWeight
from octavo_kernels.torch_backend import TorchBackend, TorchLinear
from octavo_kernels.torch_experts import TorchExperts, run_experts
from octavo_kernels.triton_backend import TritonBackend
from octavo_kernels.triton_experts import TritonExperts
from octavo_kernels.triton_linear import TritonFp8Linear, TritonLinear, TritonPackedLinear
from octavo_server.config import EngineConfig
from octavo_server.errors import StartupError
from octavo_server.models.config import read_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import load_decoder_weights
from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.models.location import resolve_location
from octavo_server.models.weights import open_weights
from octavo_server.plan.layout import choose_layout, weight_sizes
from octavo_server.plan.model_shape import served_shape
from octavo_testing.checkpoints import EVEN, a_checkpoint, a_model, prompt_tokens
from octavo_testing.fp8_checkpoints import a_float8_checkpoint
from octavo_testing.gguf_files import write_gguf
from octavo_testing.held_bytes import held_bytes
from octavo_testing.kernels import assert_close
from octavo_testing.stepping import Generated, Stepper

SIZES = {**EVEN, "num_hidden_layers": 2}


class DequantizingBackend(TorchBackend):
    """What is computed with the same numbers, written out."""

    def prepare_quantized_linear(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> DequantizedLinear:
        return DequantizedLinear(weight=weight.dequantize(), bias=bias)

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> TorchExperts:
        return self.prepare_experts(
            *(torch.stack([each.weight for each in handles]) for handles in (gate_up, down))  # type: ignore[attr-defined]  # TorchLinear's
        )


class DequantizedLinear(TorchLinear):
    """Of a backend that has handles of quantised weights."""

    __slots__ = ()

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes


def triton_backend(device: str) -> TritonBackend:
    return TritonBackend(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))


def loaded(
    path: Path, backend: TorchBackend | TritonBackend, quantization: str, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    location = resolve_location(path)
    config = read_model_config(location)
    source = open_weights(location, config)
    weights = load_decoder_weights(config, source, backend, dtype, lambda *_: None, quantization)
    return LoadedModel(
        config=config,
        decoder=Decoder(config, weights, backend),
        backend=backend,
        dtype=dtype,
        num_weight_bytes=weights.num_bytes,
    )


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_a_decoder_of_few_bits_is_the_decoder_of_its_rounded_weights(
    tmp_path: Path, quantization: str, device: str
) -> None:
    """Prefills and decodes together, biases, a tied head of 8 bits."""
    path = a_checkpoint(tmp_path, "Qwen2ForCausalLM", SIZES, tie_word_embeddings=True).path
    prompts = [prompt_tokens(5, 512), prompt_tokens(20, 512)]

    found = Stepper(loaded(path, triton_backend(device), quantization)).generate(
        prompts, max_tokens=3, prompt_logprobs=1, logprobs=1
    )

    expected = Stepper(loaded(path, DequantizingBackend(torch.device("cpu")), quantization)).generate(
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

    model = loaded(path, triton_backend(device), quantization)

    weights = model.decoder.weights
    assert isinstance(weights.layers[0].down, TritonPackedLinear)
    assert weights.layers[0].down.weight.bits == (
        8 if kind == Kind.Q8_0 or (kind, quantization) == (Kind.F16, "int8") else 4
    )
    planned = weight_sizes(shape, layout).total_bytes
    assert model.num_weight_bytes == planned
    assert held_bytes(weights) - held_bytes(weights.cos_sin) == planned


EXPERTS = {
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    "Qwen3MoeForCausalLM": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 80,
        "mlp_only_layers": [1],
    },
}
"""80 inner columns are no groups of 32, so that `down` stays exact; layer 1 has one MLP."""


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_mixture_of_few_bits_is_that_of_its_rounded_weights_and_takes_what_is_planned(
    tmp_path: Path, architecture: str, quantization: str, device: str
) -> None:
    path = a_checkpoint(tmp_path, architecture, {**SIZES, **EXPERTS[architecture]}).path
    prompts = [prompt_tokens(3, 512), prompt_tokens(10, 512)]
    model = loaded(path, triton_backend(device), quantization)

    found = Stepper(model).generate(prompts, max_tokens=2, prompt_logprobs=1, logprobs=1)

    expected = Stepper(loaded(path, DequantizingBackend(torch.device("cpu")), quantization)).generate(
        prompts, max_tokens=2, prompt_logprobs=1, logprobs=1
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert [item.logprob.logprob for item in mine.prompt_logprobs] == pytest.approx(
            [item.logprob.logprob for item in theirs.prompt_logprobs], abs=5e-4
        )
    experts = model.decoder.weights.layers[0].experts
    assert experts is not None
    assert isinstance(experts.experts, TritonExperts)
    assert isinstance(experts.experts.gate_up, PackedMatrices)
    assert isinstance(experts.experts.down, torch.Tensor if architecture == "Qwen3MoeForCausalLM" else PackedMatrices)
    assert isinstance(experts.router, TritonLinear)
    assert_takes_what_is_planned(model, EngineConfig(model="x", quantization=quantization, dtype="float32"))  # type: ignore[arg-type]  # parametrised


def assert_takes_what_is_planned(model: LoadedModel, config: EngineConfig) -> None:
    weights = model.decoder.weights
    planned = weight_sizes(served_shape(model.config), choose_layout(config, stored_dtype="float32", kind="gpu"))
    assert model.num_weight_bytes == planned.total_bytes
    assert held_bytes(weights) - held_bytes(weights.cos_sin) == planned.total_bytes


def test_blocks_of_a_files_experts_stay(tmp_path: Path, device: str) -> None:
    """Those of up are Q8_0, so that an expert's gate and up together have 8 bits."""
    sizes = {**SIZES, "intermediate_size": 64}
    write_gguf(
        tmp_path / "model.gguf",
        a_model("MixtralForCausalLM", sizes),
        "llama",
        Kind.Q4_0,
        other_kinds={"up_proj": Kind.Q8_0},
    )
    backend = triton_backend(device)

    experts = loaded(tmp_path / "model.gguf", backend, "int4").decoder.weights.layers[0].experts

    exact = loaded(tmp_path / "model.gguf", TorchBackend(torch.device("cpu")), "none").decoder.weights.layers[0].experts
    assert experts is not None
    assert exact is not None
    assert isinstance(experts.experts, TritonExperts)
    for mine, theirs in (
        (experts.experts.gate_up, exact.experts.gate_up),  # type: ignore[attr-defined]  # the torch backend's
        (experts.experts.down, exact.experts.down),  # type: ignore[attr-defined]
    ):
        assert isinstance(mine, PackedMatrices)
        assert torch.equal(mine.numbers().cpu(), theirs)
    assert (experts.experts.gate_up.bits, experts.experts.down.bits) == (8, 4)  # type: ignore[union-attr]  # as asserted


def test_experts_that_a_backend_cannot_stack_are_refused_with_the_remedy(tmp_path: Path) -> None:
    """Old files have a tensor an expert, each of a type of its own."""

    class Refusing(DequantizingBackend):
        def prepare_quantized_experts(
            self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]
        ) -> TorchExperts:
            raise KernelError(f"{len(gate_up)} experts, {len(down)} are not alike")

    path = a_checkpoint(tmp_path, "MixtralForCausalLM", {**SIZES, **EXPERTS["MixtralForCausalLM"]}).path

    with pytest.raises(StartupError, match="4 experts, 4 are not alike; use --quantization none") as caught:
        loaded(path, Refusing(torch.device("cpu")), "int4")

    assert caught.value.reason == "ModelInvalid"


FP8_CONFIG = EngineConfig(model="x", quantization="fp8", dtype="bfloat16")


class RoundingBackend(TorchBackend):
    """Linear layers in float8 by the reference."""

    def check_fp8(self) -> None:
        pass

    def prepare_fp8_linear(self, weight: torch.Tensor | Fp8Weight, bias: torch.Tensor | None = None) -> RoundedLinear:
        assert isinstance(weight, torch.Tensor)
        return RoundedLinear(weight=weight, bias=bias, fp8=quantize_fp8(weight))

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> LinearExperts:
        return LinearExperts(gate_up=tuple(gate_up), down=tuple(down))

    def experts(
        self, x: torch.Tensor, handle: ExpertsHandle, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(handle, LinearExperts)

        def mlp(expert: int, rows: torch.Tensor) -> torch.Tensor:
            return self.linear(self.silu_and_mul(self.linear(rows, handle.gate_up[expert])), handle.down[expert])

        return run_experts(x, expert_ids, expert_weights, mlp)

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        if isinstance(handle, RoundedLinear):
            return fp8_linear_ref.fp8_linear(x, handle.fp8, handle.bias)
        return super().linear(x, handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedLinear(TorchLinear):
    """Of float8."""

    fp8: Fp8Weight

    @property
    def weight_bytes(self) -> int:
        return self.fp8.num_bytes


def test_a_decoder_of_float8_has_the_references_layers_and_takes_what_is_planned(tmp_path: Path, device: str) -> None:
    """Layer by layer: the interpreter cuts bfloat16 off, which a whole decoder of random weights makes the most of."""
    path = a_checkpoint(tmp_path, "Qwen2ForCausalLM", SIZES, tie_word_embeddings=True).path
    backend, rounding = triton_backend(device), RoundingBackend(torch.device("cpu"))
    model = loaded(path, backend, "fp8", torch.bfloat16)

    weights = model.decoder.weights
    expected = loaded(path, rounding, "fp8", torch.bfloat16).decoder.weights
    for mine, theirs in zip(weights.linear_layers, expected.linear_layers, strict=True):
        x = torch.randn(3, mine.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
        assert_close(backend.linear(x.to(backend.device), mine), rounding.linear(x, theirs))
    assert {type(handle) for handle in weights.linear_layers[:-1]} == {TritonFp8Linear}
    assert isinstance(weights.head, TritonLinear)
    assert len(Stepper(model).generate([prompt_tokens(5, 512)], max_tokens=2)[0].token_ids) == 2
    assert_takes_what_is_planned(model, FP8_CONFIG)


@pytest.mark.parametrize("style", ["autofp8", "compressed-channel", "hugging-face"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_codes_of_a_checkpoint_are_not_rounded_again(
    tmp_path: Path, architecture: str, style: str, device: str
) -> None:
    """Where an output has one scale; blocks are, to what is near. They take what is planned."""
    sizes = {**SIZES, **EXPERTS.get(architecture, {})}
    stored, written = a_float8_checkpoint(tmp_path, style, architecture, sizes)
    tensors = load_file(written / "model.safetensors")

    model = loaded(stored, triton_backend(device), "fp8", torch.bfloat16)

    layer = model.decoder.weights.layers[1]
    prefix = "model.layers.1"
    pairs = [(layer.output, tensors[f"{prefix}.self_attn.o_proj.weight"])]
    qkv = torch.cat([tensors[f"{prefix}.self_attn.{part}_proj.weight"] for part in "qkv"])
    for handle, numbers in [*pairs, (layer.qkv, qkv)]:
        assert isinstance(handle, TritonFp8Linear)
        assert_kept(handle.fp8.codes.float() * handle.fp8.scales[:, None], numbers, is_exact=style != "hugging-face")
    if layer.experts is not None:
        assert isinstance(layer.experts.experts, TritonExperts)
        block = f"{prefix}.block_sparse_moe.experts"
        down = torch.stack([tensors[f"{block}.{expert}.w2.weight"] for expert in range(4)])
        assert isinstance(layer.experts.experts.down, Fp8Matrices)
        assert_kept(layer.experts.experts.down.numbers(), down, is_exact=style != "hugging-face")
    assert_takes_what_is_planned(model, FP8_CONFIG)


def assert_kept(found: torch.Tensor, numbers: torch.Tensor, *, is_exact: bool) -> None:
    if is_exact:
        assert torch.equal(found.cpu(), numbers)
    else:
        # half of the last bit of three
        torch.testing.assert_close(found.cpu(), numbers, rtol=2**-4, atol=2e-3)
        assert not torch.equal(found.cpu(), numbers)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_mixture_of_float8_has_the_references_experts_and_takes_what_is_planned(
    tmp_path: Path, architecture: str, device: str
) -> None:
    path = a_checkpoint(tmp_path, architecture, {**SIZES, **EXPERTS[architecture]}).path
    backend, rounding = triton_backend(device), RoundingBackend(torch.device("cpu"))
    model = loaded(path, backend, "fp8", torch.bfloat16)

    mine = model.decoder.weights.layers[0].experts
    theirs = loaded(path, rounding, "fp8", torch.bfloat16).decoder.weights.layers[0].experts
    assert mine is not None
    assert theirs is not None
    assert isinstance(mine.experts, TritonExperts)
    assert isinstance(mine.experts.gate_up, Fp8Matrices)
    assert isinstance(mine.experts.down, Fp8Matrices)
    x = torch.randn(5, mine.experts.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()
    ids = torch.tensor([[0, 1], [3, 2], [1, 0], [3, 3], [2, 0]])
    shares = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))
    placed = [tensor.to(backend.device) for tensor in (ids, shares)]
    out = backend.experts(x.to(backend.device), mine.experts, *placed).cpu().float()
    expected = rounding.experts(x, theirs.experts, ids, shares).float()
    assert float((out - expected).abs().max() / expected.abs().max()) < 0.03
    assert len(Stepper(model).generate([prompt_tokens(5, 512)], max_tokens=2)[0].token_ids) == 2
    assert_takes_what_is_planned(model, FP8_CONFIG)


def test_float8_is_near_exact(tmp_path: Path) -> None:
    """By the reference. Random weights are the hardest case, each value being as important as any other: 0.33 was measured."""
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path
    prompts = [prompt_tokens(5, 512), prompt_tokens(40, 512)]

    found, exact = (
        Stepper(loaded(path, RoundingBackend(torch.device("cpu")), quantization, torch.bfloat16)).generate(
            prompts, max_tokens=1, prompt_logprobs=1
        )
        for quantization in ("fp8", "none")
    )

    error = mean_error(found, exact)
    assert 0 < error < 0.6


def mean_error(results: list[Generated], others: list[Generated]) -> float:
    mine, theirs = (
        torch.tensor([item.logprob.logprob for result in each for item in result.prompt_logprobs])
        for each in (results, others)
    )
    return float((mine - theirs).abs().mean())


def test_a_matrix_that_float8_cannot_hold_stays_exact_and_is_said_once(
    tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {**SIZES, "intermediate_size": 100}
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", sizes).path

    model = loaded(path, triton_backend(device), "fp8", torch.bfloat16)

    layer = model.decoder.weights.layers[0]
    assert isinstance(layer.output, TritonFp8Linear)
    assert isinstance(layer.down, TritonLinear)
    assert [record.message for record in caplog.records] == ["some matrices stay exact, as they cannot be rounded"]
    # 200 rows of gate and up are no multiple of 16 either; two layers
    assert caplog.records[0].__dict__["count"] == 4
    assert "both must be multiples of 16" in caplog.records[0].__dict__["first"]
    config = EngineConfig(model="x", quantization="fp8", dtype="bfloat16")
    planned = weight_sizes(served_shape(model.config), choose_layout(config, stored_dtype="float32", kind="gpu"))
    assert model.num_weight_bytes == planned.total_bytes


def test_float8_on_a_cpu_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path

    with pytest.raises(StartupError, match=r"8\.9 or newer .*; on a CPU use int8 or int4") as caught:
        load_model(path, quantization="fp8")

    assert caught.value.reason == "SpecInvalid"
