"""Files and batches of one server: opened with `--data-dir`, worked on beside live requests, closed with the server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.api.private_door import PrivateDoor
from octavo_server.batch.pace import Load, Pace
from octavo_server.batch.runner import LineRunner
from octavo_server.batch.storage import Store, StoreLimits
from octavo_server.batch.worker import BatchWorker, WorkerParts
from octavo_server.engine.async_engine import EngineState

if TYPE_CHECKING:
    from aiohttp import web

    from octavo_server.api.state import ServerState


class BatchService:
    """Owns store, worker and private door."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        config = state.config
        self._door = PrivateDoor(next(iter(config.api_key), None))
        self._pace = Pace(config.max_batch_concurrency)
        self._runner = LineRunner(self._door, self._num_allowed, new_id=state.new_id, clock=time.monotonic)
        self._opened: Store | None = None
        self._worker: BatchWorker | None = None
        self._waker: asyncio.Task[None] | None = None

    @property
    def store(self) -> Store:
        assert self._opened is not None
        return self._opened

    def wake(self) -> None:
        """A batch is new, or was cancelled."""
        if self._worker is not None:
            self._worker.wake()

    async def start(self, server: web.Server) -> None:
        """Opens everything.

        Raises:
            ConfigError: the folder cannot be used.
        """
        config = self._state.config
        assert config.data_dir is not None
        limits = StoreLimits(
            max_files=config.max_stored_files,
            max_bytes=config.max_stored_bytes,
            max_upload_bytes=config.max_upload_bytes,
            max_age_s=config.max_stored_age,
        )
        folder = Path(config.data_dir).expanduser()
        self._opened = await asyncio.to_thread(Store, folder, limits, clock=lambda: self._state.wall_clock())
        await self._door.open(server)
        parts = WorkerParts(
            store=self._opened,
            runner=self._runner,
            max_line_bytes=config.max_request_bytes,
            max_lines=config.max_batch_lines,
            new_id=self._state.new_id,
            is_ready=self._is_ready,
        )
        self._worker = BatchWorker(parts)
        self._worker.start()
        self._waker = asyncio.create_task(self._wake_when_ready())

    async def stop(self) -> None:
        """Gives running lines back; they run again after the next start."""
        if self._waker is not None:
            self._waker.cancel()
        if self._worker is not None:
            await self._worker.aclose()
        await self._door.aclose()

    async def aclose(self) -> None:
        """When nobody asks any more: lets another server use the folder."""
        if self._opened is not None:
            self._opened.close()

    def _is_ready(self) -> bool:
        return not self._state.draining and self._state.engine.state is EngineState.READY

    async def _wake_when_ready(self) -> None:
        await self._state.engine.wait_until(EngineState.READY, EngineState.DEAD)
        self.wake()

    def _num_allowed(self, num_running: int) -> int:
        state = self._state
        snapshot = state.engine.snapshot
        load = Load(
            is_open=self._is_ready(),
            num_live=max(0, state.num_active - num_running),
            num_waiting=snapshot.num_waiting,
            max_num_seqs=snapshot.max_num_seqs,
        )
        return self._pace.num_allowed(load, num_running, time.monotonic())
