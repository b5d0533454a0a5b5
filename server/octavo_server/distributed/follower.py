"""A rank beyond the first: `python -m octavo_server.distributed.follower FD SETUP`, started by `Followers` alone.

Loads its part of the model, then does what rank 0 orders until rank 0 closes its end of the socket, however that comes
about; then it ends, in the middle of whatever it does.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.distributed.orders import Connect, Forward, Logits, receive, unpack
from octavo_server.errors import StartupError
from octavo_server.logs import set_up_logging

if TYPE_CHECKING:
    import torch

    from octavo_kernels.handles import KVCache
    from octavo_server.distributed.communicator import TorchDistributed
    from octavo_server.models.loader import LoadedModel

logger = logging.getLogger(__name__)

LEAVE_S = 1.0
"""For an end by itself, once rank 0 is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that a rank must know; plain values, since they cross as JSON."""

    rank: int
    size: int
    meeting: str
    """Path at which all ranks meet, see `TorchDistributed.connect`."""
    location: str
    dtype: str
    device: str
    quantization: str
    load_format: str
    kv_cache_dtype: str
    num_threads: int
    """Of torch, on a CPU."""


def main(argv: list[str]) -> int:
    """0 where rank 0 ended it, 1 where it failed, which rank 0 has then been told."""
    channel = socket.socket(fileno=int(argv[0]))
    threading.Thread(target=_end_with_leader, args=(channel,), name="octavo-leader", daemon=True).start()
    # Signals to the whole group, such as Ctrl-C's, are rank 0's to answer: it lets what runs finish.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Rank 0 says what there is to say of a model.
    set_up_logging("error")
    try:
        follower = Follower(Setup(**json.loads(argv[1])))
        _tell(channel, "loaded", overhead_bytes=follower.overhead_bytes)
        follower.follow(channel)
    except StartupError as error:
        _tell(channel, "failed", reason=error.reason, message=str(error))
        return 1
    except Exception as error:  # whatever it is, rank 0 must know of it
        logger.exception("a rank failed", extra={"argv": argv[1:]})
        _tell(channel, "failed", reason="EngineCrashed", message=f"{type(error).__name__}: {error}")
        return 1
    return 0


class Follower:
    """Owns this rank's part of the model and its KV cache."""

    def __init__(self, setup: Setup) -> None:
        from octavo_server.distributed.communicator import TorchDistributed
        from octavo_server.plan.this_machine import gpu_overhead_bytes

        self._meeting = Path(setup.meeting)
        self._communicator = TorchDistributed(setup.rank, setup.size)
        self._model = _load(setup, self._communicator)
        self._cache: KVCache | None = None
        self.overhead_bytes = gpu_overhead_bytes(self._model.num_weight_bytes) if setup.device != "cpu" else 0

    def follow(self, channel: socket.socket) -> None:
        """Obeys until rank 0 has closed its end."""
        import torch

        hidden = torch.empty(0)
        decoder = self._model.decoder
        with torch.inference_mode():
            while (order := receive(channel)) is not None:
                match order:
                    case Connect():
                        self._communicator.connect(self._meeting, self._model.backend.device)
                    case Forward():
                        hidden = self._forward(order)
                    case Logits():
                        decoder.logits(hidden, slice(order.start, order.stop))

    def _forward(self, order: Forward) -> torch.Tensor:
        import torch

        words = torch.empty(order.num_words, dtype=torch.int32, device=self._model.backend.device)
        self._communicator.broadcast(words)
        step = unpack(words, order)
        cache = self._cache_like(order)
        return self._model.decoder.forward(step.token_ids, step.positions, step.attention, cache, step.rows)

    def _cache_like(self, order: Forward) -> KVCache:
        wanted = self._model.kv_cache_spec(order.num_blocks, order.block_size)
        if self._cache is None or self._cache.spec != wanted:
            # The old one first, so that both need not fit.
            self._cache = None
            self._cache = self._model.decoder.allocate_kv_cache(wanted)
        return self._cache


def _load(setup: Setup, communicator: TorchDistributed) -> LoadedModel:
    import torch

    from octavo_server.models.loader import load_model

    if setup.device == "cpu":
        torch.set_num_threads(setup.num_threads)
    else:
        torch.cuda.set_device(setup.rank)
    try:
        model = load_model(
            setup.location,
            dtype=setup.dtype,
            device=setup.device,
            quantization=setup.quantization,
            load_format=setup.load_format,
            communicator=communicator,
        )
    except torch.OutOfMemoryError as error:
        raise StartupError("GPUOutOfMemory", "its part of the weights does not fit into its GPU's memory") from error
    except MemoryError as error:
        raise StartupError("HostOutOfMemory", "its part of the weights does not fit into memory") from error
    if setup.quantization != "none" and setup.device == "cpu":
        # The compiled kernels have threads of their own.
        torch.set_num_threads(1)
    return model.keeping(setup.kv_cache_dtype)


def _tell(channel: socket.socket, what: str, **values: object) -> None:
    try:
        channel.sendall(json.dumps({"what": what, **values}).encode() + b"\n")
    except OSError:
        logger.error("rank 0 is gone")


def _end_with_leader(channel: socket.socket) -> None:
    """Also where this rank's own thread waits inside a call for a rank that is gone."""
    poll = select.poll()
    # Nothing but that the other end is closed.
    poll.register(channel, 0)
    poll.poll()
    threading.Event().wait(LEAVE_S)
    os._exit(1)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    sys.stderr.flush()
    # Nothing here needs an orderly end, and threads inside a kernel would not let it be one.
    os._exit(status)
