"""One model on several ranks: processes of their own as the engine starts them, or parts alone, without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from octavo_server.config import EngineConfig
from octavo_server.distributed.communicator import TorchDistributed
from octavo_server.distributed.leader import LeadingDecoder, load_in_parallel
from octavo_server.models.loader import LoadedModel, load_model


@contextmanager
def on_ranks(model: Path, size: int, **settings: Any) -> Iterator[LoadedModel]:
    """Rank 0's part; the others are led by its decoder. `settings` are fields of EngineConfig that loading knows."""
    config = EngineConfig(model=str(model), tensor_parallel_size=size, device="cpu", **settings)
    loaded = load_in_parallel(config, model, "cpu", partial(load_model, model, **settings))
    try:
        yield loaded
    finally:
        loaded.decoder.close()


def parts_of(model: Path, size: int, **settings: Any) -> list[LoadedModel]:
    """Each rank's part, in this process; they cannot compute, since they are not connected."""
    return [load_model(model, communicator=TorchDistributed(rank, size), **settings) for rank in range(size)]


def pids_of(loaded: LoadedModel) -> list[int]:
    """Of the ranks beyond the first."""
    assert isinstance(loaded.decoder, LeadingDecoder)
    return loaded.decoder.followers.pids
