"""The objects of a ModelDeployment, field by field where a user or the cluster relies on it."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api.rollout_status import RolloutStatus
from octavo_operator.desired.names import download_labels, pod_selector
from octavo_operator.desired.networkpolicy import render_network_policy
from octavo_operator.desired.render import Desired, render
from octavo_operator.desired.revision import render_revision
from octavo_operator.desired.scaler import Scaler
from octavo_testing.control_plane import POD_SETTINGS, UID, a_desired, a_resource


def objects(**spec: Any) -> dict[str, Any]:
    return {manifest["kind"]: manifest for manifest in a_desired(a_resource(**spec)).objects}


def pod_spec(**spec: Any) -> dict[str, Any]:
    rendered: dict[str, Any] = objects(**spec)["Deployment"]["spec"]["template"]["spec"]
    return rendered


def server(**spec: Any) -> dict[str, Any]:
    return next(container for container in pod_spec(**spec)["containers"] if container["name"] == "server")


def test_one_field_gives_account_service_and_deployment_in_this_order() -> None:
    desired = a_desired(a_resource(model="hf://org/name"))

    assert [manifest["kind"] for manifest in desired.objects] == [
        "ServiceAccount",
        "Service",
        "ControllerRevision",
        "Deployment",
    ]


def test_every_object_is_owned_labelled_and_stamped() -> None:
    for manifest in a_desired(a_resource(scaling={"maxReplicas": 3})).objects:
        metadata = manifest["metadata"]
        owner = metadata["ownerReferences"][0]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("ModelDeployment", UID, True)
        assert metadata["labels"]["octavo.dev/modeldeployment"] == "qwen"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "octavo"
        assert metadata["labels"]["app.kubernetes.io/component"] == "server"
        assert metadata["annotations"]["octavo.dev/applied"]


def test_deployment_is_named_after_its_revision_and_selects_only_it() -> None:
    desired = a_desired()
    deployment = desired.objects[3]

    assert deployment["metadata"]["name"] == f"qwen-{desired.revision}"
    assert deployment["spec"]["selector"]["matchLabels"]["octavo.dev/revision"] == desired.revision
    assert deployment["spec"]["template"]["metadata"]["labels"]["octavo.dev/revision"] == desired.revision


def test_revision_changes_with_the_template_and_with_nothing_else() -> None:
    def revision(**spec: Any) -> str:
        desired: Desired = a_desired(a_resource(**spec))
        return desired.revision

    assert revision(replicas=1) == revision(replicas=5) == revision(scaling={"maxReplicas": 3})
    assert revision() == revision(routing={"maxHeldRequests": 1})
    assert revision() != revision(engine={"maxModelLen": 100})


def test_pod_is_restricted_and_has_no_token() -> None:
    spec, container = pod_spec(), server()

    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_grace_covers_sleep_drain_and_slack() -> None:
    spec = pod_spec(drain={"timeout": "60s"})
    sleep_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert spec["terminationGracePeriodSeconds"] > sleep_s + 60
    assert "--shutdown-timeout=60" in spec["containers"][0]["args"]


def test_probes_ask_startup_health_and_ready() -> None:
    container = server()
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}

    assert paths == {"startupProbe": "/startup", "livenessProbe": "/health", "readinessProbe": "/ready"}
    assert (container["livenessProbe"]["timeoutSeconds"], container["livenessProbe"]["failureThreshold"]) == (5, 3)


def test_gpu_pod_asks_for_its_gpu_and_keeps_its_root_writable() -> None:
    container = server(resources={"gpu": {"resourceName": "amd.com/gpu"}, "memory": "8Gi", "cpu": "2"})

    assert container["image"] == POD_SETTINGS.image_rocm
    assert server()["image"] == POD_SETTINGS.image
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi", "amd.com/gpu": "1"},
        "limits": {"memory": "8Gi", "amd.com/gpu": "1"},
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is False


def test_a_model_of_several_gpus_is_dealt_out_to_them_and_shares_more_memory() -> None:
    spec = {"resources": {"gpu": {"count": 4}}}
    container = server(**spec)
    volumes = {volume["name"]: volume for volume in pod_spec(**spec)["volumes"]}

    assert container["resources"] == {"requests": {"nvidia.com/gpu": "4"}, "limits": {"nvidia.com/gpu": "4"}}
    assert [arg for arg in container["args"] if "parallel" in arg] == ["--tensor-parallel-size=4"]
    assert volumes["shm"]["emptyDir"]["sizeLimit"] == "4Gi"
    assert not [arg for arg in server()["args"] if "parallel" in arg]
    assert {volume["name"]: volume for volume in pod_spec()["volumes"]}["shm"]["emptyDir"]["sizeLimit"] == "1Gi"


def test_claims_bring_the_devices_in_place_of_a_device_plugin() -> None:
    claims = [{"name": name, "resourceClaimTemplateName": f"{name}s"} for name in ("gpu", "nic")]
    gpu = {"count": 2, "resourceName": "amd.com/gpu", "claims": claims}
    spec = {"resources": {"gpu": gpu, "memory": "8Gi"}, "cache": {"type": "PVC", "size": "1Gi"}}
    container = server(**spec)

    assert container["resources"] == {
        "requests": {"memory": "8Gi"},
        "limits": {"memory": "8Gi"},
        "claims": [{"name": "gpu"}, {"name": "nic"}],
    }
    assert pod_spec(**spec)["resourceClaims"] == claims
    assert "--tensor-parallel-size=2" in container["args"]
    assert container["image"] == POD_SETTINGS.image_rocm
    # What only fetches the model holds no device.
    assert "resourceClaims" not in objects(**spec)["Job"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("resource_name", "label"),
    [
        ("nvidia.com/gpu", "nvidia.com/gpu.product"),
        ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu.product"),
        ("amd.com/gpu", "amd.com/gpu.product-name"),
    ],
)
def test_a_product_is_a_label_of_the_node_beside_all_that_placement_says(resource_name: str, label: str) -> None:
    spec = {
        "resources": {"gpu": {"resourceName": resource_name, "product": "X-1"}},
        "placement": {"nodeSelector": {"disk": "fast"}, "affinity": {"nodeAffinity": {"a": []}}},
        "cache": {"type": "PVC", "size": "1Gi"},
    }
    rendered = objects(**spec)

    for kind in ("Deployment", "Job"):
        pod = rendered[kind]["spec"]["template"]["spec"]
        assert pod["nodeSelector"] == {"disk": "fast", label: "X-1"}
        assert pod["affinity"] == {"nodeAffinity": {"a": []}}


@pytest.mark.parametrize(
    ("count", "ranks", "flags"), [(2, 2, ["2"]), (1, 1, []), (0, 2, ["2"]), (0, 1, []), (0, 0, [])]
)
def test_a_model_on_the_cpu_is_dealt_out_where_that_is_asked_for(count: int, ranks: int, flags: list[str]) -> None:
    args = server(resources={"gpu": {"count": count}}, engine={"tensorParallelSize": ranks})["args"]

    assert [arg.split("=")[1] for arg in args if arg.startswith("--tensor-parallel-size")] == flags


def test_server_of_a_gpu_pod_must_find_the_gpu_unless_its_own_flags_say_otherwise() -> None:
    args = server(engine={"extraArgs": ["--device=auto"]})["args"]

    assert args.index("--device=cuda") < args.index("--device=auto")
    assert not [arg for arg in server(resources={"gpu": {"count": 0}})["args"] if arg.startswith("--device")]


def test_cpu_pod_takes_the_cpu_image_and_a_read_only_root() -> None:
    container = server(resources={"gpu": {"count": 0}})

    assert container["image"] == POD_SETTINGS.image_cpu
    assert container["resources"] == {}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/cache", "/tmp"}


def test_shared_memory_is_sized() -> None:
    volumes = {volume["name"]: volume for volume in pod_spec(resources={"sharedMemory": "4Gi"})["volumes"]}

    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    on_cpu = {volume["name"]: volume for volume in pod_spec(resources={"gpu": {"count": 0}})["volumes"]}
    assert on_cpu["shm"]["emptyDir"]["sizeLimit"] == "1Gi"


def test_token_comes_from_the_secret_without_the_operator_reading_it() -> None:
    env = {entry["name"]: entry for entry in server(source={"secretRef": {"name": "hf"}})["env"]}

    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert env["HF_ENDPOINT"]["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        ("hf://org/name", {"HF_TOKEN"}),
        ("https://host/m.gguf", {"HTTPS_BEARER_TOKEN"}),
        ("s3://bucket/m", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
        ("gs://bucket/m", {"GOOGLE_APPLICATION_CREDENTIALS_JSON"}),
        ("oci://registry/m", {"OCI_USERNAME", "OCI_PASSWORD"}),
    ],
)
def test_the_entries_that_a_source_needs_are_not_optional(model: str, needed: set[str]) -> None:
    """A kubelet says of those alone that the Secret is missing."""
    plain, signed = server(model=model)["env"], server(model=model, source={"secretRef": {"name": "s"}})["env"]

    added = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in signed if entry not in plain}
    assert {name for name, reference in added.items() if not reference.get("optional")} == needed
    assert {reference["name"] for reference in added.values()} == {"s"}


def test_pod_knows_the_tag_by_which_a_gateway_finds_what_it_stores() -> None:
    entries = server()["env"]
    by_name = {entry["name"]: entry for entry in entries}

    assert by_name["OCTAVO_ROUTING_TAG"]["value"].endswith("/$(OCTAVO_POD_NAME)")
    assert by_name["OCTAVO_POD_NAME"]["valueFrom"]["fieldRef"] == {"fieldPath": "metadata.name"}
    # The kubelet puts a variable's value only into those that come after it.
    assert entries.index(by_name["OCTAVO_POD_NAME"]) < entries.index(by_name["OCTAVO_ROUTING_TAG"])


def test_claim_is_mounted_read_only() -> None:
    spec = pod_spec(model="pvc://weights/qwen")

    assert {"name": "model", "persistentVolumeClaim": {"claimName": "weights"}} in spec["volumes"]
    assert {"name": "model", "mountPath": "/mnt/model", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    assert spec["containers"][0]["args"][1] == "/mnt/model/qwen"


def test_placement_goes_into_the_pod() -> None:
    placement = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {"x": []}},
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "topologySpread": "Hard",
    }
    spec = pod_spec(placement=placement)

    assert {key: spec[key] for key in placement if key in spec} == {
        key: value for key, value in placement.items() if key != "topologySpread"
    }
    assert spec["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "DoNotSchedule"
    assert "topologySpreadConstraints" not in pod_spec(placement={"topologySpread": "None"})
    assert pod_spec()["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    assert "nodeSelector" not in pod_spec()


def test_overlay_changes_the_pod_but_never_the_labels_that_select_it() -> None:
    overlay = {
        "metadata": {"labels": {"team": "x", "octavo.dev/modeldeployment": "evil"}},
        "spec": {"hostNetwork": False, "containers": [{"name": "server", "env": [{"name": "A", "value": "1"}]}]},
    }
    template = objects(podTemplate=overlay)["Deployment"]["spec"]["template"]

    assert template["metadata"]["labels"]["octavo.dev/modeldeployment"] == "qwen"
    assert template["metadata"]["labels"]["team"] == "x"
    assert {"name": "A", "value": "1"} in template["spec"]["containers"][0]["env"]
    assert template["spec"]["containers"][0]["command"] == ["octavo"]


def test_service_leads_to_the_pods_of_all_revisions() -> None:
    spec = objects()["Service"]["spec"]

    assert spec["selector"] == {"app.kubernetes.io/managed-by": "octavo", "octavo.dev/modeldeployment": "qwen"}
    assert (spec["ports"][0]["port"], spec["ports"][0]["targetPort"]) == (8000, "http")


@pytest.mark.parametrize(
    ("spec", "has_budget"),
    [
        ({}, False),
        ({"replicas": 2}, True),
        ({"scaling": {"maxReplicas": 1}}, False),
        ({"scaling": {"maxReplicas": 2}}, True),
        ({"disruption": {"maxUnavailable": 0}}, True),
        ({"disruption": {}}, False),
    ],
)
def test_budget_exists_where_there_can_be_two_replicas(spec: dict[str, Any], has_budget: bool) -> None:
    assert ("PodDisruptionBudget" in objects(**spec)) == has_budget


def test_budget_does_not_keep_a_node_from_being_drained_of_a_crashing_pod() -> None:
    assert objects(replicas=2)["PodDisruptionBudget"]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_hpa_scales_the_resource_on_pressure_and_never_below_one() -> None:
    spec = objects(scaling={"minReplicas": 0, "maxReplicas": 4})["HorizontalPodAutoscaler"]["spec"]

    assert spec["scaleTargetRef"]["kind"] == "ModelDeployment"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 4)
    pods = spec["metrics"][0]["pods"]
    assert pods["metric"]["name"] == "octavo_kv_pressure_ratio"
    assert pods["target"] == {"type": "AverageValue", "averageValue": "800m"}
    assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert spec["behavior"]["scaleUp"]["policies"] == [{"type": "Percent", "value": 900, "periodSeconds": 15}]
    assert spec["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_behavior_replaces_one_side_whole() -> None:
    side = {"stabilizationWindowSeconds": 3}
    spec = objects(scaling={"maxReplicas": 4, "behavior": {"scaleDown": side}})["HorizontalPodAutoscaler"]["spec"]

    assert spec["behavior"]["scaleDown"] == side
    assert spec["behavior"]["scaleUp"]["policies"]


def test_stamp_changes_when_a_field_is_taken_out() -> None:
    def stamp(**spec: Any) -> str:
        return str(objects(**spec)["Service"]["metadata"]["annotations"]["octavo.dev/applied"])

    assert stamp() == stamp(replicas=4)
    hpa = [
        objects(scaling={"maxReplicas": 4, "behavior": {"scaleUp": side}})["HorizontalPodAutoscaler"]
        for side in ({"a": 1, "b": 2}, {"a": 1})
    ]
    assert hpa[0]["metadata"]["annotations"] != hpa[1]["metadata"]["annotations"]


def test_a_network_policy_is_of_the_replicas_alone_and_comes_before_them() -> None:
    rules = {"policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": "http"}]}]}
    resource = a_resource()
    revision = render_revision(resource, POD_SETTINGS)
    status = RolloutStatus(revision=revision.name)

    policy = render_network_policy(resource, rules)
    assert policy is not None
    desired = render(resource, [(revision, 1)], counts={}, kept=(), rollout=status, first=[policy], scaler=Scaler())
    kinds = [manifest["kind"] for manifest in desired.objects]
    policy = dict(desired.objects[kinds.index("NetworkPolicy")])

    assert kinds.index("NetworkPolicy") < kinds.index("Deployment")
    assert policy["metadata"]["name"] == "qwen"
    assert policy["metadata"]["ownerReferences"][0]["uid"] == UID
    assert policy["spec"] == {**rules, "podSelector": {"matchLabels": pod_selector("qwen")}}
    assert pod_selector("qwen").items() <= revision.template["metadata"]["labels"].items()
    assert not pod_selector("qwen").items() <= download_labels("qwen").items()
