"""Kubernetes' rules for NetworkPolicies as a function: who may reach whom. No cluster, no network plugin.

A pod that no policy of a direction selects is open in it; else one rule of one policy must allow the connection, and it
must be allowed at both ends. What is from outside of the cluster is an address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A pod, or an address outside of the cluster where `namespace` is empty."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named container ports."""
    address: str = "10.0.0.1"


def may_reach(policies: Iterable[Manifest], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    policies = list(policies)
    return _allowed(policies, "Egress", source, target, target, port, protocol) and _allowed(
        policies, "Ingress", target, source, target, port, protocol
    )


def _allowed(
    policies: list[Manifest], direction: str, here: Peer, there: Peer, target: Peer, port: int, protocol: str
) -> bool:
    chosen = [policy["spec"] for policy in policies if _selects(policy, direction, here)]
    if not chosen:
        return True
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _ports_match(rule.get("ports"), target, port, protocol)
        and (not rule.get(side) or any(_is_peer(peer, there, spec["namespace"]) for peer in rule[side]))
        for spec in ({**spec, "namespace": here.namespace} for spec in chosen)
        for rule in spec.get(key, ())
    )


def _selects(policy: Manifest, direction: str, pod: Peer) -> bool:
    spec = policy["spec"]
    return (
        bool(pod.namespace)
        and direction in spec["policyTypes"]
        and policy["metadata"]["namespace"] == pod.namespace
        and _matches(spec["podSelector"], pod.labels)
    )


def _ports_match(ports: list[Manifest] | None, target: Peer, port: int, protocol: str) -> bool:
    if not ports:
        return True
    numbers = {target.ports.get(each["port"]) if isinstance(each["port"], str) else each["port"] for each in ports
               if each.get("protocol", "TCP") == protocol}  # fmt: skip
    return port in numbers


def _is_peer(peer: Manifest, other: Peer, policy_namespace: str) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(other.address)
        block = peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(hole) for hole in block.get("except", ())
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        in_namespace = _matches(peer["namespaceSelector"], other.namespace_labels)
    else:
        in_namespace = other.namespace == policy_namespace
    return in_namespace and _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    assert not selector.get("matchExpressions"), "not evaluated here"
    return selector.get("matchLabels", {}).items() <= labels.items()
