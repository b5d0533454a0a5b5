"""Objects that the cluster itself needs: names by CoreDNS, fake nodes and fake GPUs."""

from __future__ import annotations

from typing import Any

from e2e.cluster.network import Network

GPU = "nvidia.com/gpu"


def dns_objects(network: Network) -> list[dict[str, Any]]:
    """Service `kube-dns` without a selector, and its one endpoint: CoreDNS on the node's own address."""
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": network.dns_ip, "ports": ports},
    }
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [network.node_ip], "conditions": {"ready": True}}],
        "ports": ports,
    }
    return [service, slice_]


def fake_gpus(count: int) -> dict[str, Any]:
    """Patch of a node's status: schedulable GPUs without a device."""
    return {"status": {"capacity": {GPU: str(count)}, "allocatable": {GPU: str(count)}}}


def kwok_node(number: int, *, num_gpus: int) -> dict[str, Any]:
    """A node that kwok keeps Ready; its pods run nowhere. Only pods that tolerate the taint land there."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": "250"} | ({GPU: str(num_gpus)} if num_gpus else {})
    name = f"kwok-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "kwok"},
        },
        "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": resources, "allocatable": resources, "phase": "Running"},
    }
