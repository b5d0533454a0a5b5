"""How gateways ask each other for leases: JSON over the internal port, signed with a secret that they share.

The signature covers the time, so that a message that was overheard is worth something for ``MAX_AGE_S`` only, and then
no more than what it said.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from .quota import Grant, Limits, Report
from .quotas import Entry, PeerSilent

PATH = "/quota"
SIGNATURE = "X-Octavo-Signature"
MAX_AGE_S = 30.0
ASK_TIMEOUT_S = 1.0
MAX_MESSAGE_BYTES = 16 * 2**20


class BadMessage(Exception):
    """A message that no gateway of ours sent, or that cannot be read."""


class HttpPeers:
    """Asks other gateways; ``secret`` is empty until it has been read."""

    def __init__(
        self, session: aiohttp.ClientSession, *, port: int, secret: Callable[[], bytes], wall_clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._port = port
        self._secret = secret
        self._wall_clock = wall_clock

    async def ask(self, peer: str, gateway: str, entries: Sequence[Entry]) -> list[Grant]:
        secret = self._secret()
        if not secret:
            raise PeerSilent("the secret that gateways share has not been read yet")
        body = encode_question(gateway, entries)
        try:
            async with self._session.post(
                self._url(peer),
                data=body,
                headers={SIGNATURE: sign(secret, body, self._wall_clock())},
                timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise PeerSilent(f"it answered with status {response.status}")
                grants = decode_grants(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, BadMessage) as error:
            raise PeerSilent(f"{type(error).__name__}: {error}") from error
        if len(grants) != len(entries):
            raise PeerSilent(f"it answered {len(grants)} of {len(entries)} questions")
        return grants

    def _url(self, peer: str) -> str:
        if peer.count(":") == 1:
            # With a port of its own, as outside of a cluster; those of a cluster are bare addresses.
            return f"http://{peer}{PATH}"
        host = f"[{peer}]" if ":" in peer else peer
        return f"http://{host}:{self._port}{PATH}"


def sign(secret: bytes, body: bytes, now_s: float) -> str:
    stamp = str(int(now_s))
    return f"{stamp}.{hmac.new(secret, stamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def check_signature(secret: bytes, body: bytes, signature: str, now_s: float) -> None:
    """Raises BadMessage unless whoever sent it has the secret, and sent it just now."""
    stamp, _, _ = signature.partition(".")
    if not secret or not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
        raise BadMessage("not signed")
    expected = sign(secret, body, float(stamp))
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise BadMessage("wrong signature")
    if abs(now_s - float(stamp)) > MAX_AGE_S:
        raise BadMessage("too old, or the clocks differ")


def encode_question(gateway: str, entries: Sequence[Entry]) -> bytes:
    asked = [
        {
            "account": entry.account,
            "limits": [entry.limits.per_minute, entry.limits.per_day],
            "ages": entry.report.ages,
            "day": [entry.report.day, entry.report.day_tokens],
            "need": entry.report.need,
            "want": entry.report.want,
        }
        for entry in entries
    ]
    return json.dumps({"gateway": gateway, "accounts": asked}).encode()


def decode_question(body: bytes) -> tuple[str, list[Entry]]:
    try:
        message = json.loads(body)
        return str(message["gateway"]), [_entry(raw) for raw in message["accounts"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadMessage(f"not a question: {type(error).__name__}") from error


def encode_grants(grants: Sequence[Grant]) -> bytes:
    return json.dumps(
        [[grant.tokens, grant.minute_left, grant.day_left, grant.retry_after_s] for grant in grants]
    ).encode()


def decode_grants(body: bytes) -> list[Grant]:
    try:
        return [
            Grant(tokens=int(tokens), minute_left=minute_left, day_left=day_left, retry_after_s=int(retry_after_s))
            for tokens, minute_left, day_left, retry_after_s in json.loads(body)
        ]
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(f"not grants: {type(error).__name__}") from error


def _entry(raw: dict[str, Any]) -> Entry:
    per_minute, per_day = raw["limits"]
    day, day_tokens = raw["day"]
    return Entry(
        account=str(raw["account"]),
        limits=Limits(per_minute=int(per_minute), per_day=int(per_day)),
        report=Report(
            ages=tuple((float(age), int(tokens)) for age, tokens in raw["ages"]),
            day=int(day),
            day_tokens=int(day_tokens),
            need=int(raw["need"]),
            want=int(raw["want"]),
        ),
    )
