"""`/openapi.json` describes every endpoint, and describes it as it is."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis

from octavo_server.api.app import make_app
from octavo_server.api.endpoint import JSON, Endpoint
from octavo_server.api.fields import Fields
from octavo_server.api.openapi import document, statuses
from octavo_server.api.routes import ENDPOINTS
from octavo_server.engine.async_engine import EngineState
from octavo_server.engine.build import LoadedEngine
from octavo_server.engine.startup import StartupProgress
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.server import NAME, Server, fake_engine, real_server, running

WITH_EXAMPLES = [endpoint for endpoint in ENDPOINTS if endpoint.examples]


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def a_document(*, has_keys: bool = False) -> dict[str, Any]:
    return document(ENDPOINTS, model_names=[NAME], vocab_size=512, has_keys=has_keys)


def schemas(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema of the document's operations and components."""
    if isinstance(value, dict):
        if isinstance(value.get("schema"), dict):
            yield value["schema"]
        for item in value.values():
            yield from schemas(item)
    elif isinstance(value, list):
        for item in value:
            yield from schemas(item)


def validate(value: Any, schema: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": whole["components"]}).validate(value)


def properties(schema: Mapping[str, Any]) -> set[str]:
    """Names of the fields of a body, in whichever alternative."""
    parts = [schema, *schema.get("anyOf", [])]
    return {name for part in parts for name in part.get("properties", {})}


async def test_every_route_of_the_server_is_described(server: Server) -> None:
    described = (await server.get("/openapi.json")).json["paths"]

    routes = [route for route in make_app(server.state).router.routes() if route.method != "HEAD"]

    served = {(route.method, route.resource.canonical.replace(":.+", "")) for route in routes if route.resource}
    assert {(method.upper(), path) for path, operations in described.items() for method in operations} == served


def test_it_is_openapi_that_others_can_read() -> None:
    whole = a_document(has_keys=True)

    operations = [result.ok() for result in schemathesis.openapi.from_dict(whole).get_all_operations()]

    assert len(operations) == len(ENDPOINTS)
    for schema in [*schemas(whole["paths"]), *whole["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_it_is_there_while_the_model_loads(tokenizer_folder: Path) -> None:
    loaded = threading.Event()

    def build(_: StartupProgress) -> LoadedEngine:
        assert loaded.wait(60)
        return fake_engine(load_tokenizer(tokenizer_folder)).loaded

    async with running(build, wait=False) as server:
        before = (await server.get("/openapi.json")).json
        loaded.set()
        await server.state.engine.wait_until(EngineState.READY)
        after = (await server.get("/openapi.json")).json

    assert before["paths"] == after["paths"]
    assert [whole["components"]["schemas"]["TokenId"].get("maximum") for whole in (before, after)] == [None, 511]


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for path in a_document()["paths"].values() for operation in path.values()]

    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("endpoint", WITH_EXAMPLES, ids=name_of)
async def test_an_example_is_valid_and_its_answer_is_as_described(server: Server, endpoint: Endpoint) -> None:
    whole = (await server.get("/openapi.json")).json
    operation = whole["paths"][endpoint.path][endpoint.method.lower()]
    media = operation["requestBody"]["content"][JSON]

    for example in media["examples"].values():
        answer = await server.post(endpoint.path, example["value"])

        validate(example["value"], media["schema"], whole)
        assert answer.status == 200, answer.body
        validate(answer.json, operation["responses"]["200"]["content"][JSON]["schema"], whole)


@pytest.mark.parametrize("endpoint", WITH_EXAMPLES, ids=name_of)
async def test_every_field_that_is_read_is_described_and_no_other(
    server: Server, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    get, skip = Fields.get, Fields.skip

    def reading(fields: Fields, name: str) -> Any:
        read.update([name] if not fields._prefix else [])
        return get(fields, name)

    def skipping(fields: Fields, names: Any) -> None:
        read.update([] if fields._prefix else names)
        skip(fields, names)

    monkeypatch.setattr(Fields, "get", reading)
    monkeypatch.setattr(Fields, "skip", skipping)

    for example in endpoint.examples:
        assert (await server.post(endpoint.path, {**example, "model": NAME})).status == 200

    assert endpoint.body is not None
    assert properties(endpoint.body) == read


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
async def test_statuses_that_stand_around_every_handler_are_described(tiny_model: Path, endpoint: Endpoint) -> None:
    """Without the key, with a body that is none, of another type, and while draining."""
    documented = statuses(endpoint, has_keys=True)
    path = endpoint.path.replace("{id:.+}", NAME)
    async with real_server(tiny_model, api_key=("k",)) as server:

        async def ask(**kwargs: Any) -> int:
            async with server.session.request(endpoint.method, server.url + path, **kwargs) as response:
                return response.status

        key = {"Authorization": "Bearer k"}
        without_key = await ask()
        found = {without_key, await ask(headers=key, data=b"{"), await ask(headers={**key, "Expect": "x"})}
        found.add(await ask(headers={**key, "Content-Type": "text/plain"}, data=b"x"))
        server.state.draining = True
        found.add(await ask(headers=key, json={}))

    assert found <= set(documented)
    assert (without_key == 401) == (not endpoint.is_open)
