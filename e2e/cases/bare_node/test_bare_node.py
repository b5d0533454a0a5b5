"""The cluster itself is real: our interpreter runs in its pods, and Kubernetes does what it does elsewhere."""

from __future__ import annotations

import pytest

from e2e.cases.bare_node.workload import documents
from e2e.cluster.image import USER_ID
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.target import Target
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

_ASK = "import urllib.request; print(urllib.request.urlopen('http://web.{namespace}.svc.cluster.local', timeout=5).read().decode())"


def test_pods_of_our_interpreter_answer_through_a_service_and_go_when_deleted(target: Target, namespace: str) -> None:
    """Scheduler, kubelet, kube-proxy, names, logs, exec and deletion, in the order in which a person meets them."""
    if target.lab is None:
        pytest.skip("the bare node is checked on the cluster that e2e starts itself")
    kubectl = target.kubectl
    kubectl.apply(documents(), namespace=namespace)
    kubectl("rollout", "status", "deployment/web", f"--namespace={namespace}", "--timeout=60s")

    ask = ["exec", f"--namespace={namespace}", "deployment/web", "--", "python", "-c"]
    answer = kubectl(*ask, _ASK.format(namespace=namespace))
    logs = kubectl("logs", f"--namespace={namespace}", "--selector=app=web")
    kubectl("delete", "deployment,service", "web", f"--namespace={namespace}")

    assert f"{USER_ID} 3.0" == answer.strip()
    assert "listening with torch" in logs
    wait_until(lambda: not _pods(kubectl, namespace), "the pods are gone", limit_s=30)


def _pods(kubectl: Kubectl, namespace: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in kubectl.items("pods", namespace=namespace)]
