"""The whole operator against a real API server: the objects, the status, repair, rollout, deletion, and its silence.

There is no kubelet: the tests make the pods and say what became of them, as Deployments and kubelets would.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import ended, termination_log
from octavo_testing.operator_process import Namespace, count_writes, running_operator, until

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


@pytest.fixture(scope="module")
def operator_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator") / "operator.log"


@pytest.fixture(scope="module")
def cluster(apiserver: ApiServer, operator_log: Path) -> Iterator[ApiServer]:
    """An API server with the operator at work."""
    with running_operator(apiserver, operator_log):
        yield apiserver


@pytest.fixture
def namespace(cluster: ApiServer, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of its own; its resources go at the end, because served names are the whole cluster's."""
    name = request.node.name.removeprefix("test_").replace("_", "-").split("[")[0]
    made = Namespace(cluster, name[:60].rstrip("-"))
    yield made
    made.clear()


def test_one_field_gives_deployment_service_and_account(namespace: Namespace) -> None:
    resource = namespace.create("qwen")

    deployment = namespace.deployment_of("qwen")

    assert namespace.names("Service") == {"qwen"}
    assert namespace.names("ServiceAccount") == {"qwen"}
    assert namespace.names("PodDisruptionBudget") == namespace.names("HorizontalPodAutoscaler") == set()
    owner = deployment["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"]) == (resource["metadata"]["uid"], True)
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"][:2] == ["serve", "org/name"]
    assert {entry["manager"] for entry in deployment["metadata"]["managedFields"]} == {"octavo-operator"}


def test_any_character_reaches_the_pods(namespace: Namespace) -> None:
    """One beyond the first plane, and what YAML takes as an escape alone."""
    text = '\U0001f600 \\ü\u2028\u0085\x7f\ufeff\t"'
    namespace.create(
        "qwen", podTemplate={"spec": {"containers": [{"name": "server", "env": [{"name": "A", "value": text}]}]}}
    )

    (server,) = namespace.deployment_of("qwen")["spec"]["template"]["spec"]["containers"]

    assert [each["value"] for each in server["env"] if each["name"] == "A"] == [text]


def test_resource_bears_no_finalizer_and_no_annotation(namespace: Namespace) -> None:
    namespace.create("qwen")
    namespace.deployment_of("qwen")

    metadata = (namespace.get("ModelDeployment", "qwen") or {})["metadata"]

    assert "finalizers" not in metadata
    assert "annotations" not in metadata
    namespace.delete("ModelDeployment", "qwen")
    assert namespace.get("ModelDeployment", "qwen") is None


