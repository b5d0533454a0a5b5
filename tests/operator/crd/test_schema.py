"""The CRD as a document: its columns, its size, and that each field has its word, its bound and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from octavo_operator.api import reasons
from octavo_operator.api.validation import parse_model_deployment
from octavo_operator.errors import SpecInvalidError
from octavo_testing.apiserver import CRD_PATH, ApiServer
from octavo_testing.crd import manifest, open_api_schema

MAX_BYTES = 200_000


def test_columns_are_those_that_people_ask_for(apiserver: ApiServer) -> None:
    crd = yaml.safe_load(CRD_PATH.read_text())
    (version,) = crd["spec"]["versions"]

    columns = [(column["name"], column.get("priority", 0)) for column in version["additionalPrinterColumns"]]
    installed = apiserver.request(
        "GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    ).body

    assert [name for name, priority in columns if not priority] == [
        "Model",
        "Ready",
        "Replicas",
        "Reason",
        "Pressure",
        "Age",
    ]
    assert [name for name, priority in columns if priority] == ["Endpoint", "Download", "Revision"]
    assert "NonStructuralSchema" not in {each["type"] for each in installed["status"]["conditions"]}


def test_every_field_is_described_and_every_list_bounded() -> None:
    schema = open_api_schema()

    problems = list(_problems(schema["properties"]["spec"], "spec")) + list(
        _problems(schema["properties"]["status"], "status")
    )

    assert problems == []


def test_no_field_of_the_schema_is_unknown_to_the_operator() -> None:
    """What the API server takes and the operator's reader does not know would stop the resource, or be ignored."""
    schema = open_api_schema()

    with pytest.raises(SpecInvalidError) as refused:
        parse_model_deployment(manifest(**_filled(schema["properties"]["spec"])))

    assert [str(problem) for problem in refused.value.problems if "unknown field" in problem.message] == []


def test_crd_fits_into_a_plain_apply() -> None:
    assert CRD_PATH.stat().st_size < MAX_BYTES


def test_reasons_are_words_that_the_schema_takes() -> None:
    words = [value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)]

    assert len(words) == len(set(words)) > 30
    assert all(word.isalnum() and word[0].isupper() for word in words)


def _filled(schema: dict[str, Any]) -> Any:
    """A value that has every field, of the right type and without sense."""
    if "properties" in schema:
        return {name: _filled(below) for name, below in schema["properties"].items()}
    if schema.get("type") == "array":
        return [_filled(schema["items"])]
    return {"integer": 1, "boolean": True, "object": {}}.get(schema.get("type", "integer"), "x")


def _problems(schema: dict[str, Any], path: str) -> Iterator[str]:
    if "description" not in schema:
        yield f"{path} has no description"
    if schema.get("type") == "array":
        if "maxItems" not in schema or "x-kubernetes-list-type" not in schema:
            yield f"{path} has no maxItems or list type"
        items = schema["items"]
        for name, below in items.get("properties", {}).items():
            yield from _problems(below, f"{path}[].{name}")
    for name, below in schema.get("properties", {}).items():
        yield from _problems(below, f"{path}.{name}")
