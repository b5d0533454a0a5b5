"""A rendered chart on a real kube-apiserver, without a kubelet: its rights and accounts become real, its pods do not."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from octavo_testing.adapter import a_ca, a_client
from octavo_testing.apiserver import ApiServer, BinariesMissingError, running_apiserver
from octavo_testing.audit import audit_flags

Manifest = dict[str, Any]

PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "Ingress": "/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses",
    "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
    "PodMonitor": "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/podmonitors",
    "ServiceMonitor": "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/servicemonitors",
    "PrometheusRule": "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/prometheusrules",
    "ScaledObject": "/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}
RIGHTS = ("ServiceAccount", "Secret", "ConfigMap", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


OPTIONAL_KINDS = ("HTTPRoute", "PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject")
"""Kinds of other projects; their CustomResourceDefinitions come from those projects' Go modules."""


def install_optional_kinds(server: ApiServer) -> None:
    """The CustomResourceDefinitions that e2e's tools keep; BinariesMissingError where they were not fetched."""
    tools = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo")) / "tools"
    for kind in OPTIONAL_KINDS:
        plural = PATHS[kind].rpartition("/")[2]
        found = sorted(tools.glob(f"*/*_{plural}.yaml"))
        if not found:
            raise BinariesMissingError(f"no CustomResourceDefinition of {kind}; run `python -m e2e.cluster tools`")
        answer = server.request("POST", PATHS["CustomResourceDefinition"], yaml.safe_load(found[-1].read_text()))
        assert answer.status in (201, 409), answer.message
        path = PATHS[kind].format(namespace="default")
        deadline = time.monotonic() + 60
        while server.request("GET", path).status != 200:
            assert time.monotonic() < deadline, f"{kind} is not served"
            time.sleep(0.05)


def path_of(manifest: Manifest) -> str:
    """Where an object of this kind is created."""
    return PATHS[manifest["kind"]].format(namespace=manifest["metadata"].get("namespace", ""))


def install_rights(server: ApiServer, manifests: Iterable[Manifest]) -> None:
    """Accounts, roles, bindings and the empty Secrets and ConfigMaps; nothing that would need a kubelet."""
    for manifest in (each for each in manifests if each["kind"] in RIGHTS):
        answer = server.request("POST", path_of(manifest), manifest)
        assert answer.status == 201, answer.message


def add_account(server: ApiServer, namespace: str, name: str) -> None:
    server.request("POST", PATHS["ServiceAccount"].format(namespace=namespace), {"metadata": {"name": name}})


def token_of(server: ApiServer, namespace: str, name: str) -> str:
    """A token of a service account, as its pod would have."""
    path = PATHS["ServiceAccount"].format(namespace=namespace) + f"/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = server.request("POST", path, body)
    assert answer.status == 201, answer.message
    return str(answer.body["status"]["token"])


def kubeconfig_of(server: ApiServer, folder: Path, namespace: str, name: str) -> Path:
    """A kubeconfig with nothing but the rights of a service account."""
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token_of(server, namespace, name)}
    path = folder / f"{name}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def aggregating_apiserver() -> Iterator[ApiServer]:
    """An API server with a front proxy of its own, which the operator's tests do without."""
    proxy_ca = a_ca("front-proxy-ca")
    with tempfile.TemporaryDirectory(prefix="octavo-front-proxy-") as name:
        ca_file = Path(name) / "front-proxy-ca.crt"
        ca_file.write_bytes(proxy_ca.cert_pem)
        cert, key = a_client("front-proxy-client", proxy_ca).write(Path(name), "front-proxy-client")
        with running_apiserver(
            *audit_flags(Path(name)),
            f"--requestheader-client-ca-file={ca_file}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={cert}",
            f"--proxy-client-key-file={key}",
        ) as server:
            server.audit_log = Path(name) / "audit.log"
            yield server
