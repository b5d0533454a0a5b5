"""The tensor types of a GGUF file that we read, and how their blocks become float32 or codes of few bits.

The block arithmetic is the `gguf` package's, imported on first use (0.2 s) so that reading metadata stays cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from octavo_kernels.quantized_weight import QuantizedWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFType:
    """One ggml tensor type."""

    name: str
    block_size: int
    """Elements a block."""
    block_bytes: int


# The codes are ggml's, fixed by the file format (ggml.h, enum ggml_type).
GGUF_TYPES: dict[int, GGUFType] = {
    0: GGUFType(name="F32", block_size=1, block_bytes=4),
    1: GGUFType(name="F16", block_size=1, block_bytes=2),
    2: GGUFType(name="Q4_0", block_size=32, block_bytes=18),
    3: GGUFType(name="Q4_1", block_size=32, block_bytes=20),
    6: GGUFType(name="Q5_0", block_size=32, block_bytes=22),
    7: GGUFType(name="Q5_1", block_size=32, block_bytes=24),
    8: GGUFType(name="Q8_0", block_size=32, block_bytes=34),
    12: GGUFType(name="Q4_K", block_size=256, block_bytes=144),
    14: GGUFType(name="Q6_K", block_size=256, block_bytes=210),
    30: GGUFType(name="BF16", block_size=1, block_bytes=2),
}


_CODE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def code_bits(code: int) -> int | None:
    """Bits of a type whose blocks are kept as they are; None for any other."""
    return _CODE_BITS.get(GGUF_TYPES[code].name) if code in GGUF_TYPES else None


def type_name(code: int) -> str:
    """Name of any ggml type, of those that we do not read too."""
    if code in GGUF_TYPES:
        return GGUF_TYPES[code].name
    from gguf import GGMLQuantizationType

    try:
        return str(GGMLQuantizationType(code).name)
    except ValueError:
        return f"type {code}"


def dequantize_rows(blocks: NDArray[np.uint8], code: int) -> NDArray[np.float32]:
    """blocks: [rows, row bytes] uint8 of a type in GGUF_TYPES -> [rows, columns] float32, new memory."""
    import numpy as np

    if code == 0:
        return blocks.view(np.float32).copy()
    if code == 1:
        return blocks.view(np.float16).astype(np.float32)
    if GGUF_TYPES[code].name == "Q8_0":
        # One product, and of most files the only type whose numbers a start needs: without it, no import of gguf.
        raw = blocks.reshape(blocks.shape[0], -1, GGUF_TYPES[code].block_bytes)
        products = raw[..., 2:].view(np.int8).astype(np.float32)
        products *= np.ascontiguousarray(raw[..., :2]).view(np.float16).astype(np.float32)
        return products.reshape(blocks.shape[0], -1)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values: NDArray[np.float32] = dequantize(blocks, GGMLQuantizationType(code))
    return values


def read_codes(blocks: NDArray[np.uint8], code: int) -> QuantizedWeight | None:
    """blocks: [rows, row bytes] uint8 -> the same numbers as codes; None for a type that is not one of small blocks.

    A block of 32 is, in ggml's order: the scale, float16; Q4_1's minimum, float16; the codes, of 4 bits the first 16
    in the low halves of bytes.
    """
    import numpy as np
    import torch

    from octavo_kernels.quantized_weight import QuantizedWeight

    kind, bits = GGUF_TYPES[code], code_bits(code)
    if bits is None:
        return None
    # raw: [rows, groups, bytes of a block]
    raw = blocks.reshape(blocks.shape[0], -1, kind.block_bytes)
    numbers = 2 if kind.name == "Q4_1" else 1
    scales, *stored = (
        np.ascontiguousarray(raw[..., 2 * i : 2 * i + 2]).view(np.float16)[..., 0].astype(np.float32)
        for i in range(numbers)
    )
    packed = raw[..., 2 * numbers :]
    if kind.name == "Q8_0":
        # int8 with its sign bit turned is the code + 128
        codes, minima = packed ^ 128, scales * -128
    else:
        codes = np.concatenate((packed & 15, packed >> 4), axis=-1)
        minima = stored[0] if stored else scales * -8
    return QuantizedWeight(
        bits=bits,
        codes=torch.from_numpy(codes.reshape(blocks.shape[0], -1)),
        scales=torch.from_numpy(scales),
        minima=torch.from_numpy(minima),
    )
