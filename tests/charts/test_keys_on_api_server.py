"""Keys from a Secret that nobody may read yet: the condition says how to cure it, and the cure works as it is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from octavo_testing.apiserver import ApiServer, free_ports
from octavo_testing.chart import install_rights, kubeconfig_of
from octavo_testing.operator_process import Namespace
from octavo_testing.operator_process import until as await_that

from .test_rights_in_use import is_ready, running

CACHE = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo")) / "tools"
KEYS = {"stringData": {"alice": "sk-alice"}}


def kubectl() -> str:
    built = sorted(CACHE.glob("kubernetes-*/kubectl"))
    found = str(built[-1]) if built else shutil.which("kubectl")
    if found is None:
        pytest.skip("no kubectl: run `python -m e2e.cluster tools`, which needs Go")
    return found


def answered(port: int, key: str) -> int:
    """The status with which a key is told of the model."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/guarded", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_conditions_command_cures_it_and_a_changed_key_counts_soon(server: ApiServer, render, tmp_path):
    release = "octavo-keys"
    rendered = render({}, release=release)
    install_rights(server, rendered)
    namespace = Namespace(server, "team-keys")
    server.request("POST", "/api/v1/namespaces/team-keys/secrets", {"metadata": {"name": "team"}, **KEYS})
    port, internal = free_ports(2)
    flags = {
        component: [
            *rendered.container(component, release=release)["args"],
            f"--kubeconfig={kubeconfig_of(server, tmp_path, 'sys', f'{release}-{component}')}",
        ]
        for component in ("operator", "gateway")
    }
    gateway = [*flags["gateway"], f"--port={port}", f"--internal-port={internal}", "--drain-delay-s=0"]

    with (
        running(
            "octavo_operator", tmp_path / "operator.log", *flags["operator"], "--port=0", "--metrics-adapter=false"
        ),
        running("octavo_gateway", tmp_path / "gateway.log", *gateway, "--shutdown-timeout-s=1"),
    ):
        namespace.create("guarded", access={"keysFrom": [{"secretRef": {"name": "team"}}]})
        condition = await_that(
            lambda: namespace.condition("guarded"), lambda ready: ready.get("reason") == "KeysUnreadable", within_s=30
        )
        await_that(lambda: is_ready(internal), bool)
        assert answered(port, "sk-alice") == 503

        command = condition["message"].partition("run: ")[2].replace("kubectl", kubectl())
        env = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
        subprocess.run(command, shell=True, check=True, env=env, timeout=60)

        await_that(lambda: answered(port, "sk-alice"), lambda status: status == 200, within_s=60)
        await_that(
            lambda: namespace.condition("guarded"), lambda ready: ready.get("reason") != "KeysUnreadable", within_s=60
        )
        changed = {"stringData": {"alice": "sk-new"}}
        path = "/api/v1/namespaces/team-keys/secrets/team"
        server.request("PATCH", path, changed, content_type="application/merge-patch+json")
        await_that(lambda: answered(port, "sk-new"), lambda status: status == 200, within_s=60)
        assert answered(port, "sk-alice") == 401
        # Other tests' gateways would have no right to its keys.
        namespace.clear()
