"""The real Helm, and the chart as it renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo_testing.apiserver import ApiServer, skipping_without_binaries
from octavo_testing.chart import aggregating_apiserver

CHART = Path(__file__).parents[2] / "charts" / "octavo"
TOOLS = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo")) / "tools"

EVERYTHING: dict[str, Any] = {
    "gateway": {"url": "https://llm.example.com"},
    "monitoring": {
        "monitors": {"kind": "PodMonitor", "labels": {"release": "prom"}},
        "rules": {"enabled": True, "labels": {"release": "prom"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Octavo"}},
    },
    "networkPolicies": {
        "enabled": True,
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "serverEgress": {"enabled": True, "extra": [{"ports": [{"port": 9000}]}]},
        "egress": {
            "enabled": True,
            "extra": [{"ports": [{"port": 4318}], "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}]}],
        },
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        "hosts": ["llm.example.com", "*.llm.example.com"],
        "tlsSecretName": "llm-tls",
    },
    "httpRoute": {
        "enabled": True,
        "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
        "hostnames": ["llm.example.com"],
        "annotations": {"note": "1"},
    },
}
"""Every option on."""

Manifest = dict[str, Any]
Render = Callable[..., "Rendered"]


class Rendered(list[Manifest]):
    """All manifests of one `helm template`."""

    def find(self, kind: str, name: str) -> Manifest:
        """The one manifest of that kind and name."""
        (found,) = [each for each in self if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        return found

    def of(self, kind: str) -> list[Manifest]:
        return [each for each in self if each["kind"] == kind]

    def container(self, component: str, *, release: str = "octavo") -> Manifest:
        """The one container of the operator's or gateway's pods."""
        (container,) = self.find("Deployment", f"{release}-{component}")["spec"]["template"]["spec"]["containers"]
        return container


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm; its path is $OCTAVO_HELM, or what e2e built, or what the PATH has."""
    built = sorted(TOOLS.glob("helm-*/helm"))
    program = os.environ.get("OCTAVO_HELM") or (str(built[-1]) if built else shutil.which("helm"))
    if program is None:
        pytest.skip("no helm: set OCTAVO_HELM, or run `python -m e2e.cluster tools`, which needs Go")

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
        if check and result.returncode:
            pytest.fail(f"helm {' '.join(arguments)}: {result.stderr}")
        return result

    return run


@pytest.fixture(scope="session")
def render(helm, tmp_path_factory) -> Render:
    """`render({"operator": {"replicas": 2}})`; values as a dictionary, kept for the session by their content."""
    cache: dict[str, Rendered] = {}

    def run(values: Manifest | None = None, *, release: str = "octavo", namespace: str = "sys") -> Rendered:
        text = json.dumps(values or {})
        key = f"{release}/{namespace}/{text}"
        if key not in cache:
            file = tmp_path_factory.mktemp("values") / "values.json"
            file.write_text(text)
            output = helm("template", release, str(CHART), "--namespace", namespace, "--values", str(file)).stdout
            cache[key] = Rendered(each for each in yaml.safe_load_all(output) if each)
        return cache[key]

    return run


@pytest.fixture(scope="session")
def everything() -> Manifest:
    return EVERYTHING


@pytest.fixture(scope="session")
def server() -> Iterator[ApiServer]:
    """A real API server with our CRD, a front proxy and the release's namespace `sys`."""
    with skipping_without_binaries(), aggregating_apiserver() as server:
        server.request("POST", "/api/v1/namespaces", {"metadata": {"name": "sys"}})
        server.apply_crd()
        yield server
