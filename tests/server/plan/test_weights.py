"""Bytes of weights and of a token's cache, against transformers' own modules, which are made without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo_server.config import EngineConfig
from octavo_server.plan.layout import choose_layout, kv_shape, rotary_bytes, weight_sizes
from octavo_server.plan.source import parse_shape
from octavo_testing import model_shapes

# The models of the bar first, then the others that are planned.
SHAPES = {
    "llama-8b": model_shapes.LLAMA_8B,
    "qwen3-0.6b": model_shapes.QWEN3_06B,
    "gemma3-4b-text": model_shapes.GEMMA3_4B_TEXT,
    "gemma3-4b": model_shapes.GEMMA3_4B,
    "mixtral-8x7b": model_shapes.MIXTRAL_8X7B,
    "deepseek-v3": model_shapes.DEEPSEEK_V3,
    "deepseek-v2-lite": model_shapes.DEEPSEEK_V2_LITE,
    "qwen3-30b-a3b": model_shapes.QWEN3_30B_A3B,
    "gemma2-9b": model_shapes.GEMMA2_9B,
    "phi3-mini": model_shapes.PHI3_MINI,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int4": {"quantization": "int4"},
    "int8": {"quantization": "int8"},
}


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    """Made once each: a large one takes seconds."""
    return {}


def a_module(modules: dict[str, Any], name: str) -> Any:
    import transformers

    if name not in modules:
        values = {key: value for key, value in SHAPES[name].items() if key != "architectures"}
        model_class = getattr(transformers, SHAPES[name]["architectures"][0])
        # Ids outside of a small vocabulary would only be warned of.
        config = model_class.config_class(**values)
        with torch.device("meta"):
            modules[name] = model_class(config)
    return modules[name]


PARAMETER_BYTES = {8: 1 + 2 / 32, 4: 1 / 2 + 4 / 32}


def oracle_bytes(module: Any, item_bytes: int, bits: int | None) -> int:
    """Numbers times bytes; in few bits each matrix of a linear layer has a scale of 2 bytes for 32 inputs, of 4 bits a minimum, too.

    The output head has 8 bits, and stands beside the exact embedding where the two are one.
    """
    linear = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Linear)}
    head, embedding = module.get_output_embeddings().weight, module.get_input_embeddings().weight
    total = 0.0
    for name, parameter in module.named_parameters():
        is_quantized = "vision" not in name and (id(parameter) in linear or parameter.ndim == 3)
        if bits is None or not is_quantized or parameter is embedding:
            total += parameter.numel() * item_bytes
        else:
            total += parameter.numel() * PARAMETER_BYTES[8 if parameter is head else bits]
    if bits is not None and head is embedding:
        total += head.numel() * PARAMETER_BYTES[8]
    return round(total)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", SHAPES)
def test_weights_take_what_transformers_module_takes(modules: dict[str, Any], name: str, setting: str) -> None:
    """The bar is 5 %; what is left is padding, routers and the float32 bias that each quantised matrix has."""
    config = EngineConfig(model="x", **SETTINGS[setting])
    shape = parse_shape(SHAPES[name], source="x")
    layout = choose_layout(config, stored_dtype=shape.dtype, kind="cpu")

    planned = weight_sizes(shape, layout).total_bytes

    expected = oracle_bytes(a_module(modules, name), layout.item_bytes, layout.bits)
    assert planned == pytest.approx(expected, rel=0.01)
    if layout.bits is None:
        assert planned == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "routers"), [("mixtral-8x7b", 32), ("qwen3-30b-a3b", 48), ("deepseek-v3", 58)])
def test_routers_stay_exact(name: str, routers: int) -> None:
    """Too small to be seen in the whole, and rounded they would send tokens elsewhere."""
    shape = parse_shape(SHAPES[name], source="x")

    exact = [item for item in shape.parameters if item.is_matrix and not item.is_linear and not item.is_embedding]

    assert sum(item.copies for item in exact) == routers
    assert {item.shape for item in exact} == {(shape.num_experts, shape.hidden)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2 x 32 layers x 8 heads x 128 x 2 bytes: the 128 KiB that everybody knows
        ("llama-8b", 131_072),
        ("qwen3-0.6b", 2 * 28 * 8 * 128 * 2),
        # windows change nothing: all layers share one pool
        ("gemma3-4b-text", 2 * 34 * 4 * 256 * 2),
        ("gemma3-4b", 2 * 34 * 4 * 256 * 2),
        ("mixtral-8x7b", 131_072),
        # the latent of 512 and the rotated key of 64; DeepSeek-V3's paper says 70.272 KB
        ("deepseek-v3", 70_272),
        ("deepseek-v2-lite", 27 * 576 * 2),
        ("qwen3-30b-a3b", 2 * 48 * 4 * 128 * 2),
    ],
)
def test_a_token_takes_so_many_bytes_of_bfloat16_cache(name: str, expected: int) -> None:
    shape = parse_shape(SHAPES[name], source="x")
    layout = choose_layout(EngineConfig(model="x"), stored_dtype=shape.dtype, kind="gpu")

    assert kv_shape(shape, layout).token_bytes == expected


@pytest.mark.parametrize("name", ["gemma3-4b-text", "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b"])
def test_both_spellings_of_a_configuration_are_one_model(modules: dict[str, Any], name: str) -> None:
    """As the hub has it, and as transformers 5 writes it again."""
    written = a_module(modules, name).config.to_dict()

    shape = parse_shape({**written, "architectures": SHAPES[name]["architectures"]}, source="x")

    assert shape.parameters == parse_shape(SHAPES[name], source="x").parameters
    assert shape.windows == parse_shape(SHAPES[name], source="x").windows


def test_windows_stand_where_the_pattern_says() -> None:
    windows = parse_shape(model_shapes.GEMMA3_4B, source="x").windows

    assert windows[:7] == (1024, 1024, 1024, 1024, 1024, None, 1024)
    assert len(windows) == 34


def test_rotary_tables_are_one_a_base_and_as_wide_as_what_turns() -> None:
    tables = {name: rotary_bytes(parse_shape(SHAPES[name], source="x")) for name in SHAPES}

    assert tables["llama-8b"] == 131_072 * 128 * 4
    # full and sliding layers turn by another base each
    assert tables["gemma3-4b"] == 131_072 * 256 * 4 * 2
    assert tables["gemma2-9b"] == 8192 * 256 * 4
    assert tables["deepseek-v3"] == 163_840 * 64 * 4


def test_a_checkpoint_that_is_stored_quantised_is_told_of() -> None:
    shape = parse_shape({**model_shapes.DEEPSEEK_V3, "quantization_config": {"quant_method": "fp8"}}, source="x")

    assert "fp8" in shape.notes[0]
