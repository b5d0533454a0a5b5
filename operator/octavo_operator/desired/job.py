"""The Job NAME-HASH that fetches the model onto its claim. It ends when the files are there and checked.

The kubelet starts a download that failed again and again, waiting longer each time (10 s to 5 min); it goes on where the
last one was cut off. So nobody has to notice that a cause is gone.
"""

from __future__ import annotations

from typing import Any

from octavo_operator.api.types import ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.cache import CACHE_FOLDER, VOLUME, claim_name, render_claim
from octavo_operator.desired.credentials import credential_env
from octavo_operator.desired.engine_args import PVC_MOUNT_PATH, SERVER_PORT
from octavo_operator.desired.gpu import node_selector
from octavo_operator.desired.metadata import object_metadata
from octavo_operator.desired.pod import (
    CACHE_PATH,
    PodSettings,
    given,
    home_env,
    pod_security,
    probe,
)

NEVER = 1_000_000
"""Failures until the Job controller gives up."""
GRACE_S = 5
"""A download that is ended loses nothing."""


def render_model(resource: ModelDeployment, settings: PodSettings) -> tuple[dict[str, Any], ...]:
    """The claim and the Job, as far as they are wanted."""
    wanted = (render_claim(resource), render_job(resource, settings))
    return tuple(manifest for manifest in wanted if manifest is not None)


def render_job(resource: ModelDeployment, settings: PodSettings) -> dict[str, Any] | None:
    """None where no claim is to be filled by one."""
    if resource.spec.cache.kind != "PVC":
        return None
    container = _container(resource)
    # The image is no part of the name: a newer operator must not fetch what is there.
    name = f"{resource.name}-{names.fingerprint([container, claim_name(resource)])}"
    image = {
        "image": settings.image_for(resource.spec.resources.gpu),
        "imagePullPolicy": settings.image_pull_policy,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": object_metadata(resource, name),
        "spec": {
            "backoffLimit": NEVER,
            "template": {
                "metadata": {"labels": names.download_labels(resource.name)},
                "spec": _pod_spec(resource, settings, {**container, **image}),
            },
        },
    }


def _container(resource: ModelDeployment) -> dict[str, Any]:
    spec = resource.spec
    args = ["download", spec.model, f"--to={CACHE_FOLDER}", f"--port={SERVER_PORT}", "--progress=none"]
    if spec.source.allow:
        args += ["--weight-files", *spec.source.allow]
    if spec.source.checksum:
        args.append(f"--checksum={spec.source.checksum}")
    return {
        "name": names.DOWNLOAD_CONTAINER,
        "command": ["octavo"],
        "args": args,
        "ports": [{"name": names.PORT_NAME, "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "env": [*home_env(), *credential_env(spec.source.secret_ref, spec.model)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "startupProbe": probe("/startup", period_s=2, timeout_s=5, failures=90),
        "livenessProbe": probe("/health", period_s=10, timeout_s=5, failures=3),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": VOLUME, "mountPath": PVC_MOUNT_PATH},
            {"name": "cache", "mountPath": CACHE_PATH},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _pod_spec(resource: ModelDeployment, settings: PodSettings, container: dict[str, Any]) -> dict[str, Any]:
    placement = resource.spec.placement
    optional = {
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        # Where the replicas may run, so that a volume of one zone or node is made where they reach it.
        "nodeSelector": node_selector(resource.spec),
        "tolerations": [dict(toleration) for toleration in placement.tolerations],
        "affinity": dict(placement.affinity),
    }
    return {
        "restartPolicy": "OnFailure",
        "serviceAccountName": resource.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [
            {"name": VOLUME, "persistentVolumeClaim": {"claimName": claim_name(resource)}},
            {"name": "cache", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
        **given(optional),
    }
