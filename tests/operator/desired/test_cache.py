"""Where pods find their model, by the kind of cache; and the Job that fetches it."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.desired.job import render_job
from octavo_operator.desired.pod import PodSettings
from octavo_operator.desired.render import Desired
from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import POD_SETTINGS, a_desired, a_resource

PVC = {"type": "PVC", "size": "40Gi", "storageClassName": "nfs"}
LOCAL = {"type": "NodeLocal", "size": "40Gi", "storageClassName": "local"}


def desired(**spec: Any) -> Desired:
    return a_desired(a_resource(**spec))


def the(kind: str, found: Desired) -> dict[str, Any]:
    (obj,) = [dict(obj) for obj in found.objects if obj["kind"] == kind]
    return obj


def pod_of(obj: dict[str, Any]) -> dict[str, Any]:
    return dict(obj["spec"]["template"]["spec"])


def mount_of(pod: dict[str, Any]) -> dict[str, Any] | None:
    mounts = pod["containers"][0]["volumeMounts"]
    return next((mount for mount in mounts if mount["name"] == "model"), None)


def volume_of(pod: dict[str, Any]) -> dict[str, Any] | None:
    return next((volume for volume in pod["volumes"] if volume["name"] == "model"), None)


def test_without_a_cache_the_server_fetches_into_its_own_folder() -> None:
    found = desired(model="s3://bucket/m")

    pod = pod_of(the("Deployment", found))

    assert (volume_of(pod), mount_of(pod), found.job) == (None, None, None)
    assert "s3://bucket/m" in pod["containers"][0]["args"]
    assert not {"PersistentVolumeClaim", "Job"} & {kind for kind, _ in found.keys}


def test_a_job_fills_the_claim_that_replicas_read() -> None:
    source = {"secretRef": {"name": "s"}, "checksum": "sha256:" + "a" * 64, "allow": ["a.*"]}
    found = desired(model="s3://bucket/m", cache=PVC, source=source)
    claim, job, server = the("PersistentVolumeClaim", found), the("Job", found), pod_of(the("Deployment", found))
    download = pod_of(job)
    name = claim["metadata"]["name"]

    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "40Gi"}},
        "storageClassName": "nfs",
    }
    assert volume_of(server) == volume_of(download) == {"name": "model", "persistentVolumeClaim": {"claimName": name}}
    assert mount_of(server) == {"name": "model", "mountPath": "/mnt/model", "readOnly": True}
    assert mount_of(download) == {"name": "model", "mountPath": "/mnt/model"}
    assert download["containers"][0]["args"] == [
        "download",
        "s3://bucket/m",
        "--to=/mnt/model/model",
        "--port=8000",
        "--progress=none",
        "--weight-files",
        "a.*",
        "--checksum=sha256:" + "a" * 64,
    ]
    assert server["containers"][0]["args"][:2] == ["serve", "/mnt/model/model"]
    assert not [arg for arg in server["containers"][0]["args"] if "checksum" in arg or "weight" in arg]
    variables = [{entry["name"] for entry in pod["containers"][0]["env"]} for pod in (download, server)]
    assert "AWS_ACCESS_KEY_ID" in variables[0] - variables[1]


def test_pods_that_fetch_are_no_replicas() -> None:
    """Neither the Service's nor the scaler's selector may match them."""
    found = desired(cache=PVC)

    labels = the("Job", found)["spec"]["template"]["metadata"]["labels"]
    selector = the("Service", found)["spec"]["selector"]

    assert not selector.items() <= labels.items()
    assert labels["app.kubernetes.io/component"] == "download"


def test_another_model_is_another_claim_and_another_size_is_not() -> None:
    def name(**spec: Any) -> str:
        return str(the("PersistentVolumeClaim", desired(**{"cache": PVC, **spec}))["metadata"]["name"])

    assert name() == name(cache={**PVC, "size": "80Gi"}, servedNames=["x"], source={"secretRef": {"name": "s"}})
    others = [
        name(model="s3://bucket/m"),
        name(source={"checksum": "sha256:" + "a" * 64}),
        name(cache={**PVC, "storageClassName": "b"}),
        name(cache={**PVC, "accessMode": "ReadWriteOnce"}),
    ]
    assert len({name(), *others}) == 5


def test_a_newer_image_fetches_nothing_again_and_another_secret_does() -> None:
    def name(settings: PodSettings = POD_SETTINGS, **spec: Any) -> str:
        job = render_job(a_resource(cache=PVC, **spec), settings)
        assert job is not None
        return str(job["metadata"]["name"])

    newer = PodSettings(
        image="registry.test/octavo:2", image_cpu="registry.test/octavo:2-cpu", image_rocm="registry.test/octavo:2-rocm"
    )

    assert name() == name(newer)
    assert name() != name(source={"secretRef": {"name": "s"}})


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("hf://org/name@v1", "/mnt/model/model"),
        ("hf://org/name/q4/a.gguf", "/mnt/model/model/q4/a.gguf"),
        ("https://host/a.gguf", "/mnt/model/model"),
    ],
)
def test_the_server_gets_the_folder_or_the_file_in_it(model: str, path: str) -> None:
    args = pod_of(the("Deployment", desired(model=model, cache=PVC)))["containers"][0]["args"]

    assert args[1] == path
    assert not [arg for arg in args if arg.startswith("--revision")]


def test_on_local_volumes_the_server_fetches_itself() -> None:
    found = desired(model="hf://org/name@v1", cache=LOCAL, source={"secretRef": {"name": "s"}})
    pod = pod_of(the("Deployment", found))
    container = pod["containers"][0]

    assert the("PersistentVolumeClaim", found)["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert found.job is None
    assert mount_of(pod) == {"name": "model", "mountPath": "/mnt/model"}
    assert {"org/name", "--revision=v1", "--download-dir=/mnt/model"} <= set(container["args"])
    assert "HF_TOKEN" in {entry["name"] for entry in container["env"]}


def test_an_image_is_mounted_as_it_is() -> None:
    found = desired(model="oci://registry:5000/m:v1", cache={"type": "Image"})
    pod = pod_of(the("Deployment", found))

    assert volume_of(pod) == {
        "name": "model",
        "image": {"reference": "registry:5000/m:v1", "pullPolicy": "IfNotPresent"},
    }
    assert mount_of(pod) == {"name": "model", "mountPath": "/mnt/model", "readOnly": True}
    assert pod["containers"][0]["args"][1] == "/mnt/model"


@pytest.mark.parametrize(
    "spec",
    [{"cache": PVC}, {"cache": LOCAL}, {"model": "oci://r/m:v1", "cache": {"type": "Image"}}],
    ids=["PVC", "NodeLocal", "Image"],
)
def test_an_api_server_takes_every_object_as_it_is(apiserver: ApiServer, spec: dict[str, Any]) -> None:
    """And keeps each field; PodSecurity restricted has nothing against the pods."""
    enforced = {"name": "restricted-pods", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    apiserver.request("POST", "/api/v1/namespaces", {"metadata": enforced})
    roots = {"Deployment": "/apis/apps/v1", "Job": "/apis/batch/v1", "PersistentVolumeClaim": "/api/v1"}
    for obj in desired(**spec).objects:
        root = roots.get(obj["kind"])
        if root is None:
            continue
        body = {**obj, "metadata": {"name": obj["metadata"]["name"], "labels": obj["metadata"]["labels"]}}
        path = f"{root}/namespaces/restricted-pods/{obj['kind'].lower()}s?dryRun=All&fieldValidation=Strict"
        answer = apiserver.request("POST", path, body)
        assert answer.status == 201, answer.message
        if obj["kind"] == "PersistentVolumeClaim":
            continue
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": {**obj["spec"]["template"]["spec"], "serviceAccountName": "default"},
        }
        asked = apiserver.request("POST", "/api/v1/namespaces/restricted-pods/pods?dryRun=All", pod)
        assert asked.status == 201 or "serviceaccount" in asked.message, asked.message
        if asked.status == 201:
            assert [each for each in asked.body["spec"]["volumes"] if each["name"] == "model"] == [
                volume_of(pod["spec"])
            ]
