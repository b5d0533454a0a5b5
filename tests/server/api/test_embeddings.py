"""`/v1/embeddings`: OpenAI's client and transformers agree with it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from octavo_server.engine.request import Request
from octavo_server.engine.request_stream import RequestStream
from octavo_server.errors import QueueFullError
from octavo_testing.server import CONTEXT, NAME, Answer, Server, a_completion, fake_server, real_server

HIDDEN = 64
TEXTS = ["The quick brown fox", "A pod holds containers.", "Größe, 東京 and 🙂", "x"]


@pytest.fixture
async def server(tiny_model: Path) -> AsyncIterator[Server]:
    async with real_server(tiny_model) as running:
        yield running


def an_input(value: Any = "The quick brown fox", **fields: Any) -> dict[str, Any]:
    return {"model": NAME, "input": value, **fields}


async def embed(server: Server, value: Any = "The quick brown fox", **fields: Any) -> list[NDArray[np.float32]]:
    """The vectors, in the order of their index."""
    answer = await server.post("/v1/embeddings", an_input(value, **fields))
    assert answer.status == 200, answer.body
    assert [item["index"] for item in answer.json["data"]] == list(range(len(answer.json["data"])))
    return [np.array(item["embedding"], dtype=np.float32) for item in answer.json["data"]]


async def ids_of(server: Server, text: str) -> list[int]:
    ids: list[int] = (await server.post("/tokenize", {"prompt": text})).json["tokens"]
    return ids


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").eval()


def last_state(oracle: Any, token_ids: list[int]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        state: NDArray[np.float32] = oracle.model(torch.tensor([token_ids])).last_hidden_state[0, -1].numpy()
    return state


async def test_a_vector_is_transformers_last_hidden_state_of_length_one(server: Server, oracle: Any) -> None:
    whole = await embed(server, TEXTS)
    raw = await embed(server, TEXTS, normalize=False)

    for text, normalised, state in zip(TEXTS, whole, raw, strict=True):
        expected = last_state(oracle, await ids_of(server, text))
        assert np.abs(state - expected).max() < 1e-4
        assert np.abs(normalised - expected / np.linalg.norm(expected)).max() < 1e-5
    assert (await embed(server, TEXTS, use_activation=False))[0].tolist() == raw[0].tolist()


async def test_four_spellings_are_the_same_input(server: Server) -> None:
    ids = await ids_of(server, "The quick brown fox")

    vectors = [
        (await embed(server, value))[0] for value in ("The quick brown fox", ["The quick brown fox"], ids, [ids])
    ]

    assert all(np.allclose(vectors[0], other, atol=1e-6) for other in vectors)


async def test_the_openai_client_reads_both_encodings(tiny_model: Path) -> None:
    async with (
        real_server(tiny_model, api_key=("secret",)) as server,
        openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0) as client,
    ):
        # Its own default is base64.
        usual = await client.embeddings.create(model=NAME, input=TEXTS)
        floats = await client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float")

    assert [item.index for item in usual.data] == [0, 1, 2, 3]
    for one, other in zip(usual.data, floats.data, strict=True):
        assert len(one.embedding) == HIDDEN
        assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    assert (usual.object, usual.model, usual.data[0].object) == ("list", NAME, "embedding")
    assert usual.usage.prompt_tokens == usual.usage.total_tokens == floats.usage.prompt_tokens > 4


async def test_base64_is_float32_little_endian(server: Server) -> None:
    answer = (await server.post("/v1/embeddings", an_input(encoding_format="base64"))).json

    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype="<f4")
    assert np.allclose(found, (await embed(server))[0], atol=1e-6)


async def test_usage_is_exact_and_counted(server: Server) -> None:
    long = list(range(40, 90))

    first = (await server.post("/v1/embeddings", an_input([*TEXTS]))).json["usage"]
    hit = [(await server.post("/v1/embeddings", an_input(long))).json["usage"] for _ in range(2)][1]

    tokens = sum([len(await ids_of(server, text)) for text in TEXTS])
    assert (first["prompt_tokens"], first["total_tokens"]) == (tokens, tokens)
    assert hit["prompt_tokens_details"] == {"cached_tokens": 48}
    assert await server.metric("vllm:prompt_tokens_total") == tokens + 2 * len(long)
    assert await server.metric("vllm:request_success_total", finished_reason="stop") == len(TEXTS) + 2
    assert await server.metric("vllm:generation_tokens_total") == 0
    assert await server.metric("vllm:e2e_request_latency_seconds_count") == len(TEXTS) + 2
    assert (await server.get("/load")).json["requests_total"] == len(TEXTS) + 2


async def test_messages_are_rendered_by_the_template(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ids = {
        begins: (await server.post("/tokenize", {"messages": messages, "add_generation_prompt": begins})).json["tokens"]
        for begins in (False, True)
    }

    answers = [
        (await server.post("/v1/embeddings", {"model": NAME, "messages": messages, **fields})).json
        for fields in ({}, {"add_generation_prompt": True})
    ]

    for answer, begins in zip(answers, (False, True), strict=True):
        assert np.allclose(answer["data"][0]["embedding"], (await embed(server, ids[begins]))[0], atol=1e-6)
        assert answer["usage"]["prompt_tokens"] == len(ids[begins])


async def test_truncation_keeps_the_last_tokens(server: Server) -> None:
    ids = [5 + number % 400 for number in range(CONTEXT + 90)]

    vectors = [
        (await embed(server, ids, truncate_prompt_tokens=10))[0],
        (await embed(server, ids[-10:]))[0],
        (await embed(server, ids, truncate_prompt_tokens=-1))[0],
        (await embed(server, ids[-CONTEXT:]))[0],
    ]

    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.allclose(vectors[2], vectors[3], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2], atol=1e-2)


async def test_a_text_far_beyond_the_context_may_be_truncated(server: Server) -> None:
    """Only its end is tokenised; nobody waits for megabytes."""
    text = "pod " * 200_000 + "The quick brown fox"

    assert (await server.post("/v1/embeddings", an_input(text))).status == 400
    (found,) = await embed(server, text, truncate_prompt_tokens=4)

    assert np.allclose(found, (await embed(server, (await ids_of(server, text[-100:]))[-4:]))[0], atol=1e-5)


async def test_a_prompt_may_fill_the_context(server: Server) -> None:
    assert len(await embed(server, [5] * CONTEXT)) == 1


async def test_a_long_list_is_served_beside_a_small_queue(tokenizer_folder: Path) -> None:
    """2,048 inputs, though eight may run and four wait."""
    async with fake_server(tokenizer_folder, max_num_queued_reqs=4) as server:
        values = [[100 + number % 400, 6 + number // 400] for number in range(2048)]

        async def insist() -> Answer:
            """As clients do with a 429: at one moment both places of the list's may count as waiting."""
            while (answer := await server.post("/v1/completions", a_completion())).status == 429:
                await asyncio.sleep(0.01)
            return answer

        vectors, completion = await asyncio.gather(embed(server, values), insist())

        assert completion.status == 200
        assert len({tuple(vector.tolist()) for vector in vectors}) == 2048
        assert [(await embed(server, values[number]))[0].tolist() for number in (0, 3, 4, 2047)] == [
            vectors[number].tolist() for number in (0, 3, 4, 2047)
        ]
        assert server.state.engine.num_unfinished == 0


