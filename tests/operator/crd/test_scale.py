"""The scale subresource of a ModelDeployment, by which autoscalers and the gateway write replicas."""

from __future__ import annotations

from octavo_testing.apiserver import ApiServer
from octavo_testing.crd import MERGE, PATH, create, manifest


def test_autoscaler_may_write_replicas_but_a_person_may_not_add_scaling_beside_them(clean: ApiServer) -> None:
    create(clean, manifest("scaled", scaling={"maxReplicas": 2}))
    create(clean, manifest("fixed", replicas=1))
    scaling = {"spec": {"scaling": {"maxReplicas": 2}}}

    written = clean.request("PATCH", f"{PATH}/scaled/scale", {"spec": {"replicas": 2}}, content_type=MERGE)
    again = clean.request("PATCH", f"{PATH}/scaled", {"spec": {"replicas": 1}}, content_type=MERGE)
    added = clean.request("PATCH", f"{PATH}/fixed", scaling, content_type=MERGE)
    swapped = clean.request(
        "PATCH", f"{PATH}/fixed", {"spec": {**scaling["spec"], "replicas": None}}, content_type=MERGE
    )

    assert (written.status, again.status, added.status, swapped.status) == (200, 200, 422, 200)


def test_scale_subresource_has_the_selector_that_an_hpa_needs(clean: ApiServer) -> None:
    create(clean, manifest(replicas=2))
    status = {"status": {"replicas": 2, "selector": "a=b"}}
    clean.request("PATCH", f"{PATH}/qwen/status", status, content_type=MERGE)

    scale = clean.request("GET", f"{PATH}/qwen/scale").body

    assert scale["spec"]["replicas"] == 2
    assert scale["status"] == {"replicas": 2, "selector": "a=b"}
