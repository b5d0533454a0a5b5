"""The chart as the real Helm renders it, held against the programs that it starts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from octavo_gateway.config import parse_config as parse_gateway
from octavo_operator.config import DEFAULT_IMAGE, DEFAULT_IMAGE_CPU, DEFAULT_IMAGE_ROCM
from octavo_operator.config import parse_config as parse_operator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "octavo"
DIGEST = "sha256:" + "a" * 64

VALUE_SETS = {
    "defaults": {},
    "one of each": {"operator": {"replicas": 1}, "gateway": {"replicas": 1}},
    "many": {"operator": {"replicas": 3}, "gateway": {"replicas": 5}},
    "two namespaces": {"namespaces": ["team-a", "team-b"]},
    "adapter off": {"metricsAdapter": {"enabled": False}},
    "adapter by force": {"metricsAdapter": {"enabled": True}},
    "no CRD": {"crds": {"install": False}},
    "debug": {"logLevel": "debug", "logFormat": "text"},
    "everything set": {
        "imagePullSecrets": [{"name": "regcred"}],
        "server": {"imagePullPolicy": "Never", "imagePullSecrets": ["one", "two"]},
        "gateway": {
            "service": {"type": "NodePort", "port": 80, "nodePort": 30080, "annotations": {"a": "b"}},
            "shutdownTimeoutSeconds": 7,
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "podAnnotations": {"note": "1"},
            "podLabels": {"team": "ml"},
            "extraArgs": ["--max-request-bytes=1024"],
        },
        "operator": {"extraArgs": ["--metrics-adapter-port=7443"], "serviceAccount": {"annotations": {"x": "y"}}},
    },
}


@pytest.fixture(params=VALUE_SETS, ids=lambda name: name.replace(" ", "-"))
def rendered(request, render):
    return render(VALUE_SETS[request.param])


def test_it_passes_helms_own_lint_as_strict_as_it_can_be(helm):
    helm("lint", "--strict", str(CHART))


def test_each_objects_kind_and_name_is_there_once(rendered):
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in rendered]

    assert len(keys) == len(set(keys))


# The CustomResourceDefinition


def test_the_crd_is_the_one_source_and_stays_at_uninstall(render):
    source = (ROOT / "crds" / "modeldeployments.octavo.dev.yaml").read_text()
    rendered = render().find("CustomResourceDefinition", "modeldeployments.octavo.dev")

    assert (CHART / "files" / "crd.yaml").read_text() == source
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert rendered["metadata"].pop("annotations") == {
        "helm.sh/resource-policy": "keep",
        "octavo.dev/chart-version": version,
    }
    assert rendered == {**yaml.safe_load(source), "metadata": rendered["metadata"]}
    assert rendered["metadata"] == yaml.safe_load(source)["metadata"]


def test_the_crd_may_come_from_elsewhere(render):
    assert render(VALUE_SETS["no CRD"]).of("CustomResourceDefinition") == []


# The processes


def test_the_operator_understands_every_flag_that_it_is_given(rendered):
    config = parse_operator(rendered.container("operator")["args"], {})

    assert config.port == 8082
    assert config.own_namespace == config.gateway_namespace == "sys"
    assert config.kubeconfig is None


def test_the_gateway_understands_every_flag_that_it_is_given(rendered):
    config = parse_gateway(rendered.container("gateway")["args"], {})

    assert (config.port, config.internal_port) == (8080, 8081)


def test_the_values_reach_the_operator(render):
    rendered = render({**VALUE_SETS["everything set"], "namespaces": ["a", "b"], "metricsAdapter": {"enabled": True}})

    config = parse_operator(rendered.container("operator")["args"], {})

    assert config.namespaces == ("a", "b")
    assert config.gateway_url == "http://octavo-gateway.sys.svc:80"
    assert config.pods.image_pull_policy == "Never"
    assert config.pods.image_pull_secrets == ("one", "two")
    assert config.adapter is not None
    assert config.adapter.take_over
    assert config.adapter.port == 7443


def test_the_default_images_are_those_of_an_operator_that_runs_without_the_chart(render):
    config = parse_operator(render().container("operator")["args"], {})

    assert (config.pods.image, config.pods.image_cpu) == (DEFAULT_IMAGE, DEFAULT_IMAGE_CPU)
    assert config.pods.image_rocm == DEFAULT_IMAGE_ROCM


def test_a_digest_wins_over_the_tag(render):
    image = {"repository": "registry:5000/x/y", "tag": "1", "digest": DIGEST}
    rendered = render({"images": dict.fromkeys(("operator", "gateway", "server", "serverCPU", "serverROCm"), image)})

    expected = f"registry:5000/x/y@{DIGEST}"
    pods = parse_operator(rendered.container("operator")["args"], {}).pods
    images = [rendered.container("operator")["image"], rendered.container("gateway")["image"]]
    assert [*images, pods.image, pods.image_cpu, pods.image_rocm] == [expected] * 5


def test_another_command_volumes_and_environment_reach_both_processes(render):
    """What e2e needs: an interpreter of the node's, mounted into an empty image."""
    extra = {
        "command": ["/opt/venv/bin/python", "-m", "thing"],
        "extraEnv": [{"name": "PYTHONPATH", "value": "/src"}],
        "extraVolumes": [{"name": "usr", "hostPath": {"path": "/usr", "type": "Directory"}}],
        "extraVolumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
    }
    rendered = render({"operator": extra, "gateway": extra})

    for component in ("operator", "gateway"):
        container = rendered.container(component)
        spec = rendered.find("Deployment", f"octavo-{component}")["spec"]["template"]["spec"]
        assert container["command"] == extra["command"]
        assert container["env"][-1:] == extra["extraEnv"]
        assert extra["extraVolumeMounts"][0] in container["volumeMounts"]
        assert extra["extraVolumes"][0] in spec["volumes"]


