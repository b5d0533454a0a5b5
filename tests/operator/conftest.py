"""Fixtures of the operator's tests: a real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo_testing.apiserver import ApiServer, apiserver_with_crd


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    with apiserver_with_crd() as server:
        yield server
