"""What is asked about a stored response goes to the replica that stored it, or is a 404 that says what is gone."""

from __future__ import annotations

import re

import pytest
from aiohttp import web

from octavo_gateway.endpoints import table_of
from octavo_gateway.errors import ResponseNotFound
from octavo_gateway.stored_responses import digest, find_place
from octavo_testing.gateway import a_gateway, a_model, a_replica, an_upstream, answering, hanging_up


def an_id(pod: str, *, key: str = "default/m") -> str:
    return f"resp_0a1b2c_{digest(key)}{digest(pod)}"


def test_an_id_leads_to_the_replica_that_gave_it() -> None:
    table = table_of([a_model("m", a_replica("m-1"), a_replica("m-2")), a_model("n", a_replica("n-1"))])

    place = find_place(an_id("m-2"), table)

    assert (place.model.key, place.replica.pod) == ("default/m", "m-2")


@pytest.mark.parametrize(
    ("response_id", "words"),
    [
        ("resp_0a1b2c", "does not end in the routing tag"),
        ("x" * 5000, "does not end in the routing tag"),
        (an_id("m-1", key="default/gone"), "no longer deployed"),
        (an_id("m-9"), "the replica of 'm' that stored it is gone"),
    ],
)
def test_an_id_that_leads_nowhere_says_what_is_gone(response_id: str, words: str) -> None:
    table = table_of([a_model("m", a_replica("m-1"))])

    with pytest.raises(ResponseNotFound, match=words) as refusal:
        find_place(response_id, table)

    assert len(refusal.value.message) < 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items?limit=2"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
    ],
)
async def test_each_question_about_a_response_reaches_its_pod_as_it_was_asked(method: str, path: str) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(f"{request.method} {request.raw_path}")
        return web.json_response({"here": True})

    async with (
        an_upstream(handler) as one,
        an_upstream(handler) as two,
        a_gateway(a_model("m", one.replica("m-1"), two.replica("m-2"))) as bench,
    ):
        asked = path.format(an_id("m-2"))
        answers = [await bench.send(method, asked) for _ in range(8)]

    assert {answer.status for answer in answers} == {200}
    assert (one.requests, two.requests) == (0, 8)
    assert set(seen) == {f"{method} {asked}"}


async def test_a_conversation_goes_on_where_its_response_lies_even_if_that_pod_is_no_longer_admitted() -> None:
    async with (
        an_upstream() as old,
        an_upstream() as new,
        a_gateway(a_model("m", old.replica("m-1", admitted=False), new.replica("m-2"))) as bench,
    ):
        body = {"model": "default/m", "input": "and now?", "previous_response_id": an_id("m-1")}
        answer = await bench.send("POST", "/v1/responses", json=body)
        fresh = await bench.send("POST", "/v1/responses", json={"model": "m", "input": "hello"})

    assert (answer.status, fresh.status) == (200, 200)
    assert (old.requests, new.requests) == (1, 1)


async def test_a_response_whose_pod_is_gone_is_a_404_and_another_models_too() -> None:
    async with an_upstream() as upstream, an_upstream() as other:
        models = a_model("m", upstream.replica("m-1")), a_model("n", other.replica("n-1"))
        async with a_gateway(*models) as bench:
            gone = await bench.send("GET", f"/v1/responses/{an_id('m-0')}")
            foreign = await bench.send(
                "POST", "/v1/responses", json={"model": "n", "input": "x", "previous_response_id": an_id("m-1")}
            )

    assert (gone.status, gone.error["code"]) == (404, "response_not_found")
    assert "is gone" in gone.error["message"]
    assert (foreign.status, foreign.error["code"]) == (404, "response_not_found")
    assert "'m' gave it" in foreign.error["message"]
    assert upstream.requests + other.requests == 0


def an_item(pod: str, *, key: str = "default/m") -> str:
    return an_id(pod, key=key).replace("resp_", "msg_")


