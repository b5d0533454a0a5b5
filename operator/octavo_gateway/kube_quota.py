"""What quotas need of the cluster: which gateways are ready, the secret that they share, and days that outlive them.

All by objects that the chart has made, empty: the gateway needs no right to create or list any.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import KubeApiError
from .kube_objects import KubeObject
from .kube_source import CORE_PATH, KubeTransport, Reflector
from .metrics import Metrics
from .quotas import SavedDay

logger = logging.getLogger(__name__)

SLICES_PATH = "/apis/discovery.k8s.io/v1"
SERVICE_LABEL = "kubernetes.io/service-name"
SHARDS = 8
MAX_PER_SHARD = 1000
"""Accounts in one ConfigMap, which holds at most 1 MiB; of more than these the days are not saved."""
SECRET_ENTRY = "token"
CONFLICT = 409


class KubeQuotaBackend:
    def __init__(self, transport: KubeTransport, metrics: Metrics, *, namespace: str, prefix: str) -> None:
        """`prefix` begins the names of the objects: PREFIX-peers, PREFIX-quota-0 …, and the Service PREFIX-internal."""
        self._transport = transport
        self._metrics = metrics
        self._core = f"{CORE_PATH}/namespaces/{namespace}"
        self._slices = f"{SLICES_PATH}/namespaces/{namespace}/endpointslices"
        self._prefix = prefix
        self._counts: dict[int, set[str]] = {}

    async def watch_ready(self, told: Callable[[Iterable[str]], None]) -> None:
        """Tell the addresses of all ready gateways, and again at each change."""
        changed = asyncio.Event()
        slices = Reflector(
            self._transport,
            self._slices,
            {"labelSelector": f"{SERVICE_LABEL}={self._prefix}-internal"},
            read_slice,
            changed.set,
            self._metrics,
            random.Random(),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(slices.run())
            while True:
                await changed.wait()
                changed.clear()
                told(address for addresses in slices.items.values() for address in addresses)

    async def peer_secret(self) -> bytes:
        """What gateways sign with; the first of them makes it."""
        path = f"{self._core}/secrets/{self._prefix}-peers"
        while True:
            secret = await self._transport.request("GET", path, {})
            given = (secret.get("data") or {}).get(SECRET_ENTRY)
            if given:
                return base64.b64decode(given)
            made = base64.b64encode(os.urandom(32)).decode()
            version = secret["metadata"]["resourceVersion"]
            body = {"metadata": {"resourceVersion": version}, "data": {SECRET_ENTRY: made}}
            try:
                await self._transport.request("PATCH", path, {"fieldManager": "octavo-gateway"}, body)
            except KubeApiError as error:
                if error.status != CONFLICT:
                    raise

    async def load_days(self) -> dict[str, SavedDay]:
        maps = await asyncio.gather(
            *(self._transport.request("GET", self._map_path(shard), {}) for shard in range(SHARDS))
        )
        saved: dict[str, SavedDay] = {}
        for shard, config_map in enumerate(maps):
            data = config_map.get("data") or {}
            self._counts[shard] = set(data)
            for text in data.values():
                saved.update(_decode(text))
        return saved

    async def save_days(self, changes: Mapping[str, SavedDay | None]) -> None:
        by_shard: dict[int, dict[str, str | None]] = {}
        for account, saved in changes.items():
            entry = entry_of(account)
            shard = int(entry, 16) % SHARDS
            names = self._counts.setdefault(shard, set())
            if saved is None:
                names.discard(entry)
            elif entry not in names and len(names) >= MAX_PER_SHARD:
                self._metrics.unsaved_days.inc()
                continue
            else:
                names.add(entry)
            by_shard.setdefault(shard, {})[entry] = None if saved is None else _encode(account, saved)
        await asyncio.gather(*(self._save(shard, data) for shard, data in by_shard.items()))

    async def _save(self, shard: int, data: Mapping[str, str | None]) -> None:
        await self._transport.request(
            "PATCH", self._map_path(shard), {"fieldManager": "octavo-gateway"}, {"data": dict(data)}
        )

    def _map_path(self, shard: int) -> str:
        return f"{self._core}/configmaps/{self._prefix}-quota-{shard}"


def read_slice(thing: KubeObject) -> tuple[str, ...]:
    """Addresses of an EndpointSlice that are ready; where it does not say, they are."""
    ready = (each for each in thing.get("endpoints") or () if (each.get("conditions") or {}).get("ready", True))
    return tuple(address for endpoint in ready for address in endpoint.get("addresses") or ())


def entry_of(account: str) -> str:
    """The account's key in a ConfigMap, which takes no slashes."""
    return hashlib.blake2b(account.encode(), digest_size=16).hexdigest()


def _encode(account: str, saved: SavedDay) -> str:
    return json.dumps({"account": account, "day": saved.day, "tokens": dict(saved.tokens)}, separators=(",", ":"))


def _decode(text: str) -> dict[str, SavedDay]:
    """Nothing for an entry that somebody else wrote."""
    try:
        entry: Any = json.loads(text)
        tokens = {str(name): int(count) for name, count in entry["tokens"].items()}
        return {str(entry["account"]): SavedDay(day=int(entry["day"]), tokens=tokens)}
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        logger.warning("ignored an entry of the saved quotas", extra={"entry": text[:100]})
        return {}
