"""What a machine lacks is named, thing by thing, each with its remedy."""

from __future__ import annotations

import os
import sys

import pytest

from e2e.cluster import requirements, tools
from e2e.cluster.errors import UnavailableError


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux with nothing on it, seen by a common user."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(requirements.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(tools, "missing", lambda: [tools.KUBERNETES, tools.HELM])


@pytest.mark.usefixtures("bare_machine")
def test_every_lack_is_named_at_once() -> None:
    with pytest.raises(UnavailableError) as caught:
        requirements.check()

    message = str(caught.value)
    assert "needs root" in message
    assert "apt-get install --no-install-recommends busybox-static conntrack containerd" in message
    assert "Go 1.26 is needed to build kubernetes, helm" in message


@pytest.mark.usefixtures("bare_machine")
def test_go_is_not_needed_where_everything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "missing", list)

    assert not any("Go" in lack for lack in requirements.lacks())


def test_other_systems_are_told_how_to_name_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert requirements.lacks() == [
        "a cluster needs Linux, this is darwin; name an existing one by OCTAVO_E2E_KUBECONFIG"
    ]
