"""Checkpoints of float8 as several tools write them, and the same numbers written out by torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from octavo_kernels.fp8_weight import FP8
from octavo_testing.checkpoints import EVEN, a_checkpoint

SIZES = {**EVEN, "num_hidden_layers": 2}
BLOCK = [32, 16]
FP8_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}


def compressed(strategy: str, **others: Any) -> dict[str, Any]:
    weights = {**FP8_SCHEME, "strategy": strategy, "block_structure": BLOCK if strategy == "block" else None}
    group = {"weights": weights, "input_activations": {**FP8_SCHEME, "strategy": "tensor"}, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        **others,
    }


QUARK_WEIGHT = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
STYLES: dict[str, tuple[dict[str, Any], str]] = {
    "hugging-face": ({"quant_method": "fp8", "weight_block_size": BLOCK, "activation_scheme": "dynamic"}, "block_inv"),
    "autofp8": ({"quant_method": "fp8", "activation_scheme": "static"}, "tensor"),
    "compressed-channel": (compressed("channel"), "channel"),
    "compressed-block": (compressed("block"), "block"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "tensor"),
    "quark": ({"quant_method": "quark", "global_quant_config": {"weight": QUARK_WEIGHT}}, "tensor"),
}
"""What `quantization_config` says, and how scales are made."""


def rounded(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scale as it is stored, and the numbers that both mean."""
    if kind == "tensor":
        scale = weight.abs().max() / 448
        each = scale
    elif kind == "channel":
        scale = each = weight.abs().amax(dim=1, keepdim=True) / 448
    else:
        rows, columns = weight.shape
        height, width = BLOCK
        grid = torch.zeros(-(-rows // height), -(-columns // width))
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                part = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
                grid[i, j] = part.abs().max() / 448
        scale = grid
        each = grid.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    codes = (weight / each).to(FP8)
    return codes, scale, codes.float() * each


def a_float8_checkpoint(
    folder: Path,
    style: str = "autofp8",
    architecture: str = "LlamaForCausalLM",
    sizes: Mapping[str, Any] = SIZES,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Path, Path]:
    """Of a random model: a folder of float8, and one with the same numbers written out."""
    config, kind = STYLES[style]
    exact = a_checkpoint(folder / "exact", architecture, dict(sizes)).path
    stored: dict[str, torch.Tensor] = dict(extra or {})
    written = {}
    for name, tensor in load_file(exact / "model.safetensors").items():
        module = name.split(".")[-2]
        if tensor.ndim != 2 or module in ("embed_tokens", "lm_head", "gate"):
            stored[name] = written[name] = tensor
            continue
        codes, scale, written[name] = rounded(tensor, kind)
        stored[name] = codes
        stored[name + ("_scale_inv" if kind == "block_inv" else "_scale")] = scale
        if kind == "tensor":
            stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
    raw = json.loads((exact / "config.json").read_text())
    paths = folder / "float8", folder / "written"
    for path, tensors, more in zip(paths, (stored, written), ({"quantization_config": config}, {}), strict=True):
        path.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            path / "model.safetensors",
            {"format": "pt"},
        )
        (path / "config.json").write_text(json.dumps({**raw, **more}))
    return paths
