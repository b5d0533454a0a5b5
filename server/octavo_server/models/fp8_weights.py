"""Weights of float8 (e4m3) in a Hugging Face folder, each with its scale: as numbers, or as they are stored.

Scales lie beside what they belong to, as several tools name them:

| of | name |
|---|---|
| a weight | `X.weight_scale_inv` (by blocks) or `X.weight_scale`; both multiply |
| the input of a linear layer | `X.input_scale`: not needed, since each token is rounded by a scale of its own |
| keys and values, for a cache of float8 | `self_attn.k_scale`, `k_proj.k_scale` or `k_proj.output_scale`; of values likewise |

Any other scale or zero point is refused by its name: the numbers would be wrong without it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from octavo_kernels.fp8_weight import FP8
from octavo_kernels.handles import KVScales
from octavo_server.errors import StartupError
from octavo_server.models.safetensors_weights import SafetensorsWeights
from octavo_server.models.shard import WHOLE

if TYPE_CHECKING:
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.fp8_config import Fp8Config
    from octavo_server.models.shard import Cut

logger = logging.getLogger(__name__)

_WEIGHT_SCALES = ("weight_scale_inv", "weight_scale")
_INPUT_SCALE = "input_scale"
_KEY_SCALES = ("k_scale", "k_proj.k_scale", "k_proj.output_scale")
_VALUE_SCALES = ("v_scale", "v_proj.v_scale", "v_proj.output_scale")


class Fp8Weights(SafetensorsWeights):
    """Owns the mapped files."""

    def __init__(self, folder: Path, config: ModelConfig, stored: Fp8Config) -> None:
        super().__init__(folder, has_codes=True)
        self._block = stored.block
        self._num_layers, self._num_kv_heads = config.num_layers, config.num_kv_heads
        self._scale_of: dict[str, str] = {}
        others = set()
        for name in super().names:
            module, _, last = name.rpartition(".")
            if last in _WEIGHT_SCALES:
                self._scale_of[f"{module}.weight"] = name
            elif last == _INPUT_SCALE or self._is_cache_scale(name):
                others.add(name)
            elif last.endswith(("_scale", "_scale_inv", "zero_point", "_shift")):
                raise StartupError(
                    "ModelInvalid",
                    f"{self.description}: tensor {name} is not used by this version; use another checkpoint",
                )
        self._names = set(super().names) - set(self._scale_of.values()) - others
        if any(name.endswith(_INPUT_SCALE) for name in others):
            logger.info("activations are rounded by each token's own scale; the checkpoint's are not needed")

    @property
    def names(self) -> Collection[str]:
        """Without scales."""
        return self._names

    def num_bytes(self, name: str) -> int:
        scale = self._scale_of.get(name)
        return super().num_bytes(name) + (0 if scale is None else super().num_bytes(scale))

    def read(self, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        """As `WeightSource.read`; float8 becomes float32."""
        stored = super().read(name, cut)
        return stored if stored.dtype != FP8 else stored.float() * self._scales(name, cut)

    def read_fp8(self, name: str, cut: Cut = WHOLE) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Codes [rows, columns] float8 of `cut` and scales [rows] float32; None where it is stored otherwise, or by blocks."""
        stored = super().read(name, cut)
        if stored.dtype != FP8:
            return None
        scales = self._scales(name, cut)
        return None if scales.shape[1] > 1 else (stored, scales.flatten().expand(stored.shape[0]).contiguous())

    def kv_scales(self) -> KVScales | None:
        """[num_layers, num_kv_heads] each; None where the checkpoint has none.

        Raises:
            StartupError: ModelInvalid, where a layer lacks one that others have, or it is of another size.
        """
        found = [
            [self._cache_scale(layer, names) for layer in range(self._num_layers)]
            for names in (_KEY_SCALES, _VALUE_SCALES)
        ]
        keys, values = ([scale for scale in scales if scale is not None] for scales in found)
        if not keys and not values:
            return None
        if len(keys) != self._num_layers or len(values) != self._num_layers:
            raise StartupError(
                "ModelInvalid",
                f"{self.description}: {len(keys)} layers have a scale of keys and {len(values)} one of values, must be all "
                f"{self._num_layers}",
            )
        return KVScales(keys=torch.stack(keys), values=torch.stack(values))

    def _is_cache_scale(self, name: str) -> bool:
        _, _, rest = name.partition(".self_attn.")
        return rest in _KEY_SCALES + _VALUE_SCALES

    def _cache_scale(self, layer: int, names: tuple[str, ...]) -> torch.Tensor | None:
        """[num_kv_heads] float32."""
        for name in (f"model.layers.{layer}.self_attn.{last}" for last in names):
            if name in super().names:
                scale = super().read(name).float().flatten()
                if scale.numel() not in (1, self._num_kv_heads):
                    raise StartupError(
                        "ModelInvalid",
                        f"{self._path(name)}: tensor {name} has {scale.numel()} numbers, must be 1 or {self._num_kv_heads}",
                    )
                return scale.expand(self._num_kv_heads)
        return None

    def _scales(self, name: str, cut: Cut) -> torch.Tensor:
        """Of each number of `cut`: float32, [rows or 1, columns or 1]."""
        scale_name = self._scale_of.get(name)
        if scale_name is None:
            raise StartupError(
                "ModelInvalid", f"{self._path(name)}: tensor {name} is of float8 and has no scale beside it"
            )
        scale, (num_rows, num_columns) = super().read(scale_name).float(), self.shape(name)
        if scale.numel() == 1:
            return scale.view(1, 1)
        rows, columns = (
            torch.arange(size)[slice(None) if part is None else slice(part.start, part.stop)]
            for size, part in ((num_rows, cut.rows), (num_columns, cut.columns))
        )
        if scale.numel() == num_rows and (scale.ndim == 1 or scale.shape[1] == 1):
            return scale.view(-1, 1)[rows]
        height, width = self._block or (0, 0)
        wanted = [-(-num_rows // height), -(-num_columns // width)] if self._block else "1 number, or one a row"
        if list(scale.shape) != wanted:
            raise StartupError(
                "ModelInvalid",
                f"{self._path(scale_name)}: tensor {scale_name} has shape {list(scale.shape)}, the weight of "
                f"{num_rows} outputs and {num_columns} inputs needs {wanted}",
            )
        return scale[rows // height][:, columns // width]
