"""Fixtures of the operator's tests: a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo_testing.apiserver import ApiServer, BinariesMissingError, running_apiserver


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """A real kube-apiserver with our CRD; skipped, and said so, only where its binaries are missing."""
    try:
        with running_apiserver() as server:
            server.apply_crd()
            yield server
    except BinariesMissingError as missing:
        pytest.skip(f"no API server to test against: {missing}")