async def test_a_list_that_has_begun_waits_for_a_full_queue(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_server(tokenizer_folder) as server:
        submit, asked = server.state.engine.submit, itertools.count(1)

        def full_for_a_while(requests: Sequence[Request]) -> RequestStream:
            if 3 <= next(asked) <= 6:
                raise QueueFullError("others were faster")
            return submit(requests)

        monkeypatch.setattr(server.state.engine, "submit", full_for_a_while)

        assert len(await embed(server, [[7, 8]] * 20)) == 20
        assert next(asked) > 7


async def test_a_client_that_leaves_frees_everything(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        assert server.fake is not None
        server.fake.runner.gate.clear()
        task = asyncio.create_task(server.post("/v1/embeddings", an_input([[7] * 30] * 200)))
        await server.until(lambda: server.state.engine.num_unfinished == 8)

        task.cancel()
        await server.until(lambda: server.state.engine.num_unfinished == 0)
        server.fake.runner.open()
        await server.until(lambda: server.fake.scheduler.kv.num_used_blocks == 0)  # type: ignore[union-attr]  # set above

        assert server.state.num_active == 0


async def test_one_bad_state_ends_its_request_alone(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        bad, good = await asyncio.gather(
            server.post("/v1/embeddings", an_input([[77, 77], [5]])), server.post("/v1/embeddings", an_input([[5]]))
        )

        assert (bad.status, good.status) == (500, 200)
        assert bad.json["error"]["code"] == "generation_failed"
        await server.until(lambda: server.state.engine.num_unfinished == 0)


async def test_a_full_queue_is_429(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder, seqs=1, max_num_queued_reqs=1) as server:
        assert server.fake is not None
        server.fake.runner.gate.clear()
        running = [asyncio.create_task(server.post("/v1/completions", a_completion())) for _ in range(2)]
        await server.until(lambda: server.state.engine.num_unfinished == 2)

        answer = await server.post("/v1/embeddings", an_input())
        server.fake.runner.open()
        await asyncio.gather(*running)

        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
        assert await server.metric("octavo_rejected_requests_total", reason="queue_full") == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [5, -1]}, "input"),
        ({"input": [5, 512]}, "input"),
        ({"input": [5, 2**70]}, "input"),
        ({"input": [[5], [5] * (CONTEXT + 1)]}, "input[1]"),
        ({"input": ["\ud800"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"messages": [{"role": "user", "content": "a"}]}, "input"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 8}, "dimensions"),
        ({"dimensions": HIDDEN + 1}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"priority": 1}, "priority"),
        ({"normalize": "yes"}, "normalize"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"endianness": "big"}, "endianness"),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
        ({"chat_template": "x"}, "chat_template"),
        ({"model": None}, "model"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
    ],
)
async def test_what_is_wrong_is_named(server: Server, fields: dict[str, Any], param: str) -> None:
    answer = await server.post("/v1/embeddings", {**an_input(), **fields})

    assert answer.status == 400, answer.body
    assert answer.json["error"]["param"] == param
    assert len(answer.body) < 1500


