"""Which headers pass through a proxy, and request ids.

RFC 9110, 7.6.1: hop-by-hop fields, and those that ``Connection`` names, end at each hop.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

REQUEST_ID = "X-Request-Id"
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The body was read and inflated here, so its length and coding are set anew.
_NOT_TO_UPSTREAM = HOP_BY_HOP | {"host", "content-length", "content-encoding", "expect", REQUEST_ID.lower()}
_NOT_TO_CLIENT = HOP_BY_HOP | {REQUEST_ID.lower(), "date"}
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_of(request: web.Request, new_id: Callable[[], str]) -> str:
    """The client's own id where it is one line of harmless characters, else a new one."""
    given = request.headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else new_id()


def to_upstream(request: web.Request, request_id: str) -> CIMultiDict[str]:
    headers = _without(request.headers, _NOT_TO_UPSTREAM)
    headers[REQUEST_ID] = request_id
    if request.remote:
        chain = [*headers.popall("X-Forwarded-For", []), request.remote]
        headers["X-Forwarded-For"] = ", ".join(chain)
    headers.setdefault("X-Forwarded-Proto", request.scheme)
    headers.setdefault("X-Forwarded-Host", request.host)
    return headers


def to_client(upstream: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return _without(upstream, _NOT_TO_CLIENT)


def _without(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    named = {token.strip().lower() for value in headers.getall("Connection", ()) for token in value.split(",")}
    ended = dropped | named if named else dropped
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in ended)