@pytest.mark.parametrize(
    "reference",
    [{"type": "item_reference", "id": an_item("m-2")}, {"id": an_item("m-2")}, {"type": None, "id": an_item("m-2")}],
)
async def test_a_reference_to_an_item_goes_where_the_item_lies(reference: dict[str, str]) -> None:
    words = {"role": "user", "content": "and?"}
    async with (
        an_upstream() as one,
        an_upstream() as two,
        a_gateway(a_model("m", one.replica("m-1"), two.replica("m-2", admitted=False))) as bench,
    ):
        answers = [
            await bench.send("POST", "/v1/responses", json={"model": "m", "input": [words, reference, number]})
            for number in range(6)
        ]
        both = await bench.send(
            "POST",
            "/v1/responses",
            json={"model": "m", "input": [reference], "previous_response_id": an_id("m-2")},
        )

    assert {answer.status for answer in (*answers, both)} == {200}
    assert (one.requests, two.requests) == (0, 7)


async def test_an_item_that_is_no_reference_leads_nowhere_in_particular() -> None:
    """A client may send an answer's items back as they came, ids and all, to any replica."""
    item = {"type": "message", "role": "assistant", "id": an_item("m-9"), "content": "hi"}
    untyped = {"role": "assistant", "id": an_item("m-9"), "content": "hi"}
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica("m-1"))) as bench:
        answer = await bench.send("POST", "/v1/responses", json={"model": "m", "input": [item, untyped]})

    assert answer.status == 200


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"input": [{"id": an_item("m-9")}]}, 404, "response_not_found", "No item .* is gone"),
        ({"input": [{"id": "msg_1"}]}, 404, "response_not_found", "No item 'msg_1'.*routing tag"),
        ({"input": [{"id": an_item("n-1", key="default/n")}]}, 404, "response_not_found", "'n' gave it"),
        ({"input": [{"id": an_item("m-1")}, {"id": an_item("m-2")}]}, 400, "items_apart", "not lie on one replica"),
        (
            {"input": [{"id": an_item("m-2")}], "previous_response_id": an_id("m-1")},
            400,
            "items_apart",
            "send the items themselves",
        ),
        ({"input": [{"id": "msg_1"}, {"id": "msg_2"}]}, 400, "items_apart", "'msg_1' and 'msg_2'"),
    ],
)
async def test_a_reference_that_cannot_be_followed_says_why(
    fields: dict[str, object], status: int, code: str, words: str
) -> None:
    async with an_upstream() as upstream:
        models = (
            a_model("m", upstream.replica("m-1"), upstream.replica("m-2")),
            a_model("n", upstream.replica("n-1")),
        )
        async with a_gateway(*models) as bench:
            answer = await bench.send("POST", "/v1/responses", json={"model": "m", **fields})

    assert (answer.status, answer.error["code"], upstream.requests) == (status, code, 0)
    assert re.search(words, answer.error["message"])


async def test_what_the_one_replica_says_is_passed_on_and_nobody_else_is_asked() -> None:
    draining = answering("draining", status=503)
    async with (
        an_upstream(draining) as one,
        an_upstream() as two,
        a_gateway(a_model("m", one.replica("m-1"), two.replica("m-2"))) as bench,
    ):
        refused = await bench.send("GET", f"/v1/responses/{an_id('m-1')}")
        one.handler = hanging_up()
        cut = await bench.send("GET", f"/v1/responses/{an_id('m-1')}")

    assert (refused.status, refused.json) == (503, {"text": "draining"})
    assert (cut.status, cut.error["code"], cut.headers["Retry-After"]) == (503, "replica_unreachable", "1")
    assert two.requests == 0


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file-1/content", "/v1/batches", "/v1/batches/batch_1/cancel"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_files_and_batches_are_a_404_that_names_the_models_own_service(method: str, path: str) -> None:
    async with a_gateway(a_model("m", service_url="http://m.default.svc:8000")) as bench:
        answer = await bench.send(method, path)

    assert (answer.status, answer.error["code"]) == (404, "path_not_routed")
    assert "http://m.default.svc:8000 (default/m)" in answer.error["message"]
