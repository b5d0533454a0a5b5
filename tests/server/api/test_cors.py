"""Calls from web pages: the rules of the Fetch standard, as a browser checks them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from octavo_testing.server import Server, a_completion, fake_server

PAGE = "https://chat.example"
COMPLETIONS = "/v1/completions"
ALLOW = "Access-Control-Allow-Origin"


async def preflight(server: Server, origin: str, **headers: str) -> tuple[int, Mapping[str, str]]:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    async with server.session.options(server.url + COMPLETIONS, headers=asked) as answer:
        return answer.status, answer.headers.copy()


async def test_a_page_that_is_allowed_may_ask_and_read(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder, allowed_origins=(PAGE,), api_key=("k",)) as server:
        status, headers = await preflight(
            server, PAGE, **{"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
        )
        answer = await server.post(
            COMPLETIONS, a_completion(), headers={"Origin": PAGE, "Authorization": "Bearer k", "X-Request-Id": "r1"}
        )

    assert status == 204
    assert headers[ALLOW] == PAGE
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-os"
    assert (answer.status, answer.headers[ALLOW], answer.headers["Vary"]) == (200, PAGE, "Origin")
    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]


async def test_streams_and_errors_may_be_read_too(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder, allowed_origins=("*",), api_key=("k",)) as server:
        key = {"Origin": PAGE, "Authorization": "Bearer k"}
        stream = await server.post(COMPLETIONS, a_completion(stream=True), headers=key)
        missing = await server.get("/nowhere", headers=key)
        refused = await server.post(COMPLETIONS, a_completion(), headers={"Origin": PAGE})

    assert [answer.status for answer in (stream, missing, refused)] == [200, 404, 401]
    assert [answer.headers[ALLOW] for answer in (stream, missing, refused)] == ["*", "*", "*"]


@pytest.mark.parametrize(
    ("allowed", "asking"),
    [((), PAGE), ((PAGE,), "https://other.example"), ((PAGE,), PAGE + ".evil"), ((PAGE,), "null")],
    ids=["nobody is allowed", "another page", "a name that begins alike", "a page without origin"],
)
async def test_any_other_page_gets_nothing_that_a_browser_would_show(
    tokenizer_folder: Path, allowed: tuple[str, ...], asking: str
) -> None:
    async with fake_server(tokenizer_folder, allowed_origins=allowed) as server:
        status, headers = await preflight(server, asking)
        answer = await server.post(COMPLETIONS, a_completion(), headers={"Origin": asking})

    assert status == 405
    assert ALLOW not in headers
    assert answer.status == 200
    assert ALLOW not in answer.headers


async def test_options_that_is_no_preflight_stays_what_it_was(tokenizer_folder: Path) -> None:
    async with (
        fake_server(tokenizer_folder, allowed_origins=("*",)) as server,
        server.session.options(server.url + COMPLETIONS, headers={"Origin": PAGE}) as answer,
    ):
        assert answer.status == 405