def test_pods_have_time_to_drain(render):
    spec = render(VALUE_SETS["everything set"]).find("Deployment", "octavo-gateway")["spec"]["template"]["spec"]
    config = parse_gateway(spec["containers"][0]["args"], {})

    assert config.shutdown_timeout_s == 7
    assert spec["terminationGracePeriodSeconds"] > config.shutdown_timeout_s + config.drain_delay_s


def test_pods_conform_to_pod_security_restricted(rendered):
    pods = [each["spec"]["template"]["spec"] for each in rendered.of("Deployment")]
    pods += [each["spec"] for each in rendered.of("Pod")]
    assert len(pods) == 3

    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


# Services, budgets and what points at what


def test_services_lead_to_ports_that_the_pods_have(rendered):
    pods = [each["spec"]["template"] for each in rendered.of("Deployment")]

    for service in rendered.of("Service"):
        selector = service["spec"]["selector"].items()
        (pod,) = [pod for pod in pods if selector <= pod["metadata"]["labels"].items()]
        named = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_ports_and_labels_are_those_of_the_architecture(render):
    rendered = render()
    ports = {
        (component, port["name"]): port["containerPort"]
        for component in ("operator", "gateway")
        for port in rendered.container(component)["ports"]
    }
    labels = rendered.find("Deployment", "octavo-gateway")["spec"]["template"]["metadata"]["labels"]

    assert ports == {
        ("operator", "internal"): 8082,
        ("operator", "adapter"): 6443,
        ("gateway", "http"): 8080,
        ("gateway", "internal"): 8081,
    }
    assert labels["app.kubernetes.io/name"] == "octavo"
    assert labels["app.kubernetes.io/component"] == "gateway"
    assert rendered.find("Service", "octavo-metrics-adapter")["spec"]["ports"] == [
        {"name": "adapter", "port": 443, "targetPort": "adapter"}
    ]


def test_probes_ask_the_internal_port_that_needs_no_certificate(rendered):
    for component in ("operator", "gateway"):
        container = rendered.container(component)
        probes = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert probes == {
            "startupProbe": {"path": "/healthz", "port": "internal"},
            "livenessProbe": {"path": "/healthz", "port": "internal"},
            "readinessProbe": {"path": "/readyz", "port": "internal"},
        }


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1), (3, 1)])
def test_two_or_more_replicas_have_a_disruption_budget(render, replicas, budgets):
    rendered = render({"operator": {"replicas": replicas}, "gateway": {"replicas": 1}})

    found = rendered.of("PodDisruptionBudget")
    assert len(found) == budgets
    for budget in found:
        deployment = rendered.find("Deployment", "octavo-operator")
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]


