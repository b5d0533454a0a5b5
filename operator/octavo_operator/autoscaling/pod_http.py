"""A bounded GET of one small JSON object from a pod: what the scrapers of replicas and gateways share.

The answer is never trusted: its status, size and type are checked before anyone reads a field of it.
"""

from __future__ import annotations

import ipaddress
import json
import math
from typing import Any

import aiohttp

MAX_ANSWER_BYTES = 1024 * 1024
"""`/load` has about 120 bytes and `/held` about 100 for each held model; more is not ours and is not read."""


MOST = 2**53
"""Larger numbers no server means, and sums of them would overflow."""


class PodAnswerError(Exception):
    """A pod did not answer, or its answer is not what ARCHITECTURE.md says."""


async def get_object(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """The JSON object at `url`, within the session's time-out.

    Raises:
        PodAnswerError: nothing came in time, or not a 200 with a JSON object of at most `MAX_ANSWER_BYTES`.
    """
    body = bytearray()
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise PodAnswerError(f"{url} answered {response.status}, wanted 200")
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise PodAnswerError(f"{url} answered more than {MAX_ANSWER_BYTES} bytes")
        answer = json.loads(body)
    except TimeoutError:
        raise PodAnswerError(f"{url} did not answer in time") from None
    except (aiohttp.ClientError, OSError) as error:
        raise PodAnswerError(f"{url}: {error or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise PodAnswerError(f"{url} did not answer JSON") from error
    if not isinstance(answer, dict):
        raise PodAnswerError(f"{url} answered a JSON {type(answer).__name__}, wanted an object")
    return answer


def pod_url(ip: str, port: int, path: str) -> str:
    """URL at a pod's address; an IPv6 address goes into brackets."""
    host = f"[{ip}]" if ipaddress.ip_address(ip).version == 6 else ip
    return f"http://{host}:{port}{path}"


def number(answer: dict[str, Any], key: str) -> float:
    """A field that must be a number (NaN and infinity are Python JSON and pass; the store leaves them out).

    Raises:
        PodAnswerError: it is absent, something else or beyond `MOST`.
    """
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PodAnswerError(f"field {key} is {value!r}, wanted a number")
    if MOST < abs(value) < math.inf:
        raise PodAnswerError(f"field {key} is beyond ±{MOST}, the largest number that is read")
    return float(value)


def count(answer: dict[str, Any], key: str) -> int:
    """A field that must be a whole number ≥ 0.

    Raises:
        PodAnswerError: it is absent, something else or beyond `MOST`.
    """
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PodAnswerError(f"field {key} is {value!r}, wanted a whole number ≥ 0")
    if value > MOST:
        raise PodAnswerError(f"field {key} is beyond {MOST}, the largest number that is read")
    return value
