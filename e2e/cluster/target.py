"""The cluster that cases and people use: our own, or an existing one that a person names.

Manifests are the same on both. On our own cluster the images are made of this checkout; on an existing one they are
given by chart values.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import tools
from e2e.cluster.errors import ClusterError
from e2e.cluster.image import IMAGE_REGISTRY, IMAGE_TAG
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.lab import Lab
from e2e.cluster.mounts import MODELS
from e2e.cluster.paths import MODEL_NAME
from e2e.cluster.tools import Say

KUBECONFIG_VARIABLE = "OCTAVO_E2E_KUBECONFIG"
"""Names an existing cluster. KUBECONFIG alone is not taken: it may name a cluster that serves people."""
VALUES_VARIABLE = "OCTAVO_E2E_VALUES"
"""Chart values for an existing cluster: at least `images`, which it must be able to pull."""
MODEL_VARIABLE = "OCTAVO_E2E_MODEL"
"""Model URI for an existing cluster; the default is the same model on the hub."""

GATEWAY_NODE_PORT = 30080
METRICS_API = "apis/custom.metrics.k8s.io/v1beta2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a case needs to know of the cluster."""

    kubectl: Kubectl
    helm: Path
    lab: Lab | None
    """None on an existing cluster."""
    model: str
    """URI of the real small model."""
    values: Mapping[str, Any]
    """Chart values that this cluster needs."""

    @property
    def kubeconfig(self) -> Path:
        return self.kubectl.kubeconfig


def own_target(lab: Lab) -> Target:
    """Our own running cluster."""
    helm = tools.find_program("helm", lab.say)
    return Target(kubectl=lab.kubectl, helm=helm, lab=lab, model=f"file://{MODELS}/{MODEL_NAME}", values=_lab_values())


def existing_target(kubeconfig: str, say: Say) -> Target:
    """A cluster that a person named by OCTAVO_E2E_KUBECONFIG."""
    values = os.environ.get(VALUES_VARIABLE)
    if not values:
        raise ClusterError(
            f"{KUBECONFIG_VARIABLE} is set; set {VALUES_VARIABLE} to a values file that names images too"
        )
    return Target(
        kubectl=Kubectl(program=_installed_or_built("kubectl", say), kubeconfig=Path(kubeconfig).absolute()),
        helm=_installed_or_built("helm", say),
        lab=None,
        model=os.environ.get(MODEL_VARIABLE) or "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        values=yaml.safe_load(Path(values).read_text()),
    )


def _installed_or_built(program: str, say: Say) -> Path:
    found = shutil.which(program)
    return Path(found) if found else tools.find_program(program, say)


def _lab_values() -> dict[str, Any]:
    images = {"operator": "operator", "gateway": "gateway", "server": "server", "serverCPU": "server-cpu"}
    return {
        "images": {
            value: {"repository": f"{IMAGE_REGISTRY}/{name}", "tag": IMAGE_TAG} for value, name in images.items()
        },
        "gateway": {"service": {"type": "NodePort", "nodePort": GATEWAY_NODE_PORT}},
    }