def test_status_says_ready_and_scale_can_be_read(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    namespace.add_pod(namespace.deployment_of("qwen"), "qwen-1", READY)

    ready = until(lambda: namespace.condition("qwen"), lambda got: got.get("status") == "True")
    status = (namespace.get("ModelDeployment", "qwen") or {})["status"]

    assert (ready["reason"], ready["message"]) == ("AllReplicasReady", "1 of 1 replicas ready")
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (1, 1, 1)
    assert status["observedGeneration"] == 1
    assert status["endpoint"] == f"http://qwen.{namespace.name}.svc:8000/v1"
    assert until(lambda: namespace.names("Event"), bool)


def test_a_pod_that_somebody_detached_is_no_replica(namespace: Namespace) -> None:
    """A swap would wait for it to go, and nobody ever takes it away."""
    namespace.create("qwen", replicas=1)
    namespace.add_pod(namespace.deployment_of("qwen"), "qwen-1", READY)
    until(lambda: namespace.condition("qwen"), lambda got: got.get("status") == "True")

    # As its ReplicaSet lets go of a pod whose labels it does not know any more.
    namespace.patch(
        "Pod", "qwen-1", {"metadata": {"ownerReferences": None, "labels": {"octavo.dev/revision": "debug"}}}
    )

    until(lambda: namespace.condition("qwen"), lambda got: got.get("status") == "False")
    status = (namespace.get("ModelDeployment", "qwen") or {})["status"]
    assert (status["replicas"], status["readyReplicas"]) == (0, 0)


def test_bad_model_gives_the_servers_own_words(namespace: Namespace) -> None:
    namespace.create("qwen")
    said = termination_log("ModelNotFound", "no model org/name on the hub; check spec.model")
    crashed = {"name": "server", "image": "x", "imageID": "", "ready": False, "restartCount": 2}
    crashed |= {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(1, said)}

    namespace.add_pod(namespace.deployment_of("qwen"), "qwen-1", {"phase": "Running", "containerStatuses": [crashed]})

    ready = until(lambda: namespace.condition("qwen"), lambda got: got.get("reason") == "ModelNotFound")
    assert ready["status"] == "False"
    assert "no model org/name on the hub; check spec.model (restart 2)" in ready["message"]
    events = until(lambda: _notes(namespace), lambda notes: any("no model org/name" in note for note in notes))
    assert len(events) == 1


def test_want_of_gpus_is_told_with_the_nodes(namespace: Namespace) -> None:
    namespace.server.request(
        "POST", "/api/v1/nodes", {"metadata": {"name": "gpu-node"}, "spec": {"unschedulable": True}}
    )
    capacity = {"status": {"capacity": {"nvidia.com/gpu": "1"}, "allocatable": {"nvidia.com/gpu": "1"}}}
    merge = "application/merge-patch+json"
    namespace.server.request("PATCH", "/api/v1/nodes/gpu-node/status", capacity, content_type=merge)
    namespace.create("qwen")
    pending = {
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

    namespace.add_pod(namespace.deployment_of("qwen"), "qwen-1", pending)

    ready = until(lambda: namespace.condition("qwen"), lambda got: got.get("reason") == "InsufficientGPU")
    assert ready["message"] == (
        "0 of 1 replicas ready; pod qwen-1 needs 1 nvidia.com/gpu, 0 of 1 GPU nodes have one free (1 cordoned)"
    )
    assert namespace.condition("qwen", "Scheduled")["status"] == "False"


def test_hand_edits_are_restored_and_foreign_annotations_stay(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    name = namespace.deployment_of("qwen")["metadata"]["name"]

    namespace.patch("Deployment", name, {"spec": {"replicas": 7}, "metadata": {"annotations": {"mine": "yes"}}})
    namespace.delete("Service", "qwen")

    restored = until(lambda: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 1)
    until(lambda: namespace.names("Service"), lambda names: names == {"qwen"})
    assert restored["metadata"]["annotations"]["mine"] == "yes"


def test_labels_that_somebody_changed_are_restored(namespace: Namespace) -> None:
    """By the first nobody knows any more whose it is, without the second no watch tells of it."""
    namespace.create("qwen", replicas=1)
    deployment = namespace.deployment_of("qwen")
    labels, name = deployment["metadata"]["labels"], deployment["metadata"]["name"]

    for label in ("octavo.dev/modeldeployment", "app.kubernetes.io/managed-by"):
        namespace.patch("Deployment", name, {"metadata": {"labels": {label: "mine"}}})
        until(lambda: (namespace.get("Deployment", name) or {})["metadata"]["labels"], lambda got: got == labels)


def test_a_revision_that_lost_label_and_template_while_nobody_looked_leaves_all_the_same(namespace: Namespace) -> None:
    """No watch tells of it, and it would hold its GPUs for ever; its pods tell."""
    namespace.create("qwen", replicas=1)
    old = namespace.deployment_of("qwen")
    namespace.add_pod(old, "old-1", READY)
    until(lambda: namespace.condition("qwen"), lambda got: got.get("status") == "True")
    namespace.patch("ModelDeployment", "qwen", {"spec": {"suspend": True}})
    until(lambda: namespace.condition("qwen", "Progressing"), lambda got: got.get("reason") == "Suspended")
    name = old["metadata"]["name"]
    namespace.patch("Deployment", name, {"metadata": {"labels": {"app.kubernetes.io/managed-by": "mine"}}})
    namespace.delete("ControllerRevision", name)

    namespace.patch("ModelDeployment", "qwen", {"spec": {"suspend": False, "engine": {"maxNumSeqs": 4}}})
    names = until(lambda: namespace.names("Deployment"), lambda got: len(got) == 2)
    (new,) = names - {name}
    namespace.add_pod(namespace.get("Deployment", new) or {}, "new-1", READY)

    until(lambda: (namespace.get("Deployment", name) or {})["spec"]["replicas"], lambda got: got == 0)
    namespace.delete("Pod", "old-1")
    until(lambda: namespace.names("Deployment"), lambda got: got == {new})


def test_label_that_was_added_to_a_selector_goes(namespace: Namespace) -> None:
    """The Service would find no pod any more."""
    namespace.create("qwen", replicas=1)
    selector = until(lambda: namespace.get("Service", "qwen"), bool)["spec"]["selector"]  # type: ignore[index]

    namespace.patch("Service", "qwen", {"spec": {"selector": {"mine": "yes"}}})

    until(lambda: (namespace.get("Service", "qwen") or {})["spec"]["selector"], lambda got: got == selector)


def test_scaled_resource_gets_its_first_number_and_a_scaler(namespace: Namespace) -> None:
    namespace.create("qwen", scaling={"minReplicas": 2, "maxReplicas": 4, "backend": "HPA"})

    deployment = namespace.deployment_of("qwen")
    resource = namespace.get("ModelDeployment", "qwen") or {}

    assert deployment["spec"]["replicas"] == resource["spec"]["replicas"] == 2
    until(lambda: namespace.names("HorizontalPodAutoscaler"), lambda names: names == {"qwen"})
    assert namespace.names("PodDisruptionBudget") == {"qwen"}
    namespace.patch("ModelDeployment", "qwen", {"spec": {"replicas": 4}}, subresource="scale")
    # No pod is ever made here, so the first two are still on their way.
    scaling = until(
        lambda: ((namespace.get("ModelDeployment", "qwen") or {}).get("status") or {}).get("scaling") or {},
        lambda got: bool(got.get("decisions")),
    )
    [decision] = scaling["decisions"]
    assert (scaling["desired"], decision["from"], decision["to"]) == (2, 2, 4)
    assert decision["blockedBy"] == "2 pods are being made"
    name = deployment["metadata"]["name"]
    assert (namespace.get("Deployment", name) or {})["spec"]["replicas"] == 2
    namespace.patch("ModelDeployment", "qwen", {"spec": {"scaling": None, "replicas": 1}})
    until(lambda: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 1)
    until(lambda: namespace.names("HorizontalPodAutoscaler"), lambda names: names == set())
    until(lambda: namespace.names("PodDisruptionBudget"), lambda names: names == set())


def test_want_of_an_adapter_is_told_in_condition_and_metric(namespace: Namespace, operator_log: Path) -> None:
    """This operator runs without one, and no autoscaler runs here."""
    namespace.create("qwen", scaling={"maxReplicas": 2, "backend": "HPA"})

    active = until(lambda: namespace.condition("qwen", "ScalingActive"), bool)

    assert active["message"] == "the autoscaler has not looked yet; the operator's metrics adapter: it is off"
    port = re.findall(r"operator started port=(\d+)", operator_log.read_text())[-1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        assert "octavo_operator_metrics_adapter_up 0.0" in response.read().decode()


def test_a_model_is_fetched_onto_a_claim_before_any_pod_is_made(namespace: Namespace) -> None:
    namespace.create("qwen", cache={"type": "PVC", "size": "1Gi", "storageClassName": "nfs"})
    (job,) = until(lambda: namespace.names("Job"), bool)
    (claim,) = namespace.names("PersistentVolumeClaim")
    waiting = {"name": "download", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    waiting |= {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}}
    made = namespace.get("Job", job) or {}

    namespace.add_pod(made, "fetch-1", {"phase": "Pending", "containerStatuses": [waiting]})
    cached = until(
        lambda: namespace.condition("qwen", "ModelCached"), lambda got: got.get("reason") == "SecretNotFound"
    )
    assert 'secret "s" not found' in cached["message"]
    assert namespace.names("Deployment") == set()

    done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    sure = {**done, "type": "SuccessCriteriaMet"}
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:00Z", "succeeded": 1}
    namespace.patch("Job", job, {"status": {"conditions": [sure, done], **times}}, subresource="status")
    deployment = namespace.deployment_of("qwen")
    cached = until(lambda: namespace.condition("qwen", "ModelCached"), lambda got: got.get("status") == "True")

    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": claim}} in volumes
    assert cached["message"] == f"Job {job} has fetched and checked the model"


def test_new_revision_takes_over_when_it_is_ready(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    old = namespace.deployment_of("qwen")
    namespace.add_pod(old, "old-1", READY)
    until(lambda: namespace.condition("qwen"), lambda got: got.get("status") == "True")

    namespace.patch("ModelDeployment", "qwen", {"spec": {"engine": {"maxNumSeqs": 4}}})
    until(lambda: namespace.names("Deployment"), lambda names: len(names) == 2)
    until(lambda: namespace.condition("qwen", "Progressing"), lambda got: got.get("reason") == "RollingOut")
    new = namespace.deployment_of("qwen")
    assert new["metadata"]["name"] != old["metadata"]["name"]
    assert (namespace.get("Deployment", old["metadata"]["name"]) or {})["spec"]["replicas"] == 1
    assert _admitted(namespace) == [old["metadata"]["labels"]["octavo.dev/revision"]]

    namespace.add_pod(new, "new-1", READY)
    revision = new["metadata"]["labels"]["octavo.dev/revision"]
    until(lambda: _admitted(namespace), lambda admitted: admitted == [revision])
    until(lambda: namespace.get("Deployment", old["metadata"]["name"]) or {}, lambda got: got["spec"]["replicas"] == 0)
    namespace.delete("Pod", "old-1")
    until(lambda: namespace.names("Deployment"), lambda names: names == {new["metadata"]["name"]})
    until(lambda: namespace.condition("qwen", "Progressing"), lambda got: got.get("reason") == "RolledOut")


def test_template_is_kept_and_kept_again_when_it_was_deleted(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    deployment = namespace.deployment_of("qwen")
    name = deployment["metadata"]["name"]

    kept = until(lambda: namespace.get("ControllerRevision", name), bool) or {}
    assert kept["data"]["spec"]["model"] == "hf://org/name"
    assert kept["data"]["template"]["metadata"]["labels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert kept["metadata"]["ownerReferences"][0]["controller"]
    namespace.delete("ControllerRevision", name)

    again = until(lambda: namespace.get("ControllerRevision", name), bool) or {}
    assert again["data"] == kept["data"]
    assert namespace.get("Deployment", name) == deployment


def test_somebody_elses_service_is_left_alone_and_named(namespace: Namespace) -> None:
    foreign = {"metadata": {"name": "qwen"}, "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]}}
    namespace.post("Service", foreign)

    namespace.create("qwen")

    ready = until(lambda: namespace.condition("qwen"), lambda got: got.get("reason") == "NameTaken")
    assert "Service qwen exists and does not belong to this ModelDeployment" in ready["message"]
    assert (namespace.get("Service", "qwen") or {})["spec"]["selector"] == {"app": "mine"}
    namespace.delete("Service", "qwen")
    namespace.deployment_of("qwen")


def test_copy_of_one_of_our_objects_is_left_alone(namespace: Namespace) -> None:
    namespace.create("qwen")
    deployment = namespace.deployment_of("qwen")
    service = until(lambda: namespace.get("Service", "qwen"), lambda got: got is not None) or {}
    copy = {
        "metadata": {"name": "qwen-too", "labels": service["metadata"]["labels"]},
        "spec": {"ports": [{"port": 80}]},
    }
    namespace.post("Service", copy)

    name = deployment["metadata"]["name"]
    namespace.patch("Deployment", name, {"spec": {"replicas": 7}})
    until(lambda: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 1)
    namespace.delete("Service", "qwen")
    until(lambda: namespace.names("Service"), lambda names: "qwen" in names)

    assert namespace.names("Service") == {"qwen", "qwen-too"}


def test_resource_applied_again_waits_for_what_the_deleted_one_had(namespace: Namespace) -> None:
    """No garbage collector runs here, so the test is it."""
    namespace.create("qwen")
    old = namespace.deployment_of("qwen")
    namespace.delete("ModelDeployment", "qwen")
    uid = namespace.create("qwen")["metadata"]["uid"]
    waits = until(lambda: namespace.condition("qwen"), bool)
    assert (waits["reason"], waits["message"]) == (
        "Creating",
        "ServiceAccount qwen still belongs to the deleted ModelDeployment of the same name and will go with it",
    )

    namespace.delete("ServiceAccount", "qwen")
    namespace.delete("Service", "qwen")
    until(lambda: namespace.condition("qwen"), lambda got: got["message"].startswith("ControllerRevision qwen-"))
    namespace.delete("ControllerRevision", old["metadata"]["name"])
    until(lambda: namespace.condition("qwen"), lambda got: got["message"].startswith("Deployment qwen-"))
    namespace.delete("Deployment", old["metadata"]["name"])

    new = namespace.deployment_of("qwen")
    assert new["metadata"]["ownerReferences"][0]["uid"] == uid


@pytest.mark.parametrize("overlay", [{"volumes": ["data"]}, {"valumes": []}], ids=["shape", "name"])
def test_overlay_that_is_no_pod_template_is_told(namespace: Namespace, overlay: dict[str, Any]) -> None:
    (name,) = overlay
    namespace.create(f"bad-{name}", podTemplate={"spec": overlay})

    bad = until(lambda: namespace.condition(f"bad-{name}"), lambda got: got.get("reason") == "SpecInvalid")

    assert name in bad["message"]


def test_overlay_that_the_api_refuses_is_told_and_others_go_on(namespace: Namespace) -> None:
    namespace.create("bad", podTemplate={"spec": {"containers": [{"name": "server", "imagePullPolicy": "Sometimes"}]}})
    namespace.create("good")

    bad = until(lambda: namespace.condition("bad"), lambda got: got.get("reason") == "SpecInvalid")
    namespace.deployment_of("good")

    assert "Sometimes" in bad["message"]
    assert (namespace.get("ModelDeployment", "bad") or {})["status"]["observedGeneration"] == 1


def test_served_name_belongs_to_the_oldest_and_passes_on(namespace: Namespace) -> None:
    namespace.create("first", servedNames=["chat-of-the-test"])
    until(lambda: namespace.condition("first"), bool)
    time.sleep(1.1)
    namespace.create("second", servedNames=["chat-of-the-test"])

    conflict = until(lambda: namespace.condition("second"), lambda got: got.get("reason") == "ServedNameConflict")
    assert f"{namespace.name}/first" in conflict["message"]
    namespace.delete("ModelDeployment", "first")
    until(lambda: namespace.condition("second"), lambda got: got.get("reason") != "ServedNameConflict")


def test_suspended_resource_is_not_touched(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    name = namespace.deployment_of("qwen")["metadata"]["name"]
    namespace.patch("ModelDeployment", "qwen", {"spec": {"suspend": True}})
    until(lambda: namespace.condition("qwen", "Progressing"), lambda got: got.get("reason") == "Suspended")

    namespace.patch("Deployment", name, {"spec": {"replicas": 5}})
    time.sleep(1)
    assert (namespace.get("Deployment", name) or {})["spec"]["replicas"] == 5
    namespace.patch("ModelDeployment", "qwen", {"spec": {"suspend": False}})
    until(lambda: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 1)


def test_change_is_applied_within_a_second_and_then_there_is_silence(namespace: Namespace) -> None:
    namespace.create("qwen", replicas=1)
    name = namespace.deployment_of("qwen")["metadata"]["name"]
    time.sleep(3)

    changed_at = time.monotonic()
    namespace.patch("ModelDeployment", "qwen", {"spec": {"replicas": 3}})
    until(lambda: namespace.get("Deployment", name) or {}, lambda got: got["spec"]["replicas"] == 3)
    took_s = time.monotonic() - changed_at
    time.sleep(3)
    before = count_writes(namespace.server)
    time.sleep(6)

    assert took_s < 1
    assert count_writes(namespace.server) == before


def test_restarted_operator_finds_all_as_it_should_be(
    apiserver: ApiServer, tmp_path: Path, operator_log: Path, cluster: ApiServer
) -> None:
    """A second operator waits for the lease; as leader it writes nothing where nothing is amiss."""
    namespace = Namespace(cluster, "restarted")
    namespace.create("qwen", replicas=2, resources={"cpu": "1000m", "memory": "1024Mi"})
    namespace.deployment_of("qwen")
    time.sleep(2)

    with running_operator(apiserver, tmp_path / "second.log", "--lease-name=another"):
        until(lambda: (tmp_path / "second.log").read_text(), lambda log: "is_leader=True" in log)
        time.sleep(2)
        before = count_writes(apiserver)
        namespace.patch("Service", "qwen", {"metadata": {"annotations": {"mine": "1"}}})
        time.sleep(3)

    assert count_writes(apiserver) == before + 1


def _notes(namespace: Namespace) -> list[str]:
    """Of the ModelDeployment's events: the API server has some of its own, about addresses of Services."""
    items = namespace.server.request("GET", f"/api/v1/namespaces/{namespace.name}/events").body["items"]
    return [item["message"] for item in items if item["involvedObject"]["kind"] == "ModelDeployment"]


def _admitted(namespace: Namespace) -> list[str]:
    resource: dict[str, Any] = namespace.get("ModelDeployment", "qwen") or {}
    admitted: list[str] = resource.get("status", {}).get("rollout", {}).get("admitted", [])
    return admitted
