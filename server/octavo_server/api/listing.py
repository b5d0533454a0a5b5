"""Pages of a list, as OpenAI cuts them: `limit`, `order`, and `after` the last id of the page before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from octavo_server.api.json_schema import array, boolean, integer, one_of, optional, record, text
from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from aiohttp import web

    from octavo_server.api.endpoint import Schema


def page(http: web.Request, items: Sequence[Mapping[str, Any]], *, max_limit: int, limit: int) -> dict[str, Any]:
    """One page of `items`, which are oldest first and have an `id`.

    Raises:
        InvalidRequestError: naming the parameter.
    """
    most, is_ascending = _limit(http, max_limit, limit), _order(http) == "asc"
    ordered = list(items) if is_ascending else list(items)[::-1]
    after = http.query.get("after")
    if after:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise InvalidRequestError(f"after is {after[:100]!r}, which is not in the list (any more)", param="after")
        ordered = ordered[places[0] + 1 :]
    shown = ordered[:most]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(ordered) > most,
    }


def page_schema(item: Schema) -> dict[str, Any]:
    """What `page` gives."""
    return record(
        {
            "object": one_of("list"),
            "data": array(item),
            "first_id": optional(text()),
            "last_id": optional(text()),
            "has_more": boolean(),
        }
    )


def page_parameters(max_limit: int) -> tuple[Schema, ...]:
    """What `page` reads of the query."""
    return (
        {"name": "limit", "in": "query", "schema": integer(1, max_limit)},
        {"name": "after", "in": "query", "schema": text()},
        {"name": "order", "in": "query", "schema": one_of("asc", "desc")},
    )


def _limit(http: web.Request, max_limit: int, default: int) -> int:
    given = http.query.get("limit")
    if given is None:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= max_limit):
        raise InvalidRequestError(
            f"limit must be a whole number from 1 to {max_limit}, got {given[:40]!r}", param="limit"
        )
    return int(given)


def _order(http: web.Request) -> Literal["asc", "desc"]:
    given = http.query.get("order", "desc")
    if given == "asc":
        return "asc"
    if given == "desc":
        return "desc"
    raise InvalidRequestError(f"order must be asc or desc, got {given[:40]!r}", param="order")
