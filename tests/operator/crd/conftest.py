"""Fixture of the CRD's tests: an API server without ModelDeployments when they end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.crd import PATH


@pytest.fixture
def clean(apiserver: ApiServer) -> Iterator[ApiServer]:
    yield apiserver
    apiserver.request("DELETE", PATH)
