"""Checkpoints of float8 as several tools write them: the numbers, the scales of a cache, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from octavo_kernels.fp8_weight import FP8
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.errors import StartupError
from octavo_server.models.config import read_model_config
from octavo_server.models.decoder_weights import kv_scales_of
from octavo_server.models.fp8_weights import Fp8Weights
from octavo_server.models.loader import load_model
from octavo_server.models.location import resolve_location
from octavo_server.models.shard import Cut, Shard, Span
from octavo_server.models.weights import open_weights
from octavo_server.plan.model_shape import served_shape
from octavo_testing.checkpoints import ODD, prompt_tokens
from octavo_testing.fp8_checkpoints import FP8_SCHEME, SIZES, STYLES, a_float8_checkpoint, compressed
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, worst_logprob_error


def opened(path: Path) -> Fp8Weights:
    location = resolve_location(path)
    source = open_weights(location, read_model_config(location))
    assert isinstance(source, Fp8Weights)
    return source


@pytest.mark.parametrize(
    ("style", "architecture", "sizes"),
    [
        *((style, "LlamaForCausalLM", SIZES) for style in STYLES),
        ("compressed-channel", "MixtralForCausalLM", {**SIZES, "num_local_experts": 3}),
        # no block is whole at the edges
        ("hugging-face", "Qwen3ForCausalLM", {**ODD, "num_hidden_layers": 2}),
    ],
)
def test_a_model_is_the_one_of_the_written_out_numbers(
    tmp_path: Path, style: str, architecture: str, sizes: dict[str, Any]
) -> None:
    stored, written = a_float8_checkpoint(tmp_path, style, architecture, sizes)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()

    answers = Stepper(load_model(stored)).generate(
        [prompt_tokens(count, sizes["vocab_size"]) for count in (7, 30)], max_tokens=4, prompt_logprobs=2, logprobs=2
    )

    assert max(worst_logprob_error(answer, oracle) for answer in answers) < LOGPROB_TOLERANCE


def test_transformers_reads_the_same_numbers(tmp_path: Path) -> None:
    """It writes them out as bfloat16 on a CPU."""
    stored, _ = a_float8_checkpoint(tmp_path, "hugging-face")
    model = transformers.AutoModelForCausalLM.from_pretrained(stored, dtype=torch.float32)
    source, theirs = opened(stored), model.state_dict()

    names = [name for name in source.names if name.endswith("_proj.weight")]
    assert len(names) == 14
    for name in names:
        torch.testing.assert_close(source.read(name), theirs[name].float(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
def test_a_part_is_a_part_of_the_whole(tmp_path: Path, style: str) -> None:
    """Rows and columns in the middle of blocks."""
    source = opened(a_float8_checkpoint(tmp_path, style)[0])
    for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        rows, columns = source.shape(name)
        for cut in (
            Cut(rows=Span(start=5, stop=rows - 9, size=rows)),
            Cut(columns=Span(start=17, stop=columns - 3, size=columns)),
        ):
            index = cut.index
            assert torch.equal(source.read(name, cut), source.read(name)[index])
            part = source.read_fp8(name, cut)
            assert (part is None) == ("block" in STYLES[style][1])
            if part is not None:
                assert torch.equal(part[0].float() * part[1][:, None], source.read(name)[index])


def test_scales_are_counted_and_no_tensors_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, _ = a_float8_checkpoint(tmp_path)

    load_model(stored)

    source, name = opened(stored), "model.layers.0.mlp.down_proj.weight"
    assert source.num_bytes(name) == 64 * 128 + 4
    assert not [each for each in source.names if "scale" in each]
    assert not caplog.records


CACHE_SCALES = {
    "compressed-tensors": ("k_scale", "v_scale"),
    "modelopt": ("k_proj.k_scale", "v_proj.v_scale"),
    "quark": ("k_proj.output_scale", "v_proj.output_scale"),
}


def cache_scales(names: tuple[str, str], layers: int = 2, num: int = 1) -> dict[str, torch.Tensor]:
    """Of layer i: keys 0.5 + i, values 2 + i, and a tenth more for each further head."""
    return {
        f"model.layers.{layer}.self_attn.{name}": base + layer + 0.1 * torch.arange(num, dtype=torch.float32)
        for layer in range(layers)
        for name, base in zip(names, (0.5, 2.0), strict=True)
    }


@pytest.mark.parametrize("tool", CACHE_SCALES)
def test_a_cache_of_float8_gets_the_scales_of_the_checkpoint(
    tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, _ = a_float8_checkpoint(tmp_path, extra=cache_scales(CACHE_SCALES[tool]))
    model = load_model(stored)
    given = []
    # the backend of a CPU has no such cache
    monkeypatch.setattr(model.backend, "allocate_kv_cache", lambda spec, scales: given.append((spec, scales)))

    for dtype in (FP8, torch.float32):
        spec = model.kv_cache_spec(num_blocks=4, block_size=16)
        DecoderRunner(model.decoder, replace(spec, dtype=dtype))

    scales = given[0][1]
    assert scales.keys.tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert scales.values.tolist() == [[2.0, 2.0], [3.0, 3.0]]
    # numbers that are kept exact need none
    assert given[1][1] is None


def test_each_rank_has_the_scales_of_its_heads(tmp_path: Path) -> None:
    stored, _ = a_float8_checkpoint(tmp_path, extra=cache_scales(("k_scale", "v_scale"), num=2))
    config = read_model_config(resolve_location(stored))

    parts = [kv_scales_of(opened(stored), config, Shard(rank=rank, size=2)) for rank in range(2)]

    assert [part.keys.tolist() for part in parts if part is not None] == [
        [[0.5], [1.5]],
        [[pytest.approx(0.6)], [pytest.approx(1.6)]],
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            cache_scales(("k_scale", "v_scale"), layers=1),
            "1 layers have a scale of keys and 1 one of values, must be all 2",
        ),
        (cache_scales(("k_scale", "v_scale"), num=3), r"k_scale has 3 numbers, must be 1 or 2"),
    ],
)
def test_scales_of_a_cache_that_do_not_fit_are_refused(
    tmp_path: Path, extra: dict[str, torch.Tensor], message: str
) -> None:
    stored, _ = a_float8_checkpoint(tmp_path, extra=extra)

    with pytest.raises(StartupError, match=message) as caught:
        load_model(stored)

    assert caught.value.reason == "ModelInvalid"


PROJECTION = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{PROJECTION}.weight_scale": None}, f"{PROJECTION}.weight is of float8 and has no scale beside it"),
        ({f"{PROJECTION}.weight_scale": torch.ones(3, 2)}, r"has shape \[3, 2\], .* needs 1 number, or one a row"),
        (
            {f"{PROJECTION}.weight_zero_point": torch.ones(1)},
            f"{PROJECTION}.weight_zero_point is not used by this version",
        ),
        ({"model.layers.0.self_attn.q_scale": torch.ones(1)}, "self_attn.q_scale is not used by this version"),
        ({"model.layers.0.self_attn.o_proj.output_scale": torch.ones(1)}, "o_proj.output_scale is not used"),
    ],
)
def test_a_scale_that_is_missing_or_not_used_is_named(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], message: str
) -> None:
    stored, _ = a_float8_checkpoint(tmp_path)
    tensors: dict[str, torch.Tensor | None] = {**load_file(stored / "model.safetensors"), **changed}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, stored / "model.safetensors")

    with pytest.raises(StartupError, match=message) as caught:
        load_model(stored)

    assert caught.value.reason == "ModelInvalid"


INT8_GROUP = {"config_groups": {"g": {"weights": {**FP8_SCHEME, "type": "int", "strategy": "channel"}}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq"}, "quantization_config 'gptq' is not supported; use an unquantised checkpoint"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2'"),
        (compressed("channel", format="pack-quantized"), "format 'pack-quantized'"),
        (compressed("group"), "strategy 'group'"),
        (compressed("channel", **INT8_GROUP), "weights of 8 bits, 'int'"),
        (compressed("channel", sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config 'sparse-24-bitmask'"),
        (compressed("channel", transform_config={"config_groups": {}}), "transform_config"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4'"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}}}, "weight of 'int4' None"),
    ],
)
def test_what_is_not_float8_with_scales_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    stored, _ = a_float8_checkpoint(tmp_path)
    path = stored / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))

    with pytest.raises(StartupError, match=message) as caught:
        read_model_config(resolve_location(stored))

    assert caught.value.reason == "UnsupportedArchitecture"


def test_a_plan_says_that_they_are_written_out(tmp_path: Path) -> None:
    shape = served_shape(read_model_config(resolve_location(a_float8_checkpoint(tmp_path)[0])))

    assert shape.notes == (
        "the checkpoint is stored as float8; what is planned is its weights in --dtype or --quantization",
    )


def test_codes_without_a_configuration_are_refused(tmp_path: Path) -> None:
    """They would be read as numbers."""
    stored, written = a_float8_checkpoint(tmp_path)
    (stored / "config.json").write_text((written / "config.json").read_text())

    with pytest.raises(StartupError, match="is F8_E4M3; supported types are F32, F16, BF16"):
        load_model(stored)
