"""The operator and the gateway as processes, each with nothing but the rights that the chart gives it.

Whatever they lack shows as a 403 of a real kube-apiserver in their logs, or as a resource that never comes to be.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_operator.desired.names import DELETION_COST
from octavo_testing.apiserver import ApiServer, free_ports
from octavo_testing.audit import rights_given, rights_refused, rights_used
from octavo_testing.chart import install_rights, kubeconfig_of
from octavo_testing.operator_process import OPERATOR_PATH, Namespace, until

await_that = functools.partial(until, within_s=120.0)
"""Two processes start and work on a machine that may be busy."""
NO_RIGHT = re.compile(r"\b403\b|orbidden|cannot (get|list|watch|patch)")

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        }
    ],
}


OF_THE_ADAPTER = "of the metrics adapter, which test_on_api_server runs with the chart's account"
USED_ELSEWHERE = {
    "operator": {
        ("", "secrets", "get"): OF_THE_ADAPTER,
        ("", "secrets", "update"): OF_THE_ADAPTER,
        ("apiregistration.k8s.io", "apiservices", "create"): OF_THE_ADAPTER,
        ("apiregistration.k8s.io", "apiservices", "get"): OF_THE_ADAPTER,
        ("apiregistration.k8s.io", "apiservices", "patch"): OF_THE_ADAPTER,
        ("rbac.authorization.k8s.io", "clusterroles", "get"): OF_THE_ADAPTER,
        ("octavo.dev", "modeldeployments/finalizers", "update"): "asked for by an admission plugin that OpenShift has",
    },
    "gateway": {("", "configmaps", "patch"): "of day totals of tokens (tests/gateway)"},
}
"""What the chart gives and the life below does not ask for, each with who does."""


@contextlib.contextmanager
def running(module: str, log: Path, *arguments: str) -> Iterator[None]:
    """`python -m module` until the block ends; it must then end by itself after SIGTERM."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": str(OPERATOR_PATH)},
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=[(), ("team-limited",)], ids=["everywhere", "one-namespace"])
def release(request, server, render, tmp_path):
    """(rendered chart, a watched namespace, a namespace that is watched only where all are)."""
    name = "limited" if request.param else "wide"
    values = {"namespaces": list(request.param), "networkPolicies": {"enabled": True}}
    rendered = render(values, release=f"octavo-{name}")
    watched = Namespace(server, f"team-{name}")
    install_rights(server, rendered)
    node = {"metadata": {"name": "gpu-node"}}
    server.request("POST", "/api/v1/nodes", node)
    gpus = {"status": {"capacity": {"nvidia.com/gpu": "1"}, "allocatable": {"nvidia.com/gpu": "1"}}}
    server.request("PATCH", "/api/v1/nodes/gpu-node/status", gpus, content_type="application/merge-patch+json")
    return rendered, watched, f"octavo-{name}"


@pytest.mark.timeout(900)
def test_a_models_whole_life_needs_no_other_right(server: ApiServer, release, tmp_path):
    """Applied, scaled to zero, woken by a request, changed, deleted: operator and gateway with the chart's own flags."""
    rendered, namespace, name = release
    port, internal = free_ports(2)
    with both_running(server, rendered, name, tmp_path, ports=(port, internal)):
        makes_all_kinds(namespace)
        await_that(lambda: is_ready(internal), bool)
        peers = f"/api/v1/namespaces/sys/secrets/{name}-gateway-peers"
        await_that(lambda: server.request("GET", peers).body.get("data"), bool)
        sleeps_and_wakes(namespace, port)
        tells_want_of_gpus(namespace)
        fetches_onto_a_claim(namespace)
        removes_strays(namespace)
        rolls_out_without_room(namespace)
        # Whether a node comes is asked for each pod that has none, and the answer is seen nowhere.
        asked = ("", "events", "list")
        await_that(lambda: rights_used(server.audit_log, f"sys:{name}-operator"), lambda used: asked in used)
        shrinks_and_goes(namespace)

    for component, elsewhere in USED_ELSEWHERE.items():
        account = f"sys:{name}-{component}"
        assert rights_refused(server.audit_log, account) == set()
        given, used = rights_given(roles_of(rendered, f"{name}-{component}")), rights_used(server.audit_log, account)
        assert given - used == set(elsewhere), f"{component}: given and not used, or used here and in the table"


@contextlib.contextmanager
def both_running(server: ApiServer, rendered, name: str, folder: Path, *, ports: tuple[int, int]) -> Iterator[None]:
    """Operator and gateway, each as its own service account; no log may tell of a right that was wanting."""
    logs = {component: folder / f"{component}.log" for component in ("operator", "gateway")}
    flags = {
        component: [
            *rendered.container(component, release=name)["args"],
            f"--kubeconfig={kubeconfig_of(server, folder, 'sys', f'{name}-{component}')}",
        ]
        for component in logs
    }
    operator = [*flags["operator"], "--port=0", "--metrics-adapter=false"]
    gateway = [*flags["gateway"], f"--port={ports[0]}", f"--internal-port={ports[1]}"]
    with (
        running("octavo_operator", logs["operator"], *operator),
        running("octavo_gateway", logs["gateway"], *gateway, "--drain-delay-s=0", "--shutdown-timeout-s=1"),
    ):
        yield
    for log in logs.values():
        refused = [line for line in log.read_text().splitlines() if NO_RIGHT.search(line)]
        assert refused == []


