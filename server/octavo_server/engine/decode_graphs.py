"""Decode steps of fixed sizes, each recorded once and replayed as one launch: from slots to tokens, sampling included.

A step of fewer sequences is filled up to the next size with the slot that is nobody's: those rows read null blocks and are
written nowhere. All that a recorded step reads or leaves lies in buffers that never move: the slots' tables, one buffer of
inputs a size, and logits and tokens that all sizes share. Requests that edit logits or ask for log-probabilities are
drawn anew from the logits that the step has left.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from octavo_server.engine.resident_batch import prepare
from octavo_server.engine.transfers import upload_into
from octavo_server.graph_sizes import graph_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo_kernels.handles import KVCache
    from octavo_server.engine.request_slots import RequestSlots
    from octavo_server.models.decoder import Decoder


class Recording(Protocol):
    """Launches that were recorded."""

    def replay(self) -> None:
        """Launches all of them again, on the memory that they were recorded with."""


class Recorder(Protocol):
    """Records what a function launches."""

    def record(self, run: Callable[[], None]) -> Recording:
        """Calls `run`, which must wait for nothing and read the same memory each time; once more before it records."""


class DecodeGraphs:
    """Owns the recordings and their buffers."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, slots: RequestSlots, *, max_num_seqs: int, max_model_len: int
    ) -> None:
        """`max_model_len`: tokens of a sequence at most, which the slots' tables have room for."""
        device = decoder.backend.device
        self.sizes = graph_sizes(max_num_seqs)
        self._decoder = decoder
        self._cache = cache
        self._slots = slots
        self._max_model_len = max_model_len
        # A size's slots, positions and tokens: [3, size] int64
        self._inputs = {
            size: torch.tensor(_filled([], [], [], size, slots.padding), device=device) for size in self.sizes
        }
        self._logits = torch.zeros((self.sizes[-1], decoder.config.vocab_size), dtype=torch.float32, device=device)
        self._tokens = torch.zeros(self.sizes[-1], dtype=torch.int64, device=device)
        self._recordings: dict[int, Recording] = {}

    def record(self, recorder: Recorder) -> None:
        """Records every size; nothing is written but the buffers."""
        # The largest first: the others find all their memory in what it has left.
        for size in reversed(self.sizes):
            self._recordings[size] = recorder.record(lambda size=size: self._step(size))  # type: ignore[misc]

    def takes(self, num_seqs: int) -> bool:
        """Whether there is a size for so many."""
        return num_seqs <= self.sizes[-1]

    def run(self, slots: list[int], positions: list[int], token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """One token each of as many sequences as `takes` allows.

        Returns:
            Tokens [num_seqs] int64, new, which their slots have too, and logits [num_seqs, vocab] float32, which may be
            written and stay until the next call.
        """
        num_seqs = len(slots)
        size = self.sizes[bisect_left(self.sizes, num_seqs)]
        upload_into(self._inputs[size], np.array(_filled(slots, positions, token_ids, size, self._slots.padding)))
        self._recordings[size].replay()
        return self._tokens[:num_seqs].clone(), self._logits[:num_seqs]

    def _step(self, size: int) -> None:
        slots, starts, given = self._inputs[size]
        token_ids, positions, attention = prepare(
            self._slots, slots, starts, None, given, query_lens=(1, 1), max_seq_len=self._max_model_len
        )
        hidden = self._decoder.forward(token_ids, positions, attention, self._cache)
        logits = self._logits[:size]
        self._decoder.write_logits(hidden, logits)
        tokens = self._decoder.backend.sample(logits, self._slots.sampling(slots, positions + 1, all_greedy=False))
        self._slots.keep_tokens(slots, tokens)
        self._tokens[:size].copy_(tokens)


def _filled(slots: list[int], positions: list[int], token_ids: list[int], size: int, padding: int) -> list[list[int]]:
    """Rows of a size's inputs."""
    num_empty = size - len(slots)
    return [slots + [padding] * num_empty, positions + [0] * num_empty, token_ids + [0] * num_empty]
