"""Where weights come from: named tensors, under the names that Hugging Face's checkpoints give them.

A source knows nothing of a model's shape; `decoder_weights.py` asks for what the configuration needs and says what is
missing, mis-shaped or left over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from octavo_server.models.fp8_weights import Fp8Weights
from octavo_server.models.gguf_weights import GGUFWeights
from octavo_server.models.safetensors_weights import SafetensorsWeights
from octavo_server.models.shard import WHOLE

if TYPE_CHECKING:
    import torch

    from octavo_kernels.handles import KVScales
    from octavo_kernels.quantized_weight import QuantizedWeight
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.location import ModelLocation
    from octavo_server.models.shard import Cut

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all) while weights load, after each tensor, from one thread at a time."""


class WeightSource(Protocol):
    """Tensors of one checkpoint. `read` may be called from several threads."""

    @property
    def description(self) -> str:
        """The folder or file, for messages."""

    @property
    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises StartupError when the tensor is of a type that we do not read."""

    def num_bytes(self, name: str) -> int:
        """Stored bytes of a tensor."""

    def read(self, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        """What is stored of `cut`, on the CPU, float32, float16 or bfloat16; nothing else of the file is read.

        May share the file's memory, so it is not written.
        """

    def read_codes(self, name: str, cut: Cut = WHOLE) -> QuantizedWeight | None:
        """`cut` of a matrix of few bits as it is stored, columns at groups' edges; None where it is stored otherwise."""

    def rope_divisors(self) -> tuple[float, ...] | None:
        """[head_dim / 2] factors that divide the rotary frequencies, where the checkpoint stores them as a tensor."""


@runtime_checkable
class Fp8Source(WeightSource, Protocol):
    """Weights of float8."""

    def read_fp8(self, name: str, cut: Cut = WHOLE) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Codes [rows, columns] float8_e4m3fn of `cut` and scales [rows] float32; None where it is stored otherwise."""

    def kv_scales(self) -> KVScales | None:
        """[num_layers, num_kv_heads] each, on the CPU; None where the checkpoint has none."""


def open_weights(location: ModelLocation, config: ModelConfig) -> WeightSource:
    """The source of `location`; reads headers alone.

    Raises:
        StartupError: ModelNotFound or ModelInvalid.
    """
    if location.is_gguf:
        return GGUFWeights(location.path, config)
    if config.fp8 is not None:
        return Fp8Weights(location.path, config, config.fp8)
    return SafetensorsWeights(location.path)
