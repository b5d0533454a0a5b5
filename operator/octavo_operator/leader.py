"""Leader election over one Lease: only the holder writes.

A holder is sure of itself only for `LEASE_S - MARGIN_S` after its last renewal by its own monotonic clock; others take
over only after the lease did not change for `LEASE_S` by theirs. No clock of another machine is believed.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from typing import Any

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient
from octavo_operator.kube.kinds import LEASE

logger = logging.getLogger(__name__)

LEASE_S = 20.0
MARGIN_S = 9.0
"""Longer than any single write may be under way after it was allowed."""
RENEW_S = 4.0


class LeaderElection:
    """Owns our part in the Lease `namespace`/`name`."""

    def __init__(
        self,
        kube: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
        clock: Callable[[], float],
    ) -> None:
        """`clock` is monotonic, in seconds; `on_change` hears of each change of leadership."""
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_change = on_change
        self._clock = clock
        self._sure_until = float("-inf")
        self._seen: tuple[str, float] = ("", float("-inf"))
        """The lease's version and when we first saw it."""
        self._was_leader = False

    @property
    def is_leader(self) -> bool:
        return self._clock() < self._sure_until

    async def run(self) -> None:
        """Acquire and renew until cancelled, then let go, so that another takes over at once."""
        try:
            while True:
                await self.attempt()
                await asyncio.sleep(RENEW_S)
        finally:
            await self._release()

    async def attempt(self) -> None:
        """One try to acquire or renew."""
        started = self._clock()
        try:
            if await self._hold():
                self._sure_until = started + LEASE_S - MARGIN_S
        except ClusterError as error:
            # 409: another was faster. Everything else: we stay sure only as long as the last renewal lasts.
            if error.status != 409:
                logger.warning("the lease cannot be renewed", extra={"error": str(error)})
        self._tell()

    async def _hold(self) -> bool:
        path = LEASE.path(self._namespace, self._name)
        lease = await self._kube.get_path(path)
        if lease is None:
            body = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": {"name": self._name}}
            await self._kube.create(LEASE.path(self._namespace), {**body, "spec": self._spec({})})
            return True
        holder = lease.get("spec", {}).get("holderIdentity") or ""
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        is_free = not holder or self._clock() - self._seen[1] > LEASE_S
        if holder != self._identity and not is_free:
            return False
        # The resource version in the body makes a concurrent renewal of another a 409.
        await self._kube.replace(path, {**lease, "spec": self._spec(lease.get("spec", {}))})
        return True

    async def _release(self) -> None:
        if not self.is_leader:
            return
        self._sure_until = float("-inf")
        path = LEASE.path(self._namespace, self._name)
        try:
            lease = await self._kube.get_path(path)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                await self._kube.replace(path, {**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except ClusterError as error:
            logger.info("the lease was not given back; it runs out by itself", extra={"error": str(error)})
        self._tell()

    def _spec(self, old: dict[str, Any]) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        is_ours = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_S),
            "acquireTime": old.get("acquireTime", now) if is_ours else now,
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (0 if is_ours else 1),
        }

    def _tell(self) -> None:
        if self.is_leader != self._was_leader:
            self._was_leader = self.is_leader
            logger.info("leadership changed", extra={"is_leader": self.is_leader, "identity": self._identity})
            self._on_change(self.is_leader)
