"""`kubectl octavo`, found by the real kubectl, against the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster.models import Model

pytestmark = pytest.mark.e2e

Plugin = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plugin(smol: Model, tmp_path: Path) -> Plugin:
    """Runs `kubectl octavo WORDS`: the program of the distribution is on the PATH, as an installation puts it there."""
    kubectl = smol.octavo.target.kubectl
    script = tmp_path / "kubectl-octavo"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m octavo_cli.kubectl "$@"\n')
    script.chmod(0o755)
    env = {
        **os.environ,
        "PATH": os.pathsep.join((str(tmp_path), str(kubectl.program.parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "KUBECONFIG": str(kubectl.kubeconfig),
        "COLUMNS": "200",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(kubectl.program), "octavo", *words, f"--namespace={smol.namespace}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)

    return run


def test_doctor_finds_the_installation_well(plugin: Plugin) -> None:
    """The metrics adapter, the Lease and every right are really there; only GPUs are lacking."""
    ran = plugin("doctor", "--json")

    levels = {each["check"]: each["level"] for each in json.loads(ran.stdout)}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for check in ("version", "CRD", "operator", "leader", "gateway", "rights of you", "metrics API", "model smol"):
        assert levels[check] == "ok", ran.stdout
    assert levels["rights of the operator"] == levels["rights of the gateway"] == "ok", ran.stdout


def test_status_shows_the_ready_pod_below_its_revision(smol: Model, plugin: Plugin) -> None:
    ran = plugin("status", smol.name)

    assert ran.returncode == 0, ran.stderr
    assert f"{smol.namespace}/{smol.name}  1/1 ready  AllReplicasReady" in ran.stdout
    assert f"{smol.pod_names()[0]}  Ready" in ran.stdout
    assert "wanted, gets requests" in ran.stdout


def test_chat_answers_through_a_forwarded_port(smol: Model, plugin: Plugin) -> None:
    ran = plugin("chat", smol.name, "What is the capital of France?", "--temperature=0", "--max-tokens=40")

    assert ran.returncode == 0, ran.stderr
    assert "Paris" in ran.stdout


def test_top_reads_the_server_through_the_api_servers_proxy(smol: Model, plugin: Plugin) -> None:
    ran = plugin("top", smol.name, "--interval=1")

    (line,) = [line.split() for line in ran.stdout.splitlines()[1:]]
    assert line[:2] == [f"{smol.namespace}/{smol.name}", smol.pod_names()[0]], ran.stderr
    assert all(float(number) >= 0 for number in line[2:5])


def test_logs_are_those_of_the_server(smol: Model, plugin: Plugin) -> None:
    ran = plugin("logs", smol.name, "--tail=-1")

    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) > 1


def test_a_rollout_that_has_ended_is_told_with_status_0(smol: Model, plugin: Plugin) -> None:
    ran = plugin("rollout", "status", smol.name, "--watch", "--timeout=60")

    assert ran.returncode == 0, ran.stderr
    assert "RolledOut" in ran.stdout
