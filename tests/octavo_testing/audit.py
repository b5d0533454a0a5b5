"""What the API server noted of who did what: the rights that a program really used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Use = tuple[str, str, str]
"""(group, resource with its subresource, verb)."""

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


def audit_flags(folder: Path) -> list[str]:
    """For a kube-apiserver that writes `audit.log` into `folder`."""
    policy = folder / "audit-policy.yaml"
    policy.write_text(yaml.safe_dump(POLICY))
    return [f"--audit-policy-file={policy}", f"--audit-log-path={folder / 'audit.log'}", "--audit-log-mode=blocking"]


def rights_used(log: Path, account: str) -> set[Use]:
    """By the service account `NAMESPACE:NAME`, as far as it was allowed to."""
    used = set()
    for event in _events(log, account):
        if _code(event) == 403:
            continue
        used.add(_use(event))
        if event["verb"] == "patch" and _code(event) == 201:
            # An apply of what is not there needs the right to create it too.
            used.add((*_use(event)[:2], "create"))
    return used


def rights_refused(log: Path, account: str) -> set[Use]:
    """What the service account asked for in vain, whether it says so in its log or not."""
    return {_use(event) for event in _events(log, account) if _code(event) == 403}


def _events(log: Path, account: str) -> Iterator[dict[str, Any]]:
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == f"system:serviceaccount:{account}" and event.get("objectRef"):
            yield event


def _code(event: Mapping[str, Any]) -> int:
    return int(event.get("responseStatus", {}).get("code", 0))


def _use(event: Mapping[str, Any]) -> Use:
    target = event["objectRef"]
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    return target.get("apiGroup", ""), resource, event["verb"]


def rights_given(roles: list[Mapping[str, Any]]) -> set[Use]:
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
