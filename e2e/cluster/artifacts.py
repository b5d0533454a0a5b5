"""What a person needs after a failed case: objects, events and logs, as files and as a short text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster.errors import CommandError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.paths import cache_dir

_KINDS = (
    "nodes,pods,services,deployments,replicasets,jobs,endpointslices,horizontalpodautoscalers,poddisruptionbudgets,"
    "persistentvolumeclaims,controllerrevisions,leases,apiservices"
)
_EXCERPT_LINES = 25


def artifacts_dir() -> Path:
    """`$OCTAVO_E2E_ARTIFACTS`, else a folder in the cache."""
    return Path(os.environ.get("OCTAVO_E2E_ARTIFACTS") or cache_dir() / "e2e-artifacts").absolute()


def collect(kubectl: Kubectl, folder: Path) -> str:
    """Write everything into `folder`; returns the part worth reading first."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "objects.yaml", kubectl, "get", _KINDS, "--all-namespaces", "--output=yaml")
    _write(folder / "modeldeployments.yaml", kubectl, "get", "modeldeployments", "--all-namespaces", "--output=yaml")
    pods = _write(folder / "pods.txt", kubectl, "get", "pods", "--all-namespaces", "--output=wide")
    deployments = _write(folder / "modeldeployments.txt", kubectl, "get", "modeldeployments", "--all-namespaces")
    events = _write(folder / "events.txt", kubectl, "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
    sections = [pods, deployments, _end(events), *_collect_logs(kubectl, folder)]
    return "\n\n".join([f"all of it: {folder}", *sections])


def _collect_logs(kubectl: Kubectl, folder: Path) -> Iterator[str]:
    """One file a container; yields the end of each."""
    try:
        pods = kubectl.items("pods", "--all-namespaces")
    except CommandError as error:
        yield str(error)
        return
    for pod in pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        for status in pod["status"].get("containerStatuses", []):
            container = status["name"]
            words = ["logs", f"--namespace={namespace}", name, f"--container={container}"]
            current = _write(folder / f"{namespace}.{name}.{container}.log", kubectl, *words)
            yield f"--- {namespace}/{name} {container}, the end of its log\n{_end(current)}"
            if status.get("restartCount"):
                before = _write(folder / f"{namespace}.{name}.{container}.previous.log", kubectl, *words, "--previous")
                yield f"--- {namespace}/{name} {container}, before its last restart\n{_end(before)}"


def _write(file: Path, kubectl: Kubectl, *words: str) -> str:
    try:
        text = kubectl(*words, timeout_s=30)
    except CommandError as error:
        text = str(error)
    file.write_text(text)
    return text


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-_EXCERPT_LINES:])
