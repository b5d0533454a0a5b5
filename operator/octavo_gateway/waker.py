"""Wakes models from zero: while requests of one wait, its source is asked again and again to scale it to 1."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from .endpoints import Model, RoutingTable
from .errors import KubeApiError
from .metrics import Metrics
from .router import Router

logger = logging.getLogger(__name__)

WAKE_EVERY_S = 2.0
CONFLICT = 409


class WakesModels(Protocol):
    async def wake(self, model: Model) -> None:
        """Scale from 0 to 1; raises KubeApiError where that was refused."""
        ...


class Waker:
    """Owns the time of each model's last wake, which the operator reads before it writes a zero."""

    def __init__(
        self, router: Router, source: WakesModels, metrics: Metrics, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._router = router
        self._source = source
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._tried: dict[str, float] = {}
        self.last_wake: dict[str, float] = {}
        """Unix seconds by model key."""
        self.refused: dict[str, KubeApiError] = {}
        """Why the last wake came to nothing, by model key; absent where it did not."""
        router.on_table(self._forget_gone)

    async def run(self) -> None:
        """Look whenever a held request does; `WAKE_EVERY_S` bounds how often one model is written."""
        while True:
            await self._router.waiting.wait()
            self._router.waiting.clear()
            due = [model for model in self._held_models() if self._is_due(model)]
            await asyncio.gather(*(self._wake(model) for model in due))

    def _held_models(self) -> list[Model]:
        models = self._router.table.models
        return [models[key] for key in self._router.admission.held() if key in models and models[key].needs_wake]

    def _is_due(self, model: Model) -> bool:
        return self._router.clock() - self._tried.get(model.key, float("-inf")) >= WAKE_EVERY_S

    async def _wake(self, model: Model) -> None:
        self._tried[model.key] = self._router.clock()
        try:
            await self._source.wake(model)
        except KubeApiError as error:
            self._metrics.source_errors.labels("wake").inc()
            self._note_refusal(model, error)
            return
        self.refused.pop(model.key, None)
        self._metrics.wakes.labels(self._metrics.label_of(model.key)).inc()
        if model.key in self._router.table.models:
            self.last_wake[model.key] = self._wall_clock()
        logger.info("woke a model from zero", extra={"model": model.key})

    def _note_refusal(self, model: Model, error: KubeApiError) -> None:
        """Each is told once in a row, however long requests wait."""
        if error.status == CONFLICT:
            # The resource changed since it was read; the watch brings the new state and the next try uses it.
            return
        if str(error) != str(self.refused.get(model.key)):
            logger.warning("could not wake a model", extra={"model": model.key, "why": str(error)})
        if model.key in self._router.table.models:
            self.refused[model.key] = error

    def _forget_gone(self, table: RoutingTable) -> None:
        gone = [key for key in self._tried if key not in table.models]
        for key in gone:
            del self._tried[key]
            self.last_wake.pop(key, None)
            self.refused.pop(key, None)
