"""ModelDeployments for a real API server, and the schema that it holds them to."""

from __future__ import annotations

from typing import Any

import yaml

from octavo_testing.apiserver import CRD_PATH, Answer, ApiServer

PATH = "/apis/octavo.dev/v1alpha1/namespaces/default/modeldeployments"
MERGE = "application/merge-patch+json"


def manifest(name: str = "qwen", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": "hf://org/name", **spec},
    }


def create(server: ApiServer, body: dict[str, Any]) -> Answer:
    return server.request("POST", f"{PATH}?fieldValidation=Strict", body)


def open_api_schema() -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(CRD_PATH.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema
