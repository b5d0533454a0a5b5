"""The living side of the routing table: the current table, who waits for a change of it, and who holds.

Owns Balancer and Admission; a source calls ``publish`` with each new table, the proxy asks for replicas.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .admission import Admission, Hold
from .balancer import Balancer, Load
from .endpoints import Model, RoutingTable
from .metrics import Metrics

Clock = Callable[[], float]


class Router:
    def __init__(self, balancer: Balancer, metrics: Metrics, *, clock: Clock = time.monotonic) -> None:
        self.table = RoutingTable(is_complete=False)
        self.balancer = balancer
        self.admission = Admission()
        self.clock = clock
        self.waiting = asyncio.Event()
        """Set each time that a held request has looked in vain; the waker clears it."""
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[RoutingTable], None]] = []

    def on_table(self, listener: Callable[[RoutingTable], None]) -> None:
        self._listeners.append(listener)

    def publish(self, table: RoutingTable) -> None:
        self.table = table
        self.balancer.keep_only(table.models.values())
        self._metrics.keep_only(table.models)
        now = self.clock()
        for model in table.models.values():
            self._metrics.routable_replicas.labels(model.key).set(len(self.balancer.routable(model, now=now)))
        for listener in self._listeners:
            listener(table)
        self.announce()

    def report_load(self, url: str, load: Load) -> None:
        self.balancer.report_load(url, load)
        if self.admission.held():
            self.announce()

    def announce(self) -> None:
        """Let every waiting request look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def hold(self, model: Model) -> Hold:
        return self.admission.new_hold(
            model.key, limit=model.max_held, timeout_s=model.hold_timeout_s, now=self.clock()
        )

    def enter(self, hold: Hold) -> bool:
        entered = self.admission.try_enter(hold)
        if entered:
            self._metrics.held.labels(hold.key).set(self.admission.count(hold.key))
            self.waiting.set()
        return entered

    def leave(self, hold: Hold) -> float:
        """The seconds that it waited, since it was let in the first time; 0 where it was not in."""
        if not hold.is_in:
            return 0.0
        self.admission.leave(hold)
        # A model that left the table meanwhile has no series any more and gets none.
        if hold.key in self.table.models:
            self._metrics.held.labels(hold.key).set(self.admission.count(hold.key))
            self._metrics.hold_seconds.labels(hold.key).observe(self.clock() - hold.since)
        return self.clock() - hold.since
