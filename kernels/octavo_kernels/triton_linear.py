"""Linear layers on a GPU: the handles, which way each takes for how many rows, and what is measured of them at a start.

| weight | few rows | more |
|---|---|---|
| as in the checkpoint | up to 16: skinny_linear.py where it was measured to be faster | the vendor's product |
| the same, batch-invariant | invariant_linear.py | invariant_linear.py |
| of float8 | as above, against `torch._scaled_mm` | `torch._scaled_mm` |
| of 4 or 8 bits | up to 128: w4a16_linear.py | written out in parts for the vendor's product |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from triton.runtime.errors import OutOfResources

from octavo_kernels.checks import check_linear
from octavo_kernels.fp8_linear import fp8_linear
from octavo_kernels.fp8_weight import FP8, Fp8Weight
from octavo_kernels.invariant_linear import invariant_linear
from octavo_kernels.linear_tuning import Choice, FewRows, LinearShape, TuningCache, choose
from octavo_kernels.packed_weight import PackedWeight
from octavo_kernels.skinny_linear import MAX_ROWS, launch_skinny, tiling_of
from octavo_kernels.split_k import Epilogue, SplitTiling
from octavo_kernels.w4a16_linear import w4a16_linear, w4a16_tiling
from octavo_kernels.whole_weights import WholeLinear

logger = logging.getLogger(__name__)

TUNED_ROWS = (1, 8, MAX_ROWS)
"""Rows that are measured; their times are added up, since one choice serves them all."""

_TUNED_LAYERS = 8
"""Of one shape, in turn, so that no weight is still in the chip's cache when it is read again."""

_REPETITIONS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonLinear(WholeLinear):
    """On the device, contiguous."""

    few: FewRows | None
    """None: batch-invariant."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `KernelBackend.linear`."""
        if self.few is None:
            return invariant_linear(x, self.weight, self.bias)
        check_linear(x, self.weight)
        tiling = self.few.choice
        if tiling is None or x.shape[0] > MAX_ROWS:
            return F.linear(x, self.weight, self.bias)
        out = torch.empty((x.shape[0], self.out_features), dtype=x.dtype, device=x.device)
        launch_skinny(x, self.weight, out, tiling, Epilogue(bias=self.bias))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonPackedLinear:
    """Of 4 or 8 bits."""

    weight: PackedWeight
    bias: torch.Tensor | None
    """[out], dtype of the activations."""
    num_processors: int

    @property
    def in_features(self) -> int:
        return self.weight.in_features

    @property
    def out_features(self) -> int:
        return self.weight.out_features

    @property
    def weight_bytes(self) -> int:
        return self.weight.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `KernelBackend.linear`; x of any floating dtype."""
        weight = self.weight
        tiling = w4a16_tiling(weight.out_features, weight.in_features, weight.bits, x.dtype, self.num_processors)
        return w4a16_linear(x, weight, self.bias, tiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonFp8Linear:
    """Of float8; activations are rounded to it token by token."""

    fp8: Fp8Weight
    bias: torch.Tensor | None
    """[out] bfloat16."""
    few: FewRows

    @property
    def weight(self) -> torch.Tensor:
        """[out, in] float8."""
        return self.fp8.codes

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def weight_bytes(self) -> int:
        return self.fp8.num_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `KernelBackend.linear`; x: bfloat16."""
        return fp8_linear(x, self.fp8, self.bias, self.few.choice)


class LinearShapes:
    """The layers' shapes of one backend, and how each computes few rows. `few` may be called from several threads."""

    def __init__(self, num_processors: int, cache: TuningCache | None) -> None:
        """cache: None where nothing can be measured."""
        self._num_processors = num_processors
        self._cache = cache
        self._shapes: dict[LinearShape, FewRows] = {}

    def few(self, weight: torch.Tensor, dtype: torch.dtype | None = None) -> FewRows:
        """Of a weight [out, in], kept in its own dtype or in `dtype`, as was measured before."""
        shape = LinearShape(
            out_features=weight.shape[0],
            in_features=weight.shape[1],
            dtype=str(dtype or weight.dtype).removeprefix("torch."),
        )
        choice = None if self._cache is None else self._cache.get(shape)
        return self._shapes.setdefault(shape, FewRows(shape=shape, choice=choice))

    def tune(self, linears: Sequence[TritonLinear | TritonFp8Linear]) -> None:
        """Measures what has not been; layers of a shape are measured in turn."""
        if self._cache is None:
            return
        measured: dict[LinearShape, Choice] = {}
        for few in self._shapes.values():
            own = [linear for linear in linears if linear.few is few][:_TUNED_LAYERS]
            if own and not self._cache.has(few.shape):
                few.choice = measured[few.shape] = choose(self._candidates(own[0].weight), _clock(own))
        if measured:
            self._cache.keep(measured)
            logger.info(
                "measured linear layers of few rows",
                extra={"shapes": len(measured), "ours": sum(choice is not None for choice in measured.values())},
            )

    def _candidates(self, weight: torch.Tensor) -> list[SplitTiling]:
        """None of float32, which the matrix units multiply in pieces."""
        if weight.dtype == torch.float32:
            return []
        num_columns, depth = weight.shape
        return [
            tiling_of(num_columns, depth, weight.dtype, self._num_processors, block_n=block_n, num_stages=num_stages)
            for block_n, num_stages in ((64, 6), (64, 4), (32, 6), (128, 3))
        ]


def _clock(linears: Sequence[TritonLinear | TritonFp8Linear]) -> Callable[[Choice], float]:
    """-> seconds of all these layers, of one shape, by a choice."""
    few, weight = linears[0].few, linears[0].weight
    assert few is not None, "nothing is measured of a layer that has one way"
    # activations come in 16 bits where the weight has 8
    dtype = torch.bfloat16 if weight.dtype == FP8 else weight.dtype
    inputs = [torch.randn(rows, weight.shape[1], device=weight.device).to(dtype) for rows in TUNED_ROWS]

    def seconds(choice: Choice) -> float:
        few.choice = choice
        try:
            return _replayed_seconds(lambda: [linear(x) for x in inputs for linear in linears])
        except OutOfResources:
            # a smaller chip than the candidate was made for
            return float("inf")

    return seconds


def _replayed_seconds(run: Callable[[], object]) -> float:
    """The least of some replays of a graph, in which the host's time for launches does not count."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch does not annotate it
    taken = []
    for _ in range(_REPETITIONS):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        taken.append(float(start.elapsed_time(end)) / 1e3)
    return min(taken)
