"""ScaledObjects as the operator makes them, with what KEDA 2.21 writes into their status."""

from __future__ import annotations

from typing import Any

from octavo_cli.kubectl.cluster import Json
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.desired.scaledobject import render_scaled_object

READY = {
    "type": "Ready",
    "status": "True",
    "reason": "ScaledObjectReady",
    "message": "ScaledObject is defined correctly and is ready for scaling",
}
TRIGGER_ERROR = {
    "type": "Ready",
    "status": "False",
    "reason": "TriggerError",
    "message": "Triggers defined in ScaledObject are not working correctly",
}
ACTIVE = {
    "type": "Active",
    "status": "True",
    "reason": "ScalerActive",
    "message": "Scaling is performed because triggers are active",
}
IDLE = {
    "type": "Active",
    "status": "False",
    "reason": "ScalerNotActive",
    "message": "Scaling is not performed because triggers are not active",
}
FALLBACK = {
    "type": "Fallback",
    "status": "False",
    "reason": "NoFallbackFound",
    "message": "No fallbacks are active on this scaled object",
}
PAUSED = {"type": "Paused", "status": "True", "reason": "ScaledObjectPaused", "message": "ScaledObject is paused"}
NOT_PAUSED = {"type": "Paused", "status": "Unknown"}
HPA_FAILS = {
    "type": "HPAActive",
    "status": "False",
    "reason": "FailedGetExternalMetric",
    "message": "HPA is not actively scaling: unable to get external metric",
}


def a_scaled_object(*conditions: Json, namespace: str = "team", **scaling: Any) -> Json:
    """Of the model `qwen`; without conditions KEDA has not looked at it."""
    manifest = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen", "namespace": namespace, "uid": "u"},
        "spec": {"model": "hf://org/name", "replicas": 1, "scaling": {"maxReplicas": 4, "backend": "KEDA", **scaling}},
    }
    resource = parse_model_deployment(manifest)
    assert resource.spec.scaling is not None
    made = render_scaled_object(resource, resource.spec.scaling, prometheus="http://prometheus:9090")
    assert made is not None
    return {**made, "status": a_status(*conditions)} if conditions else made


def a_status(*conditions: Json) -> Json:
    return {
        "conditions": list(conditions),
        "externalMetricNames": ["s0-prometheus"],
        "hpaName": "keda-hpa-qwen",
        "originalReplicaCount": 1,
        "scaleTargetGVKR": {
            "group": "octavo.dev",
            "kind": "ModelDeployment",
            "resource": "modeldeployments",
            "version": "v1alpha1",
        },
        "scaleTargetKind": "octavo.dev/v1alpha1.ModelDeployment",
        "triggersTypes": "prometheus",
    }
