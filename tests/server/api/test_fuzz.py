"""Whatever is sent to any endpoint: never a 5xx, never a hang, answers as described, and the engine empty afterwards.

The bodies come from our own description by schemathesis, valid ones and ones with a mistake, and from mutations of working
examples that no schema bounds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from octavo_server.api.endpoint import Endpoint
from octavo_server.api.routes import ENDPOINTS
from octavo_testing.server import Server, real_server

IS_FULL = bool(os.environ.get("OCTAVO_FULL"))
CASES = 500 if IS_FULL else 4
"""Of each kind, valid and not, for each endpoint."""
MUTATIONS = 1000 if IS_FULL else 15
CALL_TIMEOUT_S = 60
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
WITH_INPUT = [each for each in ENDPOINTS if each.body or each.body_content or each.parameters or "{" in each.path]
KINDS = [
    pytest.param(endpoint, mode, id=f"{endpoint.method} {endpoint.path}-{mode.value}")
    for endpoint in WITH_INPUT
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    # Any text is a good segment of a path.
    if mode is GenerationMode.POSITIVE or endpoint.body or endpoint.body_content or endpoint.parameters
]
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)] if IS_FULL else []

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "\ud800", "\x00", "a" * 5000, "<|im_end|>", "{{ 1 }}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
async def server(tiny_model: Path, tmp_path: Path) -> AsyncIterator[Server]:
    """Its context is short, so that a case that generates much takes little."""
    async with real_server(tiny_model, engine={"max_model_len": 96}, data_dir=str(tmp_path / "data")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_logged_as_our_failure(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def examples(count: int) -> Callable[[Any], Any]:
    """The same cases in every run; the first that fails is shown as it is."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def as_sent(form: Any) -> Any:
    """What a form's fields say once they are sent: bytes are text, a list of one is its item, an empty one nothing."""
    if not isinstance(form, dict):
        return form
    given = {name: value for name, value in form.items() if value != []}
    values = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}
    return {name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in values.items()}


async def is_at_rest(server: Server) -> bool:
    """Healthy, and nothing is left in the engine or in a handler."""
    await server.until(lambda: server.state.engine.num_unfinished == server.state.num_active == 0)
    await server.until(
        lambda: server.state.engine.snapshot.num_running == server.state.engine.snapshot.num_waiting == 0
    )
    load = (await server.get("/load")).json
    return (await server.get("/health")).status == 200 and (load["running"], load["waiting"], load["kv_usage"]) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize(("endpoint", "mode"), KINDS)
async def test_what_the_description_allows_and_forbids(
    server: Server, endpoint: Endpoint, mode: GenerationMode, record_property: Callable[[str, Any], None]
) -> None:
    described = (await server.get("/openapi.json")).json
    operations = [found.ok() for found in schemathesis.openapi.from_dict(described).get_all_operations()]
    path = endpoint.path.replace(":.+}", "}")
    operation = next(each for each in operations if (each.method.upper(), each.path) == (endpoint.method, path))
    schema = endpoint.body or next(iter((endpoint.body_content or {}).values()), {})
    body_schema = jsonschema.Draft202012Validator({**schema, "components": described["components"]})
    statuses: Counter[str] = Counter()
    slowest_s = 0.0

    @examples(CASES)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        nonlocal slowest_s
        response = case.call(base_url=server.url, session=session, timeout=CALL_TIMEOUT_S)
        statuses[str(response.status_code)] += 1
        slowest_s = max(slowest_s, response.elapsed)
        # A mistake against one alternative may leave a body that is right by another.
        is_right = (
            bool(schema)
            and not endpoint.parameters
            and body_schema.is_valid(case.body if endpoint.body is not None else as_sent(case.body))
        )
        case.validate_response(response, checks=CHECKS[:-1] if is_right else CHECKS)

    with requests.Session() as session:
        await asyncio.to_thread(run)

    if IS_FULL:
        record_property("statuses", dict(statuses))
        record_property("slowest_s", round(slowest_s, 3))
    assert statuses.total() > 0
    assert await is_at_rest(server)


@pytest.mark.parametrize("endpoint", [each for each in ENDPOINTS if each.examples], ids=name_of)
async def test_working_bodies_with_anything_in_their_fields(server: Server, endpoint: Endpoint) -> None:
    """What comes after the parser sees what a schema would never send."""
    names = sorted(
        {
            name
            for body in [endpoint.body or {}, *(endpoint.body or {}).get("anyOf", [])]
            for name in body.get("properties", {})
        }
    )
    bodies = st.builds(
        lambda example, changes: {**example, **changes},
        st.sampled_from(list(endpoint.examples)).map(lambda body: {k: v for k, v in body.items() if k != "model"}),
        st.dictionaries(st.sampled_from(names), json_values, min_size=1, max_size=3),
    )

    @examples(MUTATIONS)
    @given(body=bodies)
    def run(body: dict[str, Any]) -> None:
        body = {"model": server.state.model_names[0], **body}
        response = session.post(
            server.url + endpoint.path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            timeout=CALL_TIMEOUT_S,
        )
        assert response.status_code < 500, (response.text, body)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    with requests.Session() as session:
        await asyncio.to_thread(run)

    assert await is_at_rest(server)


async def test_any_method_and_any_bytes_on_any_path(server: Server) -> None:
    paths = [each.path.replace("{id:.+}", "tiny") for each in ENDPOINTS]
    requested = st.tuples(
        st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]),
        st.sampled_from(paths) | st.sampled_from(["/", "//", "/v1", "/v1/models/", "/v1/models/%00%ff", "/%2e%2e/x"]),
        st.sampled_from(["", "?a=1", "?stream=true&%ff", "?" + "x" * 3000]),
        st.sampled_from([None, "application/json", "text/plain", "multipart/form-data", "a/b; charset=\xff", ""]),
        st.sampled_from([None, "gzip", "br", "identity", "what"]),
        st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()),
    )

    @examples(10 * MUTATIONS)
    @given(requested)
    def run(parts: tuple[str, str, str, str | None, str | None, bytes]) -> None:
        method, path, query, media_type, encoding, body = parts
        # After a body that nobody reads and that cannot be decoded the server ends the connection.
        headers = {"Content-Type": media_type, "Content-Encoding": encoding, "Connection": "close"}
        response = requests.request(
            method, server.url + path + query, data=body, headers=headers, timeout=CALL_TIMEOUT_S
        )
        assert response.status_code < 500, response.text
        assert response.headers["X-Request-Id"]
        if response.status_code >= 400 and method != "HEAD":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    await asyncio.to_thread(run)

    assert await is_at_rest(server)
