"""Linear layers on a CPU: for float32, oneDNN in a few fixed numbers of rows.

`F.linear` hands float32 to MKL, which off Intel's processors reaches half of what oneDNN does. But oneDNN compiles code
for each number of rows and keeps it, some 0.6 MB a layer's shape, so rows are cut and filled up to the sizes below.

| rows | way |
|---|---|
| 1, 8 to 256 as in `SIZES` | oneDNN, as they are |
| 2 to 4 | a product with the weight as its left operand, which is faster still |
| others | chunks of 256, the rest filled up to the next size |

Which of these it is shows in a row's last bits. Batch-invariant, all numbers of rows are cut into chunks of one size, and
the last is filled up, so that a row goes through the same code whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""x: [num_rows, in], weight: [out, in], bias: [out] or None -> [num_rows, out], contiguous."""

SIZES = (1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows that oneDNN compiles for."""
MAX_FEW_ROWS = 4
INVARIANT_ROWS = 16
"""Rows of every product where a row must not depend on others: decodes waste little, prefills some speed."""


def select_linear() -> Linear:
    """The fastest that this torch has."""
    onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch does not annotate it
    if not onednn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return F.linear
    return _linear


def invariant(linear: Linear) -> Linear:
    """The same in chunks of INVARIANT_ROWS."""

    def in_chunks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        num_rows = x.shape[0]
        rows = F.pad(x, (0, 0, 0, -num_rows % INVARIANT_ROWS))
        out = torch.empty((rows.shape[0], weight.shape[0]), dtype=x.dtype)
        for start in range(0, rows.shape[0], INVARIANT_ROWS):
            chunk = slice(start, start + INVARIANT_ROWS)
            out[chunk] = linear(rows[chunk], weight, bias)
        return out[:num_rows]

    return in_chunks


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    num_rows, largest = x.shape[0], SIZES[-1]
    if x.dtype != torch.float32 or num_rows == 0:
        return F.linear(x, weight, bias)
    if 2 <= num_rows <= MAX_FEW_ROWS:
        return _few_rows(x, weight, bias)
    if num_rows <= largest:
        return _filled_up(x, weight, bias)
    out = torch.empty((num_rows, weight.shape[0]), dtype=x.dtype)
    for start in range(0, num_rows, largest):
        out[start : start + largest] = _filled_up(x[start : start + largest], weight, bias)
    return out


def _filled_up(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x: [1 to 256, in] float32."""
    num_rows = x.shape[0]
    size = next(size for size in SIZES if size >= num_rows)
    rows = x if size == num_rows else F.pad(x, (0, 0, 0, size - num_rows))
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:num_rows]


def _few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x: [2 to 4, in] float32."""
    out = torch.mm(weight, x.t()).t().contiguous()
    return out if bias is None else out.add_(bias)
