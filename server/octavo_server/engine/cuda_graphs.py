"""The only module that knows CUDA graphs: a function's launches recorded once, and launched again as one.

On AMD torch calls HIP's graphs by the same name.
"""

# Torch's stubs leave what is called here untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


class CudaGraphRecorder:
    """Implements `Recorder`. All its graphs share one pool of memory, so the largest should be recorded first."""

    def __init__(self) -> None:
        self._first: torch.cuda.CUDAGraph | None = None

    def record(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """As Recorder."""
        # Whatever is made at a first call must not be made while recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=None if self._first is None else self._first.pool()):
            run()
        self._first = self._first or graph
        return graph
