"""kopf at the rim: it watches, and each event becomes a change of the cache and keys in the queue. Nothing else.

No finalizer, no annotation, no event and no patch of kopf's ever reaches the cluster: only `on.event` handlers exist,
posting is off, and there are no timers or daemons.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import kopf

from octavo_operator.kube.client import Credentials
from octavo_operator.kube.kinds import WATCHED, Kind

OnEvent = Callable[[Kind, str | None, dict[str, Any]], None]
"""(kind, ADDED | MODIFIED | DELETED | None for a listed one, object)."""

SERVER_TIMEOUT_S = 40
INACTIVITY_TIMEOUT_S = 50.0
"""A watch that says nothing for so long is dropped, though its connection still stands."""
CLIENT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
RELOGIN_S = 600


class Backoffs:
    """Delays between tries of one API request of kopf's: they grow to 10 s and never end, whatever the outage lasts."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1, 2, 5)
        while True:
            yield 10


class NoDiffs(kopf.DiffBaseStorage):
    """kopf would copy every object of every event several times to find changes that nobody asks it for."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("kopf must not write to objects")


def build_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = NoDiffs()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.client_timeout = CLIENT_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.inactivity_timeout = INACTIVITY_TIMEOUT_S
    settings.networking.request_timeout = CLIENT_TIMEOUT_S
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.error_backoffs = Backoffs()
    settings.queueing.idle_timeout = 1.0
    for kind in WATCHED:
        if kind.selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


def build_registry(
    on_event: OnEvent, login: Callable[[], Awaitable[Credentials]], on_stop: Callable[[], Awaitable[None]]
) -> kopf.OperatorRegistry:
    """One event handler for each watched kind; `on_stop` runs as soon as a signal came."""
    registry = kopf.OperatorRegistry()

    @kopf.on.cleanup(registry=registry)
    async def clean_up(**_: Any) -> None:
        await on_stop()

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return _connection(await login())

    for kind in WATCHED:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=f"note-{kind.plural}")(
            _make_handler(kind, on_event)
        )
    return registry


def _make_handler(kind: Kind, on_event: OnEvent) -> Callable[..., Awaitable[None]]:
    async def note(event: Any, **_: Any) -> None:
        on_event(kind, event["type"], dict(event["object"]))

    return note


def _connection(credentials: Credentials) -> kopf.ConnectionInfo:
    # Tokens of service accounts are renewed on disk; the expiration makes kopf ask for them again in time.
    expiration = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=RELOGIN_S)
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_path=credentials.ca_path,
        insecure=not credentials.verify,
        token=credentials.token,
        certificate_path=credentials.certificate_path,
        private_key_path=credentials.private_key_path,
        expiration=expiration,
    )
