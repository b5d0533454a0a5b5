"""Rank 0 of several: loads its part beside the others, and tells them of each step so that they compute it with it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.distributed.communicator import TorchDistributed
from octavo_server.distributed.follower import Setup
from octavo_server.distributed.followers import Followers
from octavo_server.distributed.orders import ALL_ROWS, Connect, Forward, Logits, StepTensors, pack
from octavo_server.errors import StartupError
from octavo_server.models.decoder import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from octavo_kernels.batches import AttentionBatch
    from octavo_kernels.handles import KVCache
    from octavo_server.config import EngineConfig
    from octavo_server.models.loader import LoadedModel


def load_in_parallel(
    config: EngineConfig, location: Path, device: str, load: Callable[..., LoadedModel]
) -> LoadedModel:
    """The model, on `config.tensor_parallel_size` ranks; its decoder is closed by who asked for it.

    Args:
        config: of the engine.
        location: of the model on this machine.
        device: "cpu" or "cuda".
        load: loads what its argument `communicator` says, this rank's part.

    Raises:
        StartupError: there are too few GPUs, or a rank cannot load its part.
    """
    import torch

    size, num_threads = config.tensor_parallel_size, 1
    if device == "cpu":
        # Together as many as one rank alone would have.
        num_threads = max(1, torch.get_num_threads() // size)
        torch.set_num_threads(num_threads)
    elif torch.cuda.device_count() < size:
        found = torch.cuda.device_count()
        raise StartupError(
            "SpecInvalid", f"--tensor-parallel-size {size} needs {size} GPUs, torch finds {found}; use {found} or less"
        )
    folder = tempfile.mkdtemp(prefix="octavo-ranks-")
    meeting = Path(folder) / "meeting"
    setups = [
        Setup(
            rank=rank,
            size=size,
            meeting=str(meeting),
            location=str(location),
            dtype=config.dtype,
            device=device if device == "cpu" else f"{device}:{rank}",
            quantization=config.quantization,
            load_format=config.load_format,
            kv_cache_dtype=config.kv_cache_dtype,
            num_threads=num_threads,
        )
        for rank in range(1, size)
    ]
    communicator = TorchDistributed(0, size)
    followers = Followers(setups, folder, communicator.abort)
    try:
        model = load(communicator=communicator)
        overhead_bytes = followers.wait_until_loaded()
        with followers.in_step():
            followers.send(Connect())
            communicator.connect(meeting, model.backend.device)
    except BaseException:
        followers.close()
        raise
    return replace(model, decoder=LeadingDecoder(model.decoder, followers), other_overhead_bytes=overhead_bytes)


class LeadingDecoder(Decoder):
    """Rank 0's part of a decoder. Owns the other ranks."""

    def __init__(self, own: Decoder, followers: Followers) -> None:
        super().__init__(own.config, own.weights, own.backend, own.communicator)
        self.followers = followers

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As Decoder."""
        order = Forward(
            num_tokens=token_ids.shape[0],
            num_seqs=attention.seq_lens.shape[0],
            table_width=attention.block_tables.shape[1],
            num_rows=ALL_ROWS if rows is None else rows.shape[0],
            max_query_len=attention.max_query_len,
            max_seq_len=attention.max_seq_len,
            min_query_len=attention.min_query_len,
            num_blocks=cache.spec.num_blocks,
            block_size=cache.spec.block_size,
        )
        words = pack(StepTensors(token_ids=token_ids, positions=positions, attention=attention, rows=rows))
        with self.followers.in_step():
            self.followers.send(order)
            self.communicator.broadcast(words)
            return super().forward(token_ids, positions, attention, cache, rows)

    def logits(self, hidden: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """As Decoder."""
        start, stop, _ = rows.indices(hidden.shape[0])
        with self.followers.in_step():
            self.followers.send(Logits(start=start, stop=stop))
            return super().logits(hidden, rows)

    def check(self) -> None:
        """As Decoder."""
        self.followers.check()

    def close(self) -> None:
        """As Decoder."""
        self.followers.close()
