"""Weights of a GGUF file, under the names of a Hugging Face checkpoint and with the rows in its order."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo_server.errors import StartupError
from octavo_server.models.gguf_file import read_gguf
from octavo_server.models.shard import WHOLE
from octavo_server.quantization.gguf_types import GGUF_TYPES, code_bits, dequantize_rows, read_codes, type_name

if TYPE_CHECKING:
    import torch

    from octavo_kernels.quantized_weight import QuantizedWeight
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.registry import ExpertNames
    from octavo_server.models.shard import Cut

_MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_DIVISORS = "rope_freqs.weight"


class GGUFWeights:
    """Owns the mapped file."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self._file = read_gguf(path)
        self._config = config
        experts = config.family.experts
        self._stored_name = {
            _checkpoint_name(name, experts): name for name in self._file.tensors if name != _ROPE_DIVISORS
        }

    @property
    def description(self) -> str:
        return str(self._file.path)

    @property
    def names(self) -> Collection[str]:
        return self._stored_name.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self._file.tensors[self._stored_name[name]]
        if tensor.type_code not in GGUF_TYPES:
            known = ", ".join(sorted(kind.name for kind in GGUF_TYPES.values()))
            message = f"{self._file.path}: tensor {tensor.name} is {type_name(tensor.type_code)}; supported are {known}"
            raise StartupError("ModelInvalid", message)
        return tensor.shape

    def num_bytes(self, name: str) -> int:
        return self._file.tensors[self._stored_name[name]].num_bytes

    def read(self, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        import torch

        tensor = self._file.tensors[self._stored_name[name]]
        blocks, columns = self._blocks(name, cut)
        if GGUF_TYPES[tensor.type_code].name == "BF16":
            # numpy has no bfloat16, torch reads the same bits.
            values = torch.from_numpy(blocks.copy()).view(torch.bfloat16)
        else:
            values = torch.from_numpy(dequantize_rows(np.ascontiguousarray(blocks), tensor.type_code))
        if cut == WHOLE:
            return values.reshape(tensor.shape)
        return values[:, columns] if len(tensor.shape) > 1 else values.reshape(-1)

    def read_codes(self, name: str, cut: Cut = WHOLE) -> QuantizedWeight | None:
        type_code = self._file.tensors[self._stored_name[name]].type_code
        if code_bits(type_code) is None:
            return None
        blocks, columns = self._blocks(name, cut)
        assert columns == slice(None), "columns are cut at groups' edges"
        return read_codes(np.ascontiguousarray(blocks), type_code)

    def stored_bits(self) -> dict[str, int]:
        """Of each matrix that `read_codes` gives."""
        bits = {name: code_bits(self._file.tensors[stored].type_code) for name, stored in self._stored_name.items()}
        return {name: found for name, found in bits.items() if found is not None}

    def rope_divisors(self) -> tuple[float, ...] | None:
        tensor = self._file.tensors.get(_ROPE_DIVISORS)
        if tensor is None:
            return None
        values = dequantize_rows(self._file.rows(_ROPE_DIVISORS), tensor.type_code).reshape(-1)
        if values.size != self._config.head_dim // 2:
            message = f"{self._file.path}: {_ROPE_DIVISORS} has {values.size} factors, head_dim {self._config.head_dim}"
            raise StartupError("ModelInvalid", f"{message} needs {self._config.head_dim // 2}")
        return tuple(float(value) for value in values)

    def _blocks(self, name: str, cut: Cut) -> tuple[NDArray[np.uint8], slice]:
        """Stored rows [rows, row bytes] of `cut`, in order, and what of the numbers in them it asks for.

        Only rows whose columns are cut inside a block hold more than that.
        """
        tensor = self._file.tensors[self._stored_name[name]]
        kind, blocks = GGUF_TYPES[tensor.type_code], self._file.rows(tensor.name)
        if len(tensor.shape) == 1 and kind.block_size == 1:
            # a vector is stored as one row
            blocks = blocks.reshape(tensor.shape[0], -1)
        num_heads = self._permuted_heads(name)
        if cut.rows is not None:
            # Rows are cut between heads, so each head is there whole.
            num_heads = num_heads * (cut.rows.stop - cut.rows.start) // tensor.shape[0]
            blocks = blocks[cut.rows.start : cut.rows.stop]
        columns = cut.columns
        if columns is not None and columns.start % kind.block_size == columns.stop % kind.block_size == 0:
            first, last = (edge // kind.block_size * kind.block_bytes for edge in (columns.start, columns.stop))
            blocks, columns = blocks[:, first:last], None
        if num_heads:
            # Whole rows move, so they are put in order before they become numbers.
            blocks = _halves_apart(blocks, num_heads)
        return blocks, slice(None) if columns is None else slice(columns.start, columns.stop)

    def _permuted_heads(self, name: str) -> int:
        """Heads of a tensor whose rows are stored in rotary pairs, 0 where they are not."""
        if not self._config.family.gguf_rows_permuted:
            return 0
        if ".self_attn.q_proj." in name:
            return self._config.num_heads
        if ".self_attn.k_proj." in name:
            return self._config.num_kv_heads
        return 0


def _checkpoint_name(name: str, experts: ExpertNames | None) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays as it is."""
    stem, _, kind = name.rpartition(".")
    if stem in _MODEL_NAMES:
        return f"{_MODEL_NAMES[stem]}.{kind}"
    parts = stem.split(".", 2)
    found = _layer_name(parts[2], experts) if len(parts) == 3 and parts[0] == "blk" else None
    return name if found is None else f"model.layers.{parts[1]}.{found}.{kind}"


def _layer_name(stored: str, experts: ExpertNames | None) -> str | None:
    """Of a module of a layer: attn_q -> self_attn.q_proj, ffn_up.7 -> mlp.experts.7.up_proj; None: unknown."""
    if experts is None:
        return _LAYER_NAMES.get(stored)
    part, _, expert = stored.partition(".")
    matrices = {"ffn_gate": experts.gate, "ffn_up": experts.up, "ffn_down": experts.down}
    if expert and part in matrices:
        return f"{experts.block}.experts.{expert}.{matrices[part]}"
    return f"{experts.block}.gate" if stored == "ffn_gate_inp" else _LAYER_NAMES.get(stored)


def _halves_apart(rows: NDArray[np.uint8], num_heads: int) -> NDArray[np.uint8]:
    """Rows of each head from (0, d/2, 1, d/2 + 1, …), as llama.cpp rotates, to (0 … d/2 - 1, d/2 … d - 1)."""
    if rows.shape[0] % (2 * num_heads):
        # The shape check that follows names the tensor; nothing sensible can be done here.
        return rows
    pairs = rows.reshape(num_heads, -1, 2, prod(rows.shape[1:]))
    return pairs.swapaxes(1, 2).reshape(rows.shape)
