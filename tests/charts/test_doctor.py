"""`kubectl octavo doctor` on a real API server with the chart's own objects: what it asks for is what the chart gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.chart import PATHS, install_rights, kubeconfig_of
from octavo_testing.operator_process import running_operator, until

DEPLOYMENTS = PATHS["Deployment"].format(namespace="sys")


@pytest.fixture
def release(server: ApiServer, render):
    """Rights and Deployments of a release whose pods are said to be ready."""
    name = "octavo-well"
    rendered = render({"namespaces": ["team-well"]}, release=name)
    server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "team-well"}})
    install_rights(server, rendered)
    for deployment in rendered.of("Deployment"):
        assert server.request("POST", DEPLOYMENTS, deployment).status == 201
        replicas = deployment["spec"]["replicas"]
        status = {"status": {"replicas": replicas, "readyReplicas": replicas}}
        path = f"{DEPLOYMENTS}/{deployment['metadata']['name']}/status"
        assert server.request("PATCH", path, status, content_type="application/merge-patch+json").status == 200
    yield rendered, name
    for deployment in rendered.of("Deployment"):
        server.request("DELETE", f"{DEPLOYMENTS}/{deployment['metadata']['name']}")


def outcomes(server: ApiServer) -> tuple[int, dict[str, dict[str, str]]]:
    command = [sys.executable, "-m", "octavo_cli.kubectl", "doctor", "--json", "-n", "team-well"]
    env = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert ran.stderr == ""
    return ran.returncode, {each["check"]: each for each in json.loads(ran.stdout)}


def test_a_release_whose_operator_runs_is_well_and_one_right_less_is_seen(server, release, tmp_path):
    rendered, name = release
    flags = [flag for flag in rendered.container("operator", release=name)["args"] if "--port" not in flag]
    own = f"--kubeconfig={kubeconfig_of(server, tmp_path, 'sys', f'{name}-operator')}"
    lease = "/apis/coordination.k8s.io/v1/namespaces/sys/leases/" + f"{name}-operator"

    with running_operator(server, tmp_path / "log", *flags, own, "--metrics-adapter=false"):
        until(lambda: server.request("GET", lease).status, lambda status: status == 200, within_s=120)
        status, found = outcomes(server)

    levels = {check: each["level"] for check, each in found.items()}
    assert levels == {**levels, "version": "ok", "CRD": "ok", "operator": "ok", "gateway": "ok", "leader": "ok"}, found
    assert levels["rights of the operator"] == levels["rights of the gateway"] == levels["rights of you"] == "ok", found
    assert status == 0, found

    (role,) = [each for each in rendered.of("ClusterRole") if each["metadata"]["name"] == f"sys-{name}-gateway"]
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] != ["pods"]]
    path = f"{PATHS['ClusterRole']}/sys-{name}-gateway"
    assert (
        server.request("PATCH", path, {"rules": role["rules"]}, content_type="application/merge-patch+json").status
        == 200
    )
    status, found = outcomes(server)

    assert status == 1
    assert found["rights of the gateway"]["message"] == "may not list pods in team-well; watch pods in team-well"