def makes_all_kinds(namespace: Namespace) -> None:
    namespace.create("steady", replicas=2)
    namespace.create("scaled", scaling={"minReplicas": 0, "maxReplicas": 3, "idleAfter": "10m", "backend": "HPA"})
    for kind in ("Service", "ServiceAccount", "NetworkPolicy"):
        await_that(lambda kind=kind: namespace.names(kind), lambda names: {"steady", "scaled"} <= names)
    await_that(lambda: namespace.names("PodDisruptionBudget"), lambda names: "steady" in names)
    await_that(lambda: namespace.names("HorizontalPodAutoscaler"), lambda names: "scaled" in names)
    assert namespace.deployment_of("steady")["spec"]["replicas"] == 2
    await_that(lambda: namespace.condition("scaled"), bool)


def sleeps_and_wakes(namespace: Namespace, port: int) -> None:
    namespace.patch("ModelDeployment", "scaled", {"spec": {"replicas": 0}}, subresource="scale")
    await_that(lambda: namespace.deployment_of("scaled")["spec"]["replicas"], lambda replicas: replicas == 0)
    await_that(lambda: namespace.names("Event"), bool)
    with asking(port, "scaled"):
        await_that(
            lambda: (namespace.get("ModelDeployment", "scaled") or {})["spec"]["replicas"],
            lambda replicas: replicas == 1,
        )


def tells_want_of_gpus(namespace: Namespace) -> None:
    namespace.add_pod(namespace.deployment_of("steady"), "steady-1", UNSCHEDULABLE)
    await_that(lambda: namespace.condition("steady"), lambda ready: "0 of 1 GPU nodes" in ready.get("message", ""))


def fetches_onto_a_claim(namespace: Namespace) -> None:
    namespace.create("cached", cache={"type": "PVC", "size": "1Gi"})
    for kind in ("PersistentVolumeClaim", "Job"):
        await_that(lambda kind=kind: namespace.names(kind), bool)


def removes_strays(namespace: Namespace) -> None:
    for kind, stray in add_strays(namespace, "steady"):
        await_that(lambda kind=kind, stray=stray: namespace.get(kind, stray), is_gone)


def rolls_out_without_room(namespace: Namespace) -> None:
    """One replica serves, and that of the changed spec finds no node."""
    namespace.create("rolled", replicas=1)
    old = namespace.deployment_of("rolled")
    namespace.add_pod(old, "rolled-old", READY)
    await_that(lambda: namespace.condition("rolled"), lambda ready: ready.get("status") == "True")
    namespace.patch("ModelDeployment", "rolled", {"spec": {"engine": {"maxNumSeqs": 4}}})
    new = await_that(
        lambda: namespace.deployment_of("rolled"), lambda got: got["metadata"]["name"] != old["metadata"]["name"]
    )
    namespace.add_pod(new, "rolled-new", UNSCHEDULABLE)


def shrinks_and_goes(namespace: Namespace) -> None:
    """The replica that serves tells no load, so what it once was worth is taken back."""
    namespace.add_pod(namespace.deployment_of("steady"), "steady-2", UNSCHEDULABLE)
    namespace.patch("Pod", "steady-2", {"metadata": {"annotations": {DELETION_COST: "5"}}})
    namespace.patch("Pod", "steady-2", {"status": READY}, subresource="status")
    await_that(
        lambda: (namespace.get("ModelDeployment", "steady") or {})["status"].get("readyReplicas"),
        lambda count: count == 1,
    )
    namespace.patch("ModelDeployment", "steady", {"spec": {"replicas": 1}})
    await_that(
        lambda: (namespace.get("Pod", "steady-2") or {})["metadata"]["annotations"][DELETION_COST],
        lambda cost: cost == "0",
    )
    await_that(lambda: namespace.names("PodDisruptionBudget"), lambda names: "steady" not in names)
    namespace.delete("ModelDeployment", "steady")


def roles_of(rendered, account: str) -> list[dict]:
    """The roles that are bound to the account and are the chart's own."""
    bindings = rendered.of("ClusterRoleBinding") + rendered.of("RoleBinding")
    bound = {
        (binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for binding in bindings
        if account in [subject["name"] for subject in binding["subjects"]]
    }
    return [
        role
        for role in rendered.of("ClusterRole") + rendered.of("Role")
        if (role["kind"], role["metadata"]["name"]) in bound
    ]


def is_gone(found: dict | None) -> bool:
    """A claim waits for a controller that is not here, once it is deleted."""
    return found is None or "deletionTimestamp" in found["metadata"]


def add_strays(namespace: Namespace, name: str) -> list[tuple[str, str]]:
    """(kind, name) of objects that look like the operator's own and that it does not want."""
    metadata = namespace.get("Service", name)["metadata"]
    stray = {"name": f"{name}-stray", "labels": metadata["labels"], "ownerReferences": metadata["ownerReferences"]}
    labels = {"app": "stray"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
    job = {"template": {"spec": {**template["spec"], "restartPolicy": "Never"}}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    specs = {
        "Job": {"spec": job},
        "PersistentVolumeClaim": {"spec": claim},
        "Service": {"spec": {"ports": [{"port": 1}]}},
        "ServiceAccount": {},
        "Deployment": {"spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}},
        "ControllerRevision": {"revision": 1, "data": {}},
        "PodDisruptionBudget": {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}}},
        "HorizontalPodAutoscaler": {"spec": {"scaleTargetRef": target, "maxReplicas": 2}},
        "NetworkPolicy": {"spec": {"podSelector": {"matchLabels": labels}}},
    }
    for kind, rest in specs.items():
        namespace.post(kind, {"metadata": stray, **rest})
    return [(kind, str(stray["name"])) for kind in specs]


def is_ready(internal_port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{internal_port}/readyz", timeout=5):
        return True
    return False


@contextlib.contextmanager
def asking(port: int, model: str) -> Iterator[None]:
    """A chat request that the gateway holds, since no replica will ever come; its answer does not matter."""

    def ask() -> None:
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "hi"}}]}}'.encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=30):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    yield
