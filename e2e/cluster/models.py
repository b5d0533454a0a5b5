"""ModelDeployments on a cluster: apply one, wait for its conditions, read its pods' metrics, ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from e2e.cluster.errors import CommandError
from e2e.cluster.octavo import Octavo
from e2e.cluster.waiting import wait_until

START_LIMIT_S = 120
"""A server on a busy machine of two cores: interpreter, torch, weights, warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One ModelDeployment on the cluster."""

    octavo: Octavo
    name: str
    namespace: str

    def get(self) -> dict[str, Any]:
        """The object as the API server has it."""
        return self.octavo.target.kubectl.get("modeldeployment", self.name, namespace=self.namespace)

    def status(self) -> dict[str, Any]:
        """Its status; empty while the operator has not written one."""
        found: dict[str, Any] = self.get().get("status", {})
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition; empty while there is none of that type."""
        conditions = self.status().get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def is_ready(self) -> bool:
        return self.condition("Ready").get("status") == "True"

    def wait_ready(self, *, limit_s: float = START_LIMIT_S) -> None:
        wait_until(self.is_ready, f"{self.name} is Ready", limit_s=limit_s, describe=self.describe)

    def describe(self) -> str:
        """Status in one line, for a message."""
        try:
            return json.dumps(self.status())
        except CommandError as error:
            return str(error)

    def pods(self) -> list[dict[str, Any]]:
        """Its pods, those on their way out too."""
        selector = f"--selector=octavo.dev/modeldeployment={self.name}"
        return self.octavo.target.kubectl.items("pods", selector, namespace=self.namespace)

    def pod_names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods()]

    def scrape(self, pod: str) -> dict[str, float]:
        """Sum of each metric of one pod over its labels."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8000/proxy/metrics"
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.octavo.target.kubectl("get", f"--raw={path}")):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def delete(self) -> None:
        """Delete it and wait until its pods are gone too, so that the next case has the machine to itself."""
        self.octavo.target.kubectl(
            "delete", "modeldeployment", self.name, f"--namespace={self.namespace}", "--ignore-not-found"
        )
        wait_until(lambda: not self.pods(), f"the pods of {self.name} are gone", limit_s=60)


def read_manifest(path: Path, octavo: Octavo) -> dict[str, Any]:
    """A case's manifest; on an existing cluster with that cluster's model instead of the file."""
    manifest: dict[str, Any] = yaml.safe_load(path.read_text())
    if octavo.target.lab is None and manifest["spec"]["model"].endswith(".gguf"):
        manifest["spec"]["model"] = octavo.target.model
    return manifest


def apply_model(octavo: Octavo, manifest: Mapping[str, Any], namespace: str) -> Model:
    """Apply one ModelDeployment; returns at once."""
    octavo.target.kubectl.apply([dict(manifest)], namespace=namespace)
    return Model(octavo=octavo, name=manifest["metadata"]["name"], namespace=namespace)
