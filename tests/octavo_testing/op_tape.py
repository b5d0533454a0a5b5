"""What a CUDA graph does, on a CPU: operations with their arguments recorded once, and done again on the same memory.

What a function computed on the host while it was recorded (a number, a branch, another tensor) stays as it was then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo_kernels.batches import AttentionBatch, SamplingBatch
from octavo_kernels.handles import AttentionPlan, KVCache, LinearHandle
from octavo_kernels.sample_ref import gumbel_noise, marked
from octavo_kernels.torch_backend import TorchBackend, TorchKVCache, TorchLinear


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, _tensors(found)))
        return found


def _tensors(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in found for tensor in _tensors(part)] if isinstance(found, tuple | list) else []


@dataclass
class Tape:
    """Implements `Recording`."""

    calls: list[tuple[Any, Any, Any, list[torch.Tensor]]]
    num_replays: int = 0

    def replay(self) -> None:
        self.num_replays += 1
        for func, args, kwargs, outs in self.calls:
            for out, new in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                # else it is a view, or was done in place
                if out.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    out.copy_(new)


@dataclass
class TapeRecorder:
    """Implements `Recorder`."""

    tapes: list[Tape] = field(default_factory=list)

    def record(self, run: Callable[[], None]) -> Tape:
        run()
        with _Recording() as recording:
            run()
        self.tapes.append(Tape(recording.calls))
        return self.tapes[-1]


class DeviceLikeBackend(TorchBackend):
    """As on a GPU nothing is read on the host, and a row comes out the same, to the last bit, whatever stands beside it.

    `max_blocks`: to which block tables are filled up, so that sums are over as many terms.
    """

    def __init__(self, max_blocks: int) -> None:
        super().__init__(torch.device("cpu"))
        self._max_blocks = max_blocks

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        assert isinstance(handle, TorchLinear)
        out = (x[:, None, :] * handle.weight[None]).sum(-1)
        return out if handle.bias is None else out + handle.bias

    def plan_attention(
        self, batch: AttentionBatch, cache: KVCache, num_heads: int, window: int | None = None
    ) -> AttentionPlan:
        assert window is None
        return batch  # type: ignore[return-value]  # opaque to who asked for it

    def attention(self, q: torch.Tensor, cache: KVCache, layer: int, plan: AttentionPlan, scale: float) -> torch.Tensor:
        assert isinstance(plan, AttentionBatch)
        assert isinstance(cache, TorchKVCache)
        batch: AttentionBatch = plan
        size, group = cache.spec.block_size, q.shape[1] // cache.spec.num_kv_heads
        width = batch.block_tables.shape[1]
        tables = torch.nn.functional.pad(batch.block_tables, (0, max(0, self._max_blocks - width)))[
            :, : self._max_blocks
        ]
        offsets = torch.arange(self._max_blocks * size)
        rows = torch.arange(q.shape[0])
        owners = torch.searchsorted(batch.query_start_loc[1:], rows, right=True)
        positions = rows - batch.query_start_loc[1:][owners] + batch.seq_lens[owners]
        slots = tables[owners][:, offsets // size].long() * size + offsets % size
        # kv: [num_tokens, positions, 2, num_heads, head_dim] f32
        kv = cache.slots[layer][slots].repeat_interleave(group, dim=3)
        is_seen = (offsets <= positions[:, None])[..., None]
        scores = (q[:, None] * kv[:, :, 0]).sum(-1) * scale
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(1)
        return (weights[..., None] * kv[:, :, 1].masked_fill(~is_seen[..., None], 0)).sum(1)

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        """top-k, top-p and min-p as in the reference, of all rows at once."""
        scaled = logits / torch.where(params.temperature == 0, 1, params.temperature)[:, None]
        values, order = scaled.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[1])
        top_k = torch.where(params.top_k == 0, logits.shape[1], params.top_k)[:, None]
        weights = torch.exp(values - values[:, :1]).masked_fill(ranks >= top_k, 0.0)
        before = weights.double().cumsum(-1) - weights.double()
        keep = (ranks < top_k) & (before < params.top_p[:, None] * weights.double().sum(-1, keepdim=True))
        keep |= params.top_p[:, None] >= 1
        keep = (keep & (ranks < top_k) & (weights >= params.min_p[:, None])) | (ranks == 0)
        kept = torch.zeros_like(keep).scatter(1, order, keep)
        noise = gumbel_noise(params.seed[:, None], params.position[:, None], ranks[None])
        drawn = (scaled + noise).masked_fill(~kept, -torch.inf).argmax(-1)
        largest, greedy = logits.max(-1)
        return marked(torch.where(params.temperature == 0, greedy, drawn), largest)
