"""Asks pods that are not ready yet how far they are (`/startup`); a pod that does not answer is simply left out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp

from octavo_operator.autoscaling.pod_http import MOST, PodAnswerError, get_object, pod_url
from octavo_operator.desired.engine_args import SERVER_PORT
from octavo_operator.observed import Pod, Startup

TIMEOUT_S = 1.5


class StartupProbe:
    """Owns the HTTP session to loading pods."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @staticmethod
    def open_session() -> aiohttp.ClientSession:
        """The session to give; who opens it closes it."""
        connector = aiohttp.TCPConnector(limit=64, limit_per_host=1, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        return aiohttp.ClientSession(timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def read(self, pods: Iterable[Pod], also: Pod | None = None) -> dict[str, Startup]:
        """`/startup` of those that run but are not ready, and of `also`, by pod name."""
        asked = [pod for pod in pods if _is_loading(pod)] + ([also] if also is not None and also.ip else [])
        answers = await asyncio.gather(*(self._read(pod) for pod in asked))
        return {pod.name: answer for pod, answer in zip(asked, answers, strict=True) if answer is not None}

    async def _read(self, pod: Pod) -> Startup | None:
        try:
            return parse_startup(await get_object(self._session, pod_url(pod.ip, SERVER_PORT, "/startup")))
        except PodAnswerError:
            return None


def parse_startup(answer: dict[str, Any]) -> Startup:
    """A `/startup` answer; fields of another type count as absent."""
    stages = answer.get("stage_seconds")
    return Startup(
        stage=str(answer.get("stage", "")),
        done_bytes=int(_number(answer.get("bytes"))),
        total_bytes=int(_number(answer.get("total_bytes"))),
        bytes_per_second=int(_number(answer.get("bytes_per_second"))),
        idle_s=_number(answer.get("idle_seconds")),
        stage_seconds={str(name): _number(seconds) for name, seconds in stages.items()}
        if isinstance(stages, dict)
        else {},
        message=str(answer.get("message") or ""),
    )


def _number(value: object) -> float:
    """Not negative and one that a server may mean; anything else is 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value <= MOST else 0  # type: ignore[operator, return-value]


def _is_loading(pod: Pod) -> bool:
    """A pod that only fetches the model counts as ready while it is still at it."""
    is_at_work = pod.is_download or not pod.is_ready
    return bool(pod.ip) and is_at_work and not pod.is_terminating and "running" in pod.server.get("state", {})
