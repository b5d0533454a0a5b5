"""Weights of a Hugging Face folder: one `model.safetensors`, or shards that `model.safetensors.index.json` lists."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from octavo_server.errors import StartupError
from octavo_server.models.location import read_json
from octavo_server.models.shard import WHOLE

if TYPE_CHECKING:
    import torch

    from octavo_kernels.quantized_weight import QuantizedWeight
    from octavo_server.models.shard import Cut

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class SafetensorsWeights:
    """Owns the mapped files."""

    def __init__(self, folder: Path, *, has_codes: bool = False) -> None:
        """has_codes: whether float8 is read too, as it is stored; numbers without their scale mean nothing."""
        self._folder = folder
        self._item_bytes = {**_ITEM_BYTES, "F8_E4M3": 1} if has_codes else _ITEM_BYTES
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        for file_name, listed in _shards(folder).items():
            handle = _open(folder / file_name)
            self._files[file_name] = handle
            present = set(handle.keys())
            for name in present if listed is None else listed:
                if name not in present:
                    raise StartupError("ModelInvalid", f"{folder / file_name}: tensor {name} is missing from its shard")
                self._file_of[name] = file_name

    @property
    def description(self) -> str:
        return str(self._folder)

    @property
    def names(self) -> Collection[str]:
        return self._file_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        piece = self._slice(name)
        if piece.get_dtype() not in self._item_bytes:
            known = ", ".join(self._item_bytes)
            message = f"{self._path(name)}: tensor {name} is {piece.get_dtype()}; supported types are {known}"
            raise StartupError("ModelInvalid", message)
        return tuple(piece.get_shape())

    def num_bytes(self, name: str) -> int:
        piece = self._slice(name)
        count = self._item_bytes.get(piece.get_dtype(), 1)
        for size in piece.get_shape():
            count *= size
        return count

    def read(self, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        if cut == WHOLE:
            tensor: torch.Tensor = self._files[self._file_of[name]].get_tensor(name)
        else:
            tensor = self._slice(name)[cut.index]
        return tensor

    def read_codes(self, _name: str, _cut: Cut = WHOLE) -> QuantizedWeight | None:
        return None

    def rope_divisors(self) -> tuple[float, ...] | None:
        return None

    def _slice(self, name: str) -> Any:
        return self._files[self._file_of[name]].get_slice(name)

    def _path(self, name: str) -> Path:
        return self._folder / self._file_of[name]


def _shards(folder: Path) -> dict[str, list[str] | None]:
    """File name -> the tensors that it must hold; None: whatever it holds."""
    if (folder / _SINGLE).is_file():
        return {_SINGLE: None}
    if not (folder / _INDEX).is_file():
        raise StartupError("ModelNotFound", f"{folder} holds neither {_SINGLE} nor {_INDEX}")
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartupError("ModelInvalid", f"{folder / _INDEX} has no weight_map")
    shards: dict[str, list[str] | None] = {}
    for name, file_name in weight_map.items():
        listed = shards.setdefault(Path(str(file_name)).name, [])
        assert listed is not None
        listed.append(name)
    return shards


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise StartupError("ModelNotFound", f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise StartupError("ModelInvalid", f"{path} is truncated or damaged: {error}") from error
