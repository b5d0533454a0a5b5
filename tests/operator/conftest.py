"""Fixtures of the operator's tests: a real API server, and an event loop policy that looptime does not upset.

looptime asks for the event loop around synchronous tests too, and asyncio then makes one that nobody closes; having
set one once, if only None, keeps asyncio from doing so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from octavo_testing.apiserver import ApiServer, BinariesMissingError, running_apiserver

asyncio.set_event_loop(None)


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """A real kube-apiserver with our CRD; skipped, and said so, only where its binaries are missing."""
    try:
        with running_apiserver() as server:
            server.apply_crd()
            yield server
    except BinariesMissingError as missing:
        pytest.skip(f"no API server to test against: {missing}")
