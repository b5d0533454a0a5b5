"""Claims for devices on a real API server: the rendered pod is taken whole, and its template and class are of its kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import a_desired, a_resource

DRA = "/apis/resource.k8s.io/v1"
STRICT = "fieldValidation=Strict"
TEMPLATE = Path(__file__).parents[3] / "examples" / "claims" / "two-large.yaml"
CLASS = {
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {"selectors": [{"cel": {"expression": 'device.driver == "gpu.nvidia.com"'}}]},
}


def test_api_server_takes_a_pod_with_claims_as_it_was_rendered(apiserver: ApiServer) -> None:
    example = yaml.safe_load(TEMPLATE.read_text())
    claims = [{"name": "gpu", "resourceClaimTemplateName": example["metadata"]["name"]}]
    resource = a_resource(resources={"gpu": {"count": 2, "claims": claims}})
    deployment = next(each for each in a_desired(resource).objects if each["kind"] == "Deployment")
    template: dict[str, Any] = deployment["spec"]["template"]
    pod = {"metadata": {"name": "claiming", **template["metadata"]}, "spec": template["spec"]}
    account = {"metadata": {"name": "qwen"}}

    for path, body in (
        (f"{DRA}/deviceclasses", CLASS),
        (f"{DRA}/namespaces/default/resourceclaimtemplates", example),
        ("/api/v1/namespaces/default/serviceaccounts", account),
    ):
        made = apiserver.request("POST", f"{path}?{STRICT}", body)
        assert made.status == 201, made.message
    taken = apiserver.request("POST", f"/api/v1/namespaces/default/pods?{STRICT}&dryRun=All", pod)

    assert taken.status == 201, taken.message
    assert taken.body["spec"]["resourceClaims"] == claims
    assert taken.body["spec"]["containers"][0]["resources"] == {"claims": [{"name": "gpu"}]}
