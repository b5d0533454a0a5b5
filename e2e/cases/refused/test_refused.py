"""The API server refuses an invalid ModelDeployment, and says which field is wrong and what it may be."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.cluster.errors import CommandError
from e2e.cluster.octavo import Octavo

pytestmark = pytest.mark.e2e

MODEL = "file:///models/model.gguf"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({}, "spec.model: Required value"),
    "unknown field": ({"model": MODEL, "replica": 2}, 'unknown field "spec.replica"'),
    "unknown scheme": ({"model": "ftp://example.com/model"}, "model must be hf://ORG/NAME[/FILE.gguf][@REVISION]"),
    "both replicas and scaling": (
        {"model": MODEL, "replicas": 2, "scaling": {"maxReplicas": 3}},
        "replicas and scaling exclude each other",
    ),
    "minimum above maximum": (
        {"model": MODEL, "scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "minReplicas is greater than maxReplicas",
    ),
    "idle time without zero": (
        {"model": MODEL, "scaling": {"minReplicas": 1, "maxReplicas": 2, "idleAfter": "1m"}},
        "idleAfter scales to zero and needs minReplicas 0",
    ),
    "overlay without the server": (
        {"model": MODEL, "podTemplate": {"spec": {"containers": [{"name": "main"}]}}},
        'podTemplate.spec.containers must list the container "server"',
    ),
    "wrong type": ({"model": MODEL, "replicas": "two"}, "spec.replicas"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_resource_is_refused_with_the_field_and_the_remedy(octavo: Octavo, case: str) -> None:
    spec, expected = REFUSED[case]
    manifest = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "refused"},
        "spec": spec,
    }

    with pytest.raises(CommandError) as caught:
        octavo.target.kubectl.apply([manifest], namespace="default")

    assert expected in str(caught.value)
