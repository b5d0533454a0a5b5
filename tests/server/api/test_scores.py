"""`/v1/score` and `/v1/rerank`: cosines of the embeddings, in the shapes of vLLM, Jina and Cohere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo_testing.server import NAME, Server, real_server

TEXTS = ["The quick brown fox", "A pod holds containers.", "Größe and 東京", "the quick brown fox!"]


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


async def cosines(server: Server, texts: list[str]) -> Any:
    """[len(texts), len(texts)], of the embeddings that the server gives."""
    answer = await server.post("/v1/embeddings", {"model": NAME, "input": texts})
    vectors = np.array([item["embedding"] for item in answer.json["data"]], dtype=np.float64)
    return vectors @ vectors.T


async def scores_of(server: Server, first: Any, second: Any, path: str = "/v1/score") -> list[float]:
    answer = await server.post(path, {"model": NAME, "text_1": first, "text_2": second})
    assert answer.status == 200, answer.body
    assert [item["index"] for item in answer.json["data"]] == list(range(len(answer.json["data"])))
    return [item["score"] for item in answer.json["data"]]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_one_to_one_one_to_many_and_pairs(server: Server, path: str) -> None:
    expected = await cosines(server, TEXTS)

    assert await scores_of(server, TEXTS[0], TEXTS[1], path) == pytest.approx([expected[0, 1]], abs=1e-5)
    assert await scores_of(server, TEXTS[0], TEXTS, path) == pytest.approx(expected[0], abs=1e-5)
    assert await scores_of(server, [TEXTS[0]], TEXTS, path) == pytest.approx(expected[0], abs=1e-5)
    assert await scores_of(server, TEXTS[:2], TEXTS[2:], path) == pytest.approx(
        [expected[0, 2], expected[1, 3]], abs=1e-5
    )


async def test_a_text_is_its_own_likeness_and_no_score_is_above_one(server: Server) -> None:
    scores = await scores_of(server, TEXTS, TEXTS)

    assert scores == pytest.approx([1] * 4)
    assert max(scores) <= 1


@pytest.mark.parametrize("names", [("queries", "documents"), ("data_1", "data_2")])
async def test_other_spellings_are_the_same(server: Server, names: tuple[str, str]) -> None:
    answer = (await server.post("/v1/score", {names[0]: TEXTS[0], names[1]: TEXTS[1:]})).json

    assert [item["score"] for item in answer["data"]] == await scores_of(server, TEXTS[0], TEXTS[1:])
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == ("list", NAME, "score")


async def test_a_text_is_computed_and_counted_once(server: Server) -> None:
    answer = (await server.post("/v1/score", {"text_1": TEXTS[0], "text_2": TEXTS[1:]})).json

    counts = [(await server.post("/tokenize", {"prompt": text})).json["count"] for text in TEXTS]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(counts)
    assert await server.metric("vllm:prompt_tokens_total") == sum(counts)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_documents_are_sorted_by_likeness(server: Server, path: str) -> None:
    query, documents = TEXTS[0], TEXTS[1:]
    expected = (await cosines(server, TEXTS))[0, 1:]

    answer = (await server.post(path, {"model": NAME, "query": query, "documents": documents})).json

    results = answer["results"]
    assert [item["index"] for item in results] == np.argsort(-expected).tolist()
    assert [item["relevance_score"] for item in results] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert [item["document"] for item in results] == [{"text": documents[item["index"]]} for item in results]
    assert answer["id"].startswith("rerank-")


async def test_top_n_and_documents_left_out(server: Server) -> None:
    body = {"query": TEXTS[0], "documents": [{"text": text} for text in TEXTS]}

    all_of_them = (await server.post("/v1/rerank", body)).json
    some = (await server.post("/v1/rerank", {**body, "top_n": 2, "return_documents": False})).json

    assert some["results"] == [
        {k: v for k, v in item.items() if k != "document"} for item in all_of_them["results"][:2]
    ]
    for top_n in (0, 4, 100):
        assert (await server.post("/v1/rerank", {**body, "top_n": top_n})).json["results"] == all_of_them["results"]


async def test_equal_documents_stay_in_their_order(server: Server) -> None:
    body = {"query": TEXTS[0], "documents": [TEXTS[1]] * 5}

    assert [item["index"] for item in (await server.post("/rerank", body)).json["results"]] == [0, 1, 2, 3, 4]


async def test_a_documents_beginning_alone_may_be_used(server: Server) -> None:
    text = "The quick brown fox jumps over the lazy dog"
    ids = (await server.post("/tokenize", {"prompt": text})).json["tokens"]
    beginning = (await server.post("/detokenize", {"tokens": ids[:4]})).json["prompt"]

    cut = (await server.post("/v1/rerank", {"query": "fox", "documents": [text], "max_tokens_per_doc": 4})).json
    whole = (await server.post("/v1/rerank", {"query": "fox", "documents": [beginning]})).json

    assert cut["results"][0]["relevance_score"] == pytest.approx(whole["results"][0]["relevance_score"], abs=1e-5)
    assert cut["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"text_1": "a", "text_2": "b", "queries": "a", "documents": "b"}, "text_1"),
        ({"text_1": [], "text_2": "b"}, "text_1"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ({"text_1": "a", "text_2": ["b", ""]}, "text_2[1]"),
        ({"text_1": "a", "text_2": ["b", 5]}, "text_2"),
        ({"text_1": "a", "text_2": ["b", "\ud800"]}, "text_2[1]"),
        ({"text_1": "a", "text_2": "b " * 600}, "text_2"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"text_1": "a", "text_2": "b", "use_activation": False}, "use_activation"),
        ({"text_1": "a", "text_2": "b", "model": "other"}, "model"),
    ],
)
async def test_what_is_wrong_with_a_score_is_named(server: Server, body: dict[str, Any], param: str) -> None:
    answer = await server.post("/v1/score", body)

    assert answer.status == (404 if param == "model" else 400), answer.body
    assert answer.json["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ["a"]}, "query"),
        ({"query": ""}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1].text"),
        ({"documents": ["a", {"text": 5}]}, "documents[1].text"),
        ({"documents": ["a", 5]}, "documents[1].text"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"top_n": -1}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
async def test_what_is_wrong_with_a_ranking_is_named(server: Server, fields: dict[str, Any], param: str) -> None:
    answer = await server.post("/v1/rerank", {"query": "a", "documents": ["b"], **fields})

    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param


async def test_a_documents_other_fields_are_named_as_ignored(server: Server) -> None:
    answer = await server.post("/v1/rerank", {"query": "a", "documents": [{"text": "b", "title": "c"}]})

    assert answer.headers["X-Octavo-Ignored"] == "documents[0].title"
