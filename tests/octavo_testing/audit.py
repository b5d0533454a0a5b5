"""What the API server noted of who did what: the rights that a program really used."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    for line in log.read_text().splitlines():
        event = json.loads(line)
        target = event.get("objectRef")
        if event["user"]["username"] != f"system:serviceaccount:{account}" or not target:
            continue
        if event.get("responseStatus", {}).get("code") == 403:
            continue
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        used.add((target.get("apiGroup", ""), resource, event["verb"]))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            # An apply of what is not there needs the right to create it too.
            used.add((target.get("apiGroup", ""), resource, "create"))
    return used


def rights_given(roles: list[Mapping[str, Any]]) -> set[Use]:
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
