"""The cluster that cases run on: our own, or an existing one that a person names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.kubectl import Kubectl
from e2e.cluster.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a case needs to know of the cluster."""

    kubectl: Kubectl
    lab: Lab | None
    """None on an existing cluster."""

    @property
    def kubeconfig(self) -> Path:
        return self.kubectl.kubeconfig