async def test_special_tokens_are_the_templates_where_there_are_messages(server: Server) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "add_special_tokens": True}

    assert (await server.post("/v1/embeddings", body)).json["error"]["param"] == "add_special_tokens"


async def test_unknown_fields_are_named_and_known_ones_without_meaning_are_not(server: Server) -> None:
    answer = await server.post("/v1/embeddings", an_input(user="me", fancy=1, add_generation_prompt=True))

    assert answer.headers["X-Octavo-Ignored"] == "add_generation_prompt, fancy"


@pytest.mark.parametrize(
    ("config", "dimensions", "needed"),
    [
        ({"is_matryoshka": True}, 10, None),
        ({"matryoshka_dimensions": [16, 32]}, 16, None),
        ({"matryoshka_dimensions": [16, 32]}, 17, "16, 32"),
        ({"is_matryoshka": True}, HIDDEN + 1, "1 to 64"),
        ({}, HIDDEN, None),
    ],
)
async def test_dimensions_are_for_models_trained_for_them(
    tiny_model: Path, tmp_path: Path, config: dict[str, Any], dimensions: int, needed: str | None
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    async with real_server(tmp_path / "model") as server:
        if needed is not None:
            answer = await server.post("/v1/embeddings", an_input(dimensions=dimensions))
            assert needed in answer.json["error"]["message"]
            return

        short, whole = (await embed(server, dimensions=dimensions))[0], (await embed(server))[0]

        assert short.shape == (dimensions,)
        assert np.allclose(short, whole[:dimensions] / np.linalg.norm(whole[:dimensions]), atol=1e-6)


async def test_an_engine_process_carries_vectors_too(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server, fake_server(tokenizer_folder, where="out") as apart:
        vectors = [[vector.tolist() for vector in await embed(one, TEXTS)] for one in (server, apart)]

    assert vectors[0] == vectors[1]
    assert len({tuple(vector) for vector in vectors[0]}) == len(TEXTS)
