"""Asks every gateway replica which requests it holds, because a held request must keep a model from going to zero.

A gateway that is ready but does not answer may hold anything: it is named in `unheard`, and the policy then leaves
every model as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from octavo_operator.autoscaling.pod_http import PodAnswerError, count, get_object, number, pod_url

GATEWAY_INTERNAL_PORT = 8081


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPod:
    """A ready gateway pod that is not being deleted."""

    name: str
    ip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSnapshot:
    """What all gateways together hold; keys are `NAMESPACE/NAME` of ModelDeployments."""

    at: float
    """When the round began, Unix seconds."""
    held: Mapping[str, int] = field(default_factory=dict)
    last_wake: Mapping[str, float] = field(default_factory=dict)
    """Newest write of 1 to a scale subresource by any gateway, Unix seconds."""
    unheard: tuple[str, ...] = ()
    """Gateway pods that did not answer, by name."""


class GatewayHeld:
    """Owns the newest snapshot; None until the first round has ended."""

    def __init__(
        self,
        list_gateways: Callable[[], Iterable[GatewayPod]],
        *,
        now: Callable[[], float] = time.time,
        timeout_s: float = 1.5,
        port: int = GATEWAY_INTERNAL_PORT,
    ) -> None:
        self._list_gateways = list_gateways
        self._now = now
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._port = port
        self.snapshot: HeldSnapshot | None = None

    def session(self) -> aiohttp.ClientSession:
        """The session for `read_once`; who opens it closes it."""
        connector = aiohttp.TCPConnector(limit=16, limit_per_host=1)
        return aiohttp.ClientSession(timeout=self._timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def read_once(self, session: aiohttp.ClientSession) -> HeldSnapshot:
        """One round over the gateways that are ready now."""
        at = self._now()
        gateways = list(self._list_gateways())
        answers = await asyncio.gather(*(self._read(session, gateway) for gateway in gateways))
        held: dict[str, int] = {}
        last_wake: dict[str, float] = {}
        unheard: list[str] = []
        for gateway, answer in zip(gateways, answers, strict=True):
            if answer is None:
                unheard.append(gateway.name)
                continue
            for key, requests in answer.held.items():
                held[key] = held.get(key, 0) + requests
            for key, wake in answer.last_wake.items():
                last_wake[key] = max(wake, last_wake.get(key, 0.0))
        self.snapshot = HeldSnapshot(at=at, held=held, last_wake=last_wake, unheard=tuple(sorted(unheard)))
        return self.snapshot

    async def _read(self, session: aiohttp.ClientSession, gateway: GatewayPod) -> HeldSnapshot | None:
        try:
            return parse_held(await get_object(session, pod_url(gateway.ip, self._port, "/held")), at=self._now())
        except PodAnswerError:
            return None


def parse_held(answer: dict[str, Any], *, at: float) -> HeldSnapshot:
    """A `/held` answer of one gateway as a value.

    Raises:
        PodAnswerError: a field is absent or of another type; it names the field.
    """
    held, last_wake = (answer.get(key) for key in ("held", "last_wake"))
    if not isinstance(held, dict) or not isinstance(last_wake, dict):
        raise PodAnswerError("fields held and last_wake must be objects")
    return HeldSnapshot(
        at=at,
        held={key: count(held, key) for key in held},
        last_wake={key: number(last_wake, key) for key in last_wake},
    )
