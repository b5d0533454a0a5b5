"""The operator killed right after its Nth write, before it hears of its success: the next one brings the same end.

On a real API server, while three resources are made. Rollouts are killed on the simulated cluster (tests/operator/rollout).
"""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.faulty_proxy import Asked, FaultyProxy
from octavo_testing.operator_process import COLLECTIONS, Namespace, running_operator, start_operator, until

FULL = bool(os.environ.get("OCTAVO_FULL"))
KILLS = range(1, 21) if FULL else (1, 8, 15)
KINDS = sorted(set(COLLECTIONS) - {"Pod", "Event"})
UID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
RESOURCES: dict[str, dict[str, Any]] = {
    "plain": {"replicas": 2},
    "scaled": {"scaling": {"minReplicas": 2, "maxReplicas": 4, "backend": "HPA"}},
    "fetched": {"cache": {"type": "PVC", "size": "1Gi", "storageClassName": "nfs"}},
}


@pytest.fixture(scope="module")
def undisturbed(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of the resources where nobody is killed."""
    return end_of(apiserver, "killed-never", tmp_path_factory.mktemp("never"))


@pytest.mark.parametrize("after_writes", [pytest.param(n, marks=[pytest.mark.full] if FULL else []) for n in KILLS])
def test_operator_killed_after_its_nth_write_comes_to_the_same_end(
    apiserver: ApiServer, undisturbed: dict[str, Any], tmp_path: Path, after_writes: int
) -> None:
    name = f"killed-{after_writes}"
    proxy, writes = FaultyProxy(apiserver), itertools.count(1)
    namespace = Namespace(apiserver, name)
    make_resources(namespace)
    with proxy.running():
        flags = (f"--kubeconfig={proxy.kubeconfig(tmp_path)}", f"--lease-name={name}")
        process = start_operator(apiserver, tmp_path / "killed.log", *flags)

        def kill(_: Asked) -> None:
            if next(writes) == after_writes:
                process.kill()

        proxy.on_write = kill
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()

    assert end_of(apiserver, name, tmp_path) == undisturbed


def make_resources(namespace: Namespace) -> None:
    for name, spec in RESOURCES.items():
        namespace.create(name, **spec)


def end_of(server: ApiServer, name: str, folder: Path) -> dict[str, Any]:
    """What there is in the namespace once an operator has come to rest there, in words that do not depend on it."""
    namespace = Namespace(server, name)
    if not namespace.names("ModelDeployment"):
        make_resources(namespace)
    log = folder / "next.log"
    with running_operator(server, log, f"--lease-name={name}-next"):
        # What there is may be the work of the one that was killed.
        until(log.read_text, lambda text: "is_leader=True" in text, within_s=60)
        until(lambda: all(is_told(namespace, each) for each in RESOURCES), bool, within_s=60)
        seen = until_same(namespace)
    namespace.clear()
    return seen


def is_told(namespace: Namespace, name: str) -> bool:
    resource = namespace.get("ModelDeployment", name) or {}
    return bool(resource.get("status", {}).get("observedGeneration") == resource["metadata"]["generation"])


def until_same(namespace: Namespace) -> dict[str, Any]:
    """Looks until two looks in a row, a second apart, see the same."""
    seen: list[dict[str, Any]] = [{}]

    def look() -> bool:
        seen.append(everything_in(namespace))
        return seen[-1] == seen[-2]

    until(look, bool, within_s=60, every_s=1.0)
    return seen[-1]


def everything_in(namespace: Namespace) -> dict[str, Any]:
    """Objects by kind and name, in words that are the same in every namespace."""
    found = {
        f"{kind} {obj['metadata']['name']}": _without_what_the_server_gives(obj)
        for kind in (*KINDS, "ModelDeployment")
        for obj in namespace.items(kind)
    }
    text = UID.sub("UID", json.dumps(found, sort_keys=True)).replace(namespace.name, "NAMESPACE")
    for resource in namespace.items("ModelDeployment"):
        # A template names its namespace, so that its hash differs too.
        revision = resource.get("status", {}).get("rollout", {}).get("revision")
        text = text.replace(revision, "REVISION") if revision else text
    plain: dict[str, Any] = json.loads(text)
    return plain


def _without_what_the_server_gives(obj: dict[str, Any]) -> dict[str, Any]:
    """Identities, times and addresses."""
    kept = {key: value for key, value in obj.items() if key not in ("metadata", "apiVersion", "kind")}
    if "clusterIP" in kept.get("spec", {}):
        kept["spec"] = {key: value for key, value in kept["spec"].items() if not key.startswith("clusterIP")}
    for condition in kept.get("status", {}).get("conditions", ()):
        condition.pop("lastTransitionTime", None)
    metadata = obj["metadata"]
    owners = [
        {key: each[key] for key in ("kind", "name", "controller")} for each in metadata.get("ownerReferences", ())
    ]
    return {**kept, "labels": metadata.get("labels"), "owners": owners}
