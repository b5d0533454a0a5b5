"""`GET /openapi.json`: OpenAPI 3.1, made from the table of endpoints and the loaded model.

Pure but for the handler. It says what the server does and no more: bounds are those that the parsers check, statuses
those that handlers and middlewares answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aiohttp import web

from octavo_server.api.endpoint import JSON, TABLE, Endpoint, json_answer
from octavo_server.api.json_schema import ERROR, array, integer, obj, optional, record, text
from octavo_server.api.life import octavo_version
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo_server.api.endpoint import Schema

_PATH_PARAMETER = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": integer(0)}}
_ERRORS: Mapping[int, tuple[str, Mapping[str, Any]]] = {
    400: ("A value, the JSON or the HTTP is invalid; `param` names the field where there is one.", {}),
    401: ("A key is needed: `Authorization: Bearer KEY`.", {"WWW-Authenticate": {"schema": text()}}),
    403: ("This is not allowed here.", {}),
    404: ("There is no such model or object.", {}),
    408: ("The body stopped coming.", {}),
    409: ("It is in a state that does not allow this.", {}),
    413: ("The body is larger than --max-request-bytes.", {}),
    415: ("The content type is another.", {}),
    417: ("The header Expect asks for something else than 100-continue.", {}),
    429: ("Too many requests wait already.", _RETRY_AFTER),
    500: ("The server failed on this request.", {}),
    507: ("The disk of --data-dir is full.", {}),
    503: ("Loading, draining, stuck or dead.", _RETRY_AFTER),
}


def document(
    endpoints: Sequence[Endpoint], *, model_names: Sequence[str], vocab_size: int | None, has_keys: bool
) -> dict[str, Any]:
    """The whole description; `vocab_size` is None until the model is loaded."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(_path(endpoint), {})[endpoint.method.lower()] = _operation(endpoint, model_names[0], has_keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Octavo",
            "version": octavo_version(),
            "summary": "An OpenAI-compatible server of one language model.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Model": text(enum=list(model_names), description="A name that this server serves."),
                "TokenId": integer(0, None if vocab_size is None else vocab_size - 1),
                "Error": _error_schema(),
            },
            "responses": {_error_name(status): _error_response(status) for status in _ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}} if has_keys else {},
        },
    }


def statuses(endpoint: Endpoint, *, has_keys: bool) -> list[int]:
    """Every status that the endpoint may answer, sorted."""
    found = {*endpoint.answers, *endpoint.errors, 400, 417, 500}
    if endpoint.body is not None or endpoint.body_content is not None:
        found |= {408, 413, 415}
    if endpoint.needs_engine:
        found.add(503)
    if endpoint.generates:
        found |= {404, 429}
    if has_keys and not endpoint.is_open:
        found.add(401)
    return sorted(found)


def _path(endpoint: Endpoint) -> str:
    return _PATH_PARAMETER.sub(r"{\1}", endpoint.path)


def _operation(endpoint: Endpoint, model: str, has_keys: bool) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", _path(endpoint)).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}_{name}",
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "responses": {str(status): _response(endpoint, status) for status in statuses(endpoint, has_keys=has_keys)},
    }
    if parameters := _parameters(endpoint):
        operation["parameters"] = parameters
    content = {JSON: endpoint.body} if endpoint.body is not None else endpoint.body_content
    if content is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": schema, **_examples(endpoint, model)} for media, schema in content.items()},
        }
    if has_keys and not endpoint.is_open:
        operation["security"] = [{"key": []}]
    return operation


def _examples(endpoint: Endpoint, model: str) -> dict[str, Any]:
    values = [{**item, **({"model": model} if "model" in item else {})} for item in endpoint.examples]
    named = {f"example{number}": {"value": value} for number, value in enumerate(values, start=1)}
    return {"examples": named} if named else {}


def _parameters(endpoint: Endpoint) -> list[Schema]:
    declared = list(endpoint.parameters)
    names = {(item["in"], item["name"]) for item in declared}
    return [
        {"name": name, "in": "path", "required": True, "schema": text(minLength=1)}
        for name in _PATH_PARAMETER.findall(endpoint.path)
        if ("path", name) not in names
    ] + declared


def _response(endpoint: Endpoint, status: int) -> dict[str, Any]:
    answer = endpoint.answers.get(status)
    if answer is None:
        return {"$ref": f"#/components/responses/{_error_name(status)}"}
    content = {media: {"schema": schema} for media, schema in answer.content.items()}
    return {"description": answer.description, **({"content": content} if content else {})}


def _error_name(status: int) -> str:
    return f"Error{status}"


def _error_response(status: int) -> dict[str, Any]:
    description, headers = _ERRORS[status]
    return {
        "description": description,
        "content": {JSON: {"schema": ERROR}},
        **({"headers": dict(headers)} if headers else {}),
    }


def _error_schema() -> dict[str, Any]:
    error = record({"message": text(), "type": text(), "param": optional(text()), "code": optional(text())})
    return record({"error": error})


async def openapi(http: web.Request) -> web.Response:
    """The description of this very server."""
    state = http.app[STATE]
    loaded = state.engine.loaded
    return web.json_response(
        document(
            http.app[TABLE],
            model_names=state.model_names,
            vocab_size=None if loaded is None else loaded.limits.vocab_size,
            has_keys=bool(state.config.api_key),
        )
    )


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/openapi.json",
        handler=openapi,
        tag="life",
        summary="This description",
        answers=json_answer("OpenAPI 3.1.", obj({"openapi": text(), "paths": obj({}), "tags": array(text())})),
        is_open=True,
        needs_engine=False,
    ),
)
