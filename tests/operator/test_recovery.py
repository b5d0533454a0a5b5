"""A resource that cannot work says why, harms no other, and recovers when the cause is gone: the whole operator.

There is no kubelet: the tests make the pods and say what became of them. Its back-off between starts is Kubernetes'
own; that of the operator is in test_work_queue.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import ended, termination_log, waiting
from octavo_testing.operator_process import Namespace, running_operator, until

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture(scope="module")
def cluster(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with the operator at work."""
    with running_operator(apiserver, tmp_path_factory.mktemp("operator") / "operator.log"):
        yield apiserver


def crashed(reason: str, message: str) -> dict[str, Any]:
    last = {"lastState": ended(1, termination_log(reason, message)), "restartCount": 2}
    return waiting("CrashLoopBackOff", "back-off 20s", **last)


TROUBLES = {
    "SecretNotFound": (waiting("CreateContainerConfigError", 'secret "hf" not found'), 'secret "hf" not found'),
    "ModelNotFound": (crashed("ModelNotFound", "the hub has no org/name"), "the hub has no org/name (restart 2)"),
    "UnsupportedArchitecture": (crashed("UnsupportedArchitecture", "Mamba is not served"), "Mamba is not served"),
    "GPUOutOfMemory": (crashed("GPUOutOfMemory", "needs 15.2 GB, 11.0 GB are free"), "needs 15.2 GB"),
}


@pytest.mark.parametrize(("reason", "trouble"), TROUBLES.items(), ids=TROUBLES.keys())
def test_trouble_is_told_harms_no_other_and_is_over_with_its_cause(
    cluster: ApiServer, reason: str, trouble: tuple[dict[str, Any], str]
) -> None:
    namespace = Namespace(cluster, f"recovery-{reason.lower()}")
    state, words = trouble
    namespace.create("sound")
    namespace.add_pod(namespace.deployment_of("sound"), "sound-1", READY)
    until(lambda: namespace.condition("sound"), lambda got: got.get("status") == "True")
    before = namespace.get("ModelDeployment", "sound"), namespace.deployment_of("sound")

    namespace.create("ill", source={"secretRef": {"name": "hf"}})
    server = {"name": "server", "image": "x", "imageID": "", "ready": False, "restartCount": 0, **state}
    namespace.add_pod(namespace.deployment_of("ill"), "ill-1", {"phase": "Pending", "containerStatuses": [server]})
    told = until(lambda: namespace.condition("ill"), lambda got: got.get("reason") == reason)
    during = namespace.get("ModelDeployment", "sound"), namespace.deployment_of("sound")
    namespace.set_pod_status("ill-1", {**READY, "containerStatuses": [server | {"state": {"running": {}}}]})
    after = until(lambda: namespace.condition("ill"), lambda got: got.get("status") == "True")

    assert (told["status"], words in told["message"]) == ("False", True)
    assert during == before
    assert after["reason"] == "AllReplicasReady"
    namespace.clear()
