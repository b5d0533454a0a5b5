"""Who may reach what: NetworkPolicies by Kubernetes' rules, and the ways in from outside of the cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from octavo_gateway.config import parse_config as parse_gateway
from octavo_operator.config import parse_config as parse_operator
from octavo_operator.desired import names
from octavo_operator.desired.networkpolicy import render_network_policy
from octavo_testing.control_plane import a_resource
from octavo_testing.network_policy import Peer, may_reach

CHART = Path(__file__).parents[2] / "charts" / "octavo"


class Cluster:
    """The pods that matter, as the rendered chart labels them, and whoever else may come."""

    def __init__(self, rendered) -> None:
        rules = parse_operator(rendered.container("operator")["args"], {}).network_rules
        self.resource = replace(a_resource(), namespace="team")
        own = render_network_policy(self.resource, rules)
        self.policies = [*rendered.of("NetworkPolicy"), *([own] if own else [])]
        pods = {
            component: rendered.find("Deployment", f"octavo-{component}")["spec"]["template"]
            for component in ("operator", "gateway")
        }
        self.gateway, self.operator = (
            self._pod("sys", pods[component]["metadata"]["labels"], self._ports(pods[component]))
            for component in ("gateway", "operator")
        )
        self.download = self._pod("team", names.download_labels("qwen"), {names.PORT_NAME: 8000})
        self.helm_test = self._pod("sys", rendered.find("Pod", "octavo-test-gateway")["metadata"]["labels"])
        self.server = self._pod("team", names.revision_labels("qwen", "r"), {names.PORT_NAME: 8000})
        self.prometheus = self._pod("monitoring", {"app": "prometheus"})
        self.stranger = self._pod("apps", {"app": "web"})
        self.neighbour = self._pod("team", {"app": "web"})
        self.outside = Peer(address="203.0.113.7")

    def reaches(self, source: str, target: str, port: int, protocol: str = "TCP") -> bool:
        return may_reach(self.policies, getattr(self, source), getattr(self, target), port, protocol)

    def who_reaches(self, target: str, port: int) -> set[str]:
        peers = ("gateway", "operator", "helm_test", "server", "prometheus", "stranger", "neighbour", "outside")
        return {source for source in peers if source != target and self.reaches(source, target, port)}

    @staticmethod
    def _pod(namespace: str, labels: dict[str, str], ports: dict[str, int] | None = None) -> Peer:
        known = {"kubernetes.io/metadata.name": namespace}
        return Peer(namespace=namespace, labels=labels, namespace_labels=known, ports=ports or {})

    @staticmethod
    def _ports(pod) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}


EVERYBODY = {"gateway", "operator", "helm_test", "server", "prometheus", "stranger", "neighbour", "outside"}


@pytest.fixture
def cluster(render):
    def make(**policies) -> Cluster:
        return Cluster(render({"namespaces": ["team"], "networkPolicies": {"enabled": True, **policies}}))

    return make


def test_without_the_option_there_is_no_policy(render):
    assert Cluster(render()).policies == []


def test_servers_answer_octavo_and_who_scrapes_alone(cluster):
    """Else keys and quotas of the gateway could be gone around."""
    assert cluster().who_reaches("server", 8000) == {"gateway", "operator", "prometheus"}
    assert cluster(metricsFrom=[]).who_reaches("server", 8000) == {"gateway", "operator"}
    assert cluster().who_reaches("server", 9) == set()


def test_what_of_other_releases_bears_the_same_names_does_not_reach_servers(cluster, render):
    there = cluster()
    gateway = render({}, release="other").find("Deployment", "other-octavo-gateway")["spec"]["template"]
    there.other = Cluster._pod("sys", gateway["metadata"]["labels"])
    there.moved = Cluster._pod("apps", there.gateway.labels)

    assert not there.reaches("other", "server", 8000)
    assert not there.reaches("moved", "server", 8000)


def test_servers_and_downloads_reach_where_models_come_from(cluster):
    for there in (cluster(), cluster(serverEgress={"enabled": True})):
        for pod in ("server", "download"):
            assert there.reaches(pod, "outside", 443)
            assert there.reaches(pod, "outside", 53, "UDP")
        assert there.reaches("operator", "download", 8000), "it asks how far the download is"
    assert cluster().reaches("server", "outside", 80)


def test_servers_whose_egress_is_limited_reach_nothing_else(cluster):
    there = cluster(serverEgress={"enabled": True})

    assert not there.reaches("server", "outside", 80)
    assert not there.reaches("server", "stranger", 8000)
    assert there.who_reaches("server", 8000) == {"gateway", "operator", "prometheus"}
    store = {"ports": [{"port": 9000}], "to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}
    assert cluster(serverEgress={"enabled": True, "extra": [store]}).reaches("server", "outside", 9000)


def test_the_gateways_api_is_open_until_clients_are_named(cluster):
    apps = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}]
    proxies = [{"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/32"]}}]

    assert cluster().who_reaches("gateway", 8080) == EVERYBODY - {"gateway"}
    assert cluster(clients=apps).who_reaches("gateway", 8080) == {"stranger", "helm_test"}
    assert cluster(clients=proxies).who_reaches("gateway", 8080) == {"outside", "helm_test"}


def test_internal_ports_are_for_octavo_and_who_scrapes(cluster):
    there = cluster()

    assert there.who_reaches("gateway", 8081) == {"operator", "prometheus"}
    assert there.reaches("gateway", "gateway", 8081)
    assert there.who_reaches("operator", 8082) == {"prometheus"}
    assert cluster(metricsFrom=[]).who_reaches("operator", 8082) == set()


def test_the_adapter_is_open_because_the_api_server_has_no_labels(cluster, render):
    assert "outside" in cluster().who_reaches("operator", 6443)
    off = render({"metricsAdapter": {"enabled": False}, "networkPolicies": {"enabled": True}})
    assert Cluster(off).who_reaches("operator", 6443) == set()


def test_with_egress_limited_octavo_reaches_what_it_needs_and_nothing_else(cluster):
    there = cluster(egress={"enabled": True})

    for component in ("gateway", "operator"):
        assert there.reaches(component, "server", 8000)
        assert there.reaches(component, "gateway", 8081)
        assert there.reaches(component, "outside", 443)
        assert there.reaches(component, "outside", 6443)
        assert there.reaches(component, "outside", 53, "UDP")
        assert not there.reaches(component, "stranger", 8000)
        assert not there.reaches(component, "outside", 80)


def test_further_egress_is_what_the_values_say(cluster):
    collector = {"ports": [{"port": 4318}], "to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}

    there = cluster(egress={"enabled": True, "extra": [collector]})

    assert there.reaches("gateway", "outside", 4318)
    assert not cluster(egress={"enabled": True}).reaches("gateway", "outside", 4318)


# Ingress, HTTPRoute and the address that people are told


def test_an_ingress_leads_every_path_of_its_hosts_to_the_gateway_with_tls_from_a_secret(render, everything):
    rendered = render(everything)
    ingress = rendered.find("Ingress", "octavo-gateway")["spec"]

    hosts = ["llm.example.com", "*.llm.example.com"]
    assert ingress["ingressClassName"] == "nginx"
    assert ingress["tls"] == [{"secretName": "llm-tls", "hosts": hosts}]
    assert [rule["host"] for rule in ingress["rules"]] == hosts
    for rule in ingress["rules"]:
        (path,) = rule["http"]["paths"]
        service = path["backend"]["service"]
        ports = {port["name"] for port in rendered.find("Service", service["name"])["spec"]["ports"]}
        assert (path["path"], path["pathType"]) == ("/", "Prefix")
        assert service["port"]["name"] in ports


def test_without_a_secret_an_ingress_has_no_tls(render):
    assert "tls" not in render({"ingress": {"enabled": True}}).find("Ingress", "octavo-gateway")["spec"]


def test_a_route_leads_to_the_gateways_port_and_never_cuts_a_stream(render, everything):
    rendered = render({**everything, "gateway": {"service": {"port": 80}}})
    route = rendered.find("HTTPRoute", "octavo-gateway")["spec"]

    (rule,) = route["rules"]
    (backend,) = rule["backendRefs"]
    (port,) = rendered.find("Service", backend["name"])["spec"]["ports"]
    assert route["parentRefs"] == everything["httpRoute"]["parentRefs"]
    assert route["hostnames"] == ["llm.example.com"]
    assert backend["port"] == port["port"] == 80
    assert rule["timeouts"] == {"request": "0s"}


def test_a_route_without_a_parent_is_refused(helm):
    result = helm("template", "octavo", str(CHART), "--set=httpRoute.enabled=true", check=False)

    assert "httpRoute.enabled needs httpRoute.parentRefs" in result.stderr


def test_status_names_the_address_that_clients_use(render, everything, helm):
    config = parse_operator(render(everything).container("operator")["args"], {})
    notes = helm("install", "o", str(CHART), "--dry-run=client", "--set=gateway.url=https://llm.example.com").stdout

    assert config.gateway_url == "https://llm.example.com"
    assert "at https://llm.example.com/v1, or from here" in notes


def test_a_secret_makes_the_gateway_speak_https_and_everybody_is_told(render):
    rendered = render({"gateway": {"tls": {"secretName": "llm-tls"}}})

    pod = rendered.find("Deployment", "octavo-gateway")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert parse_gateway(container["args"], {}).tls_dir == "/tls"
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in container["volumeMounts"]
    assert {"name": "tls", "secret": {"secretName": "llm-tls"}} in pod["volumes"]
    [port] = rendered.find("Service", "octavo-gateway")["spec"]["ports"]
    assert (port["name"], port["appProtocol"]) == ("http", "https")
    operator = rendered.container("operator")["args"]
    assert parse_operator(operator, {}).gateway_url == "https://octavo-gateway.sys.svc:8080"
    assert rendered.find("Pod", "octavo-test-gateway")["spec"]["containers"][0]["command"][-1].startswith("https://")


def test_without_a_secret_nothing_speaks_of_tls(render):
    rendered = render()

    assert "tls" not in str(rendered.find("Deployment", "octavo-gateway"))
    assert "appProtocol" not in rendered.find("Service", "octavo-gateway")["spec"]["ports"][0]
