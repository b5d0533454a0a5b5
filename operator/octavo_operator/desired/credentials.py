"""Entries of `source.secretRef` as environment variables: those of an allow list alone, so that a Secret sets nothing else.

The pod reads the Secret, never the operator. An entry that a scheme cannot do without is not optional: where it is missing
the kubelet says so, and the status repeats it.
"""

from __future__ import annotations

from typing import Any

from octavo_operator.api.source import BY_TOKEN
from octavo_operator.api.types import SecretRef

TOKEN_VARIABLE = {"hf": "HF_TOKEN", "https": "HTTPS_BEARER_TOKEN"}
"""What the entry `secretRef.key` becomes."""
NEEDED = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS_JSON",),
    "oci": ("OCI_USERNAME", "OCI_PASSWORD"),
}
"""Entries that are called as the variables they become."""
OPTIONAL = {
    "hf": ("HF_ENDPOINT",),
    "s3": (
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ALLOW_HTTP",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    ),
    "oci": ("OCI_PLAIN_HTTP",),
}


def credential_env(secret: SecretRef | None, model: str) -> list[dict[str, Any]]:
    """`env` of the container that fetches `model`."""
    if secret is None:
        return []
    scheme = model.partition("://")[0]
    env = []
    if scheme in BY_TOKEN:
        env.append(_entry(TOKEN_VARIABLE[scheme], secret.name, secret.key))
    env += [_entry(name, secret.name, name) for name in NEEDED.get(scheme, ())]
    return env + [_entry(name, secret.name, name, optional=True) for name in OPTIONAL.get(scheme, ())]


def _entry(variable: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": {**reference, **({"optional": True} if optional else {})}}}