def test_a_node_port_is_fixed_where_it_is_given(render):
    (port,) = render(VALUE_SETS["everything set"]).find("Service", "octavo-gateway")["spec"]["ports"]

    assert port == {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}


def test_the_adapters_secret_comes_empty_so_that_an_upgrade_never_touches_its_data(render):
    rendered = render()
    secret = rendered.find("Secret", "octavo-metrics-adapter")

    config = parse_operator(rendered.container("operator")["args"], {})

    assert secret["type"] == "Opaque"
    assert not {"data", "stringData"} & secret.keys()
    assert config.adapter is not None
    assert config.adapter.secret_name == "octavo-metrics-adapter"
    assert config.adapter.service is not None
    assert config.adapter.service.name == rendered.find("Service", config.adapter.service.name)["metadata"]["name"]
    assert rendered.find("ClusterRole", config.adapter.service.cluster_role)


def test_what_owns_the_api_services_goes_when_the_adapter_is_turned_off(render):
    """Else they would lead nowhere, and no namespace could be deleted any more."""
    config = parse_operator(render().container("operator")["args"], {})

    left = render(VALUE_SETS["adapter off"]).of("ClusterRole")

    assert config.adapter.service.cluster_role not in [role["metadata"]["name"] for role in left]


def test_the_operator_knows_the_name_of_its_pod(render):
    (variable,) = render().container("operator")["env"]

    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert parse_operator([], {variable["name"]: "octavo-operator-x"}).identity == "octavo-operator-x"


def test_without_the_adapter_nothing_of_it_is_left(render):
    rendered = render(VALUE_SETS["adapter off"])

    assert parse_operator(rendered.container("operator")["args"], {}).adapter is None
    assert [secret["metadata"]["name"] for secret in rendered.of("Secret")] == ["octavo-gateway-peers"]
    text = yaml.safe_dump(list(rendered))
    for word in ("octavo-metrics-adapter", "custom.metrics.k8s.io", "auth-delegator", "kube-system", "apiservices"):
        assert word not in text


def test_two_releases_share_no_cluster_scoped_name(render):
    def names(namespace: str, release: str) -> set[tuple[str, str]]:
        rendered = render({"crds": {"install": False}}, namespace=namespace, release=release)
        return {(each["kind"], each["metadata"]["name"]) for each in rendered if "namespace" not in each["metadata"]}

    releases = [names("one", "octavo"), names("two", "octavo"), names("one", "second")]

    for first, second in itertools.combinations(releases, 2):
        assert first
        assert not first & second


def test_everything_namespaced_lies_in_the_releases_namespace_but_for_known_bindings(rendered):
    elsewhere = {
        (each["kind"], each["metadata"]["namespace"])
        for each in rendered
        if each["metadata"].get("namespace", "sys") != "sys"
    }

    assert elsewhere <= {("RoleBinding", "kube-system"), ("RoleBinding", "team-a"), ("RoleBinding", "team-b")}


def test_the_test_pod_asks_the_gateways_service(render):
    pod = render(VALUE_SETS["everything set"]).find("Pod", "octavo-test-gateway")

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["command"][-1] == "http://octavo-gateway.sys.svc:80"
    compile(pod["spec"]["containers"][0]["command"][2], "test-gateway", "exec")


def test_the_notes_give_the_next_commands_with_this_releases_names(helm):
    settings = ["--namespace=sys", "--set=gateway.service.port=80", "--set=namespaces={team-a}"]

    output = helm("install", "octavo", str(CHART), "--dry-run=client", *settings).stdout
    notes = output.partition("NOTES:")[2]

    assert "kubectl apply -n team-a -f -" in notes
    assert "kubectl port-forward -n sys service/octavo-gateway 8080:80" in notes
    manifest = yaml.safe_load(notes.partition("<<EOF")[2].partition("EOF")[0])
    assert (manifest["apiVersion"], manifest["kind"]) == ("octavo.dev/v1alpha1", "ModelDeployment")
    assert "http://octavo-gateway.sys.svc:80/v1" in notes
