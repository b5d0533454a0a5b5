"""`/v1/responses` as OpenAI's client uses it, over a model that says what is written down."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from octavo_testing.chat_templates import QWEN25
from octavo_testing.response_events import check_events, parse_named
from octavo_testing.schemas import an_object
from octavo_testing.scripted_model import Scripted, a_tokenizer, scripted_server
from octavo_testing.server import NAME, Server, a_chat, fake_server, real_server

RESPONSES = "/v1/responses"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": an_object(city={"type": "string"}),
    "strict": True,
}


def a_request(given: Any = "What is a pod?", **fields: Any) -> dict[str, Any]:
    return {"model": NAME, "input": given, "max_output_tokens": 200, "temperature": 0, **fields}


@pytest.fixture
async def qwen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scripted]:
    folder = tmp_path_factory.getbasetemp() / "scripted-qwen"
    async with scripted_server(
        a_tokenizer(folder, QWEN25, added=("<tool_call>", "</tool_call>")), reasoning_parser="think"
    ) as running:
        yield running


def a_client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


async def ask(server: Server, given: Any = "What is a pod?", **fields: Any) -> dict[str, Any]:
    answer = await server.post(RESPONSES, a_request(given, **fields))
    assert answer.status == 200, answer.json
    response: dict[str, Any] = answer.json
    return response


async def test_the_openai_client_gets_a_text(qwen: Scripted) -> None:
    qwen.model.say("A pod holds containers.")

    async with a_client(qwen.server) as client:
        response = await client.responses.create(
            model=NAME, input="What is a pod?", instructions="Be brief.", metadata={"a": "b"}
        )

    assert response.output_text == "A pod holds containers."
    assert response.status == "completed"
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    tokens = len(qwen.tokenizer.encode("A pod holds containers.")) + 1
    assert response.usage.output_tokens == tokens
    assert response.usage.total_tokens == response.usage.input_tokens + tokens
    assert "Be brief." in qwen.model.prompts[0]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("A pod holds containers.", ["message"]),
        ("<think>Hm. Köln?</think>A pod.", ["reasoning", "message"]),
        (CALL, ["function_call"]),
        (f"<think>Hm.</think>Let me see. {CALL}\n{CALL}", ["reasoning", "message", "function_call", "function_call"]),
        ("", ["message"]),
    ],
    ids=["text", "reasoning", "call", "all", "nothing"],
)
async def test_a_stream_is_well_formed_and_joins_to_the_whole_answer(
    qwen: Scripted, text: str, kinds: list[str]
) -> None:
    qwen.model.say(text)
    whole = await ask(qwen.server, tools=[WEATHER])
    streamed = await qwen.server.post(RESPONSES, a_request(tools=[WEATHER], stream=True))

    response = check_events(parse_named(streamed.body))

    assert [item["type"] for item in response["output"]] == kinds
    assert without_ids(response) == without_ids(whole)


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What is the same each time."""
    items = [{name: item[name] for name in item.keys() - {"id", "call_id"}} for item in response["output"]]
    usage = {**response["usage"], "input_tokens_details": None}
    kept = {name: response[name] for name in response.keys() - {"id", "created_at"}}
    return {**kept, "output": items, "usage": usage}


async def test_the_client_streams_and_reads_reasoning_and_calls(qwen: Scripted) -> None:
    qwen.model.say(f"<think>Hm.</think>{CALL}")
    kinds: list[str] = []

    async with (
        a_client(qwen.server) as client,
        client.responses.stream(model=NAME, input="The weather?", tools=[WEATHER]) as stream,
    ):
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_response()

    reasoning, call = final.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text == "Hm."
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Köln"}
    assert "response.reasoning_text.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens > 0


async def test_a_call_and_its_result_go_back_into_the_prompt(qwen: Scripted) -> None:
    qwen.model.say(CALL)
    async with a_client(qwen.server) as client:
        first = await client.responses.create(model=NAME, input="The weather?", tools=[WEATHER])
        call = first.output[0]
        assert call.type == "function_call"
        qwen.model.say("It rains.")
        second = await client.responses.create(
            model=NAME,
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
            tools=[WEATHER],
        )

    assert second.output_text == "It rains."
    assert second.previous_response_id == first.id
    prompt = qwen.model.prompts[1]
    assert prompt.index("The weather?") < prompt.index('"city": "Köln"') < prompt.index("rain")


async def test_a_conversation_goes_on_without_the_earlier_instructions(qwen: Scripted) -> None:
    qwen.model.say("Grüezi.")
    first = await ask(qwen.server, "My name is Ada.", instructions="Speak like a pirate.")
    qwen.model.say("Ada.")

    await ask(qwen.server, "What is my name?", previous_response_id=first["id"])

    prompt = qwen.model.prompts[1]
    assert "pirate" not in prompt
    assert prompt.index("My name is Ada.") < prompt.index("Grüezi.") < prompt.index("What is my name?")


async def test_a_second_turn_finds_the_first_in_the_prefix_cache(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        first = await ask(server, "Tell me all about pods and nodes, please.", max_output_tokens=30)
        second = await ask(server, "And more?", previous_response_id=first["id"], max_output_tokens=5)

    assert first["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= 32


async def test_all_kinds_of_input_items_reach_the_prompt(qwen: Scripted) -> None:
    qwen.model.say("ok")
    await ask(
        qwen.server,
        [
            {"role": "developer", "content": "one"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "two"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "thought"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "three"}]},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "four"}'},
            {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": '{"city": "five"}'},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "six"}]},
            {"type": "function_call_output", "call_id": "c2", "output": "seven"},
            {"role": "user", "content": "eight"},
        ],
        tools=[WEATHER],
    )  # fmt: skip

    prompt = qwen.model.prompts[0]
    places = [prompt.index(word) for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    assert places == sorted(places)
    # One answer of the assistant, as it was said at once.
    assert prompt.count("<|im_start|>assistant") == 2


async def test_an_item_of_a_stored_response_can_be_referred_to(qwen: Scripted) -> None:
    qwen.model.say("Said before.")
    first = await ask(qwen.server)

    await ask(
        qwen.server, [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "?"}]
    )

    assert "Said before." in qwen.model.prompts[1]


async def test_an_answer_follows_its_schema_on_random_weights(tiny_model: Path) -> None:
    schema = an_object(color={"enum": ["red", "green"]}, ok={"type": "boolean"})
    async with real_server(tiny_model) as server:
        response = await ask(
            server, text={"format": {"type": "json_schema", "name": "x", "schema": schema}}, seed=1, temperature=1.0
        )

    assert response["status"] == "completed"
    jsonschema.validate(json.loads(response["output"][0]["content"][0]["text"]), schema)
    assert response["text"]["format"]["schema"] == schema


async def test_forced_calls_follow_the_function_on_random_weights(tiny_model: Path) -> None:
    tool = {**WEATHER, "parameters": an_object(city={"enum": ["Paris", "Rome"]})}
    async with real_server(tiny_model) as server:
        response = await ask(
            server, tools=[tool], tool_choice={"type": "function", "name": "get_weather"}, temperature=1.0, seed=2
        )

    [call] = response["output"]
    assert call["type"] == "function_call"
    jsonschema.validate(json.loads(call["arguments"]), tool["parameters"])


async def test_an_answer_that_is_cut_off_is_incomplete(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        response = await ask(server, max_output_tokens=3, ignore_eos=True)
        streamed = await server.post(RESPONSES, a_request(max_output_tokens=3, ignore_eos=True, stream=True))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["usage"]["output_tokens"] == 3
    assert check_events(parse_named(streamed.body))["status"] == "incomplete"


async def test_log_probabilities_come_where_they_are_included(tiny_model: Path) -> None:
    asked = a_request(include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=5, ignore_eos=True)
    async with real_server(tiny_model) as server:
        whole = (await server.post(RESPONSES, asked)).json
        streamed = await server.post(RESPONSES, {**asked, "stream": True})

    part = whole["output"][0]["content"][0]
    assert [len(entry["top_logprobs"]) for entry in part["logprobs"]] == [2] * 5
    # Half a character at the end is no text.
    assert (
        b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode(errors="replace").startswith(part["text"])
    )
    assert check_events(parse_named(streamed.body))["output"][0]["content"][0]["logprobs"] == part["logprobs"]


@pytest.mark.parametrize(
    "text", ["🦊 or <tool?", "<think>🦊</think>Köln, 🦊", f"Köln 🦊{CALL}"], ids=["held", "reasoning", "call"]
)
async def test_log_probabilities_join_to_the_text(qwen: Scripted, text: str) -> None:
    """Those of a token that says nothing yet too: part of a character, or what might have begun a call."""
    qwen.model.say(text)
    asked = a_request(include=["message.output_text.logprobs"], tools=[WEATHER])

    whole = (await qwen.server.post(RESPONSES, asked)).json
    streamed = check_events(parse_named((await qwen.server.post(RESPONSES, {**asked, "stream": True})).body))

    for response in (whole, streamed):
        part = next(item for item in response["output"] if item["type"] == "message")["content"][0]
        assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() == part["text"]


async def test_a_text_of_no_tokens_has_no_log_probabilities_and_says_so(qwen: Scripted) -> None:
    qwen.model.say("")
    asked = a_request(include=["message.output_text.logprobs"])

    whole = (await qwen.server.post(RESPONSES, asked)).json
    streamed = check_events(parse_named((await qwen.server.post(RESPONSES, {**asked, "stream": True})).body))
    plain = await ask(qwen.server)

    assert [response["output"][0]["content"][0].get("logprobs") for response in (whole, streamed, plain)] == [
        [],
        [],
        None,
    ]


async def test_half_a_character_at_the_end_has_its_log_probability(qwen: Scripted) -> None:
    qwen.model.say("🦊")

    response = await ask(qwen.server, include=["message.output_text.logprobs"], max_output_tokens=2)

    part = response["output"][0]["content"][0]
    assert part["text"] == ""
    assert len(part["logprobs"]) == response["usage"]["output_tokens"] == 2
    assert "🦊".encode().startswith(b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]))


async def test_a_stored_response_can_be_asked_for_listed_and_deleted(qwen: Scripted) -> None:
    qwen.model.say("A pod.")
    async with a_client(qwen.server) as client:
        made = await client.responses.create(model=NAME, input="What is it?")
        found = await client.responses.retrieve(made.id)
        items = await client.responses.input_items.list(made.id)
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            await client.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            await client.responses.create(model=NAME, input="?", previous_response_id=made.id)

    assert found == made
    assert [item.content[0].text for item in items.data] == ["What is it?"]  # type: ignore[union-attr]  # a message


async def test_items_are_listed_in_pages(qwen: Scripted) -> None:
    qwen.model.say("ok")
    made = await ask(qwen.server, [{"role": "user", "content": str(number)} for number in range(5)])
    path = f"{RESPONSES}/{made['id']}/input_items"

    first = (await qwen.server.get(f"{path}?limit=2&order=asc")).json
    second = (await qwen.server.get(f"{path}?limit=9&order=asc&after={first['last_id']}")).json
    wrong = [await qwen.server.get(f"{path}?{query}") for query in ("limit=0", "limit=x", "order=up", "after=nobody")]

    found = [item["content"][0]["text"] for page in (first, second) for item in page["data"]]
    assert found == ["0", "1", "2", "3", "4"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [(answer.status, answer.json["error"]["param"]) for answer in wrong] == [
        (400, "limit"),
        (400, "limit"),
        (400, "order"),
        (400, "after"),
    ]


async def test_what_is_not_to_be_stored_is_not(qwen: Scripted) -> None:
    qwen.model.say("A pod.")
    made = await ask(qwen.server, store=False)

    assert (await qwen.server.get(f"{RESPONSES}/{made['id']}")).status == 404
    assert len(qwen.server.state.responses) == 0


async def test_the_store_is_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "scripted-qwen"
    tokenizer = a_tokenizer(folder, QWEN25, added=("<tool_call>", "</tool_call>"))
    async with scripted_server(tokenizer, max_stored_responses=2) as scripted:
        made = [(await ask(scripted.server, str(number)))["id"] for number in range(4)]
        statuses = [(await scripted.server.get(f"{RESPONSES}/{name}")).status for name in made]

    assert statuses == [404, 404, 200, 200]


async def test_ids_of_responses_and_of_their_items_end_in_the_routing_tag(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "scripted-qwen"
    tokenizer = a_tokenizer(folder, QWEN25, added=("<tool_call>", "</tool_call>"))
    async with scripted_server(tokenizer, routing_tag="team/qwen/qwen-0") as scripted:
        made = await ask(scripted.server)
        found = await scripted.server.get(f"{RESPONSES}/{made['id']}")
        asked = await scripted.server.get(f"{RESPONSES}/{made['id']}/input_items")

    assert re.fullmatch(r"msg_[0-9a-f]{24}_[0-9a-f]{20}", asked.json["data"][0]["id"])
    assert re.fullmatch(r"resp_[0-9a-f]{24}_[0-9a-f]{20}", made["id"])
    assert re.fullmatch(r"msg_[0-9a-f]{24}_[0-9a-f]{20}", made["output"][0]["id"])
    assert found.status == 200


async def test_a_background_response_is_worked_on_and_asked_for(qwen: Scripted) -> None:
    qwen.model.say("A pod.")
    begun = await ask(qwen.server, background=True)
    state = qwen.server.state
    await qwen.server.until(lambda: state.num_active == 0)
    ended = (await qwen.server.get(f"{RESPONSES}/{begun['id']}")).json
    going_on = await ask(qwen.server, "More?", previous_response_id=begun["id"])

    assert begun["status"] == "queued"
    assert ended["status"] == "completed"
    assert ended["output"][0]["content"][0]["text"] == "A pod."
    assert going_on["status"] == "completed"
    assert "A pod." in qwen.model.prompts[1]


async def test_a_background_response_can_be_cancelled(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        assert server.fake is not None
        server.fake.runner.gate.clear()
        async with a_client(server) as client:
            begun = await client.responses.create(model=NAME, input="?", background=True)
            cancelled = await client.responses.cancel(begun.id)
            again = await client.responses.cancel(begun.id)
            server.fake.runner.gate.set()
            await server.until(lambda: server.state.engine.snapshot.num_running == 0)

            assert (cancelled.status, again.status) == ("cancelled", "cancelled")
            assert (await client.responses.retrieve(begun.id)).status == "cancelled"
            assert server.state.num_active == 0


async def test_only_what_runs_in_the_background_can_be_cancelled(qwen: Scripted) -> None:
    made = await ask(qwen.server)

    answer = await qwen.server.post(f"{RESPONSES}/{made['id']}/cancel", {})

    assert answer.status == 400
    assert "background" in answer.json["error"]["message"]


async def test_a_server_that_ends_leaves_no_background_work(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        assert server.fake is not None
        server.fake.runner.gate.clear()
        begun = await ask(server, background=True)
        state = server.state
        server.fake.runner.gate.set()

    stored = state.responses.get(begun["id"])
    assert stored is not None
    assert stored.task is None
    assert stored.response["status"] in ("completed", "failed", "cancelled", "incomplete")


async def test_a_client_that_leaves_frees_its_blocks(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        assert server.fake is not None
        server.fake.runner.closes_after = 3
        task = asyncio.create_task(server.post(RESPONSES, a_request(max_output_tokens=100, stream=True)))
        await server.until(lambda: server.state.engine.snapshot.num_running == 1)
        task.cancel()
        await server.until(lambda: server.state.engine.num_unfinished == 0)
        server.fake.runner.open()
        await server.until(lambda: server.state.engine.snapshot.num_running == 0)

        assert len(server.state.responses) == 0


async def test_a_long_conversation_loses_its_beginning_where_it_may(tiny_model: Path) -> None:
    said = [{"role": "user", "content": f"message {number} " + "long " * 30} for number in range(20)]
    async with real_server(tiny_model) as server:
        refused = await server.post(RESPONSES, a_request(said, max_output_tokens=20))
        cut = await ask(server, said, max_output_tokens=20, truncation="auto")
        alone = await server.post(RESPONSES, a_request("long " * 3000, max_output_tokens=20, truncation="auto"))

    assert refused.status == 400
    assert 300 < cut["usage"]["input_tokens"] <= 512 - 20
    assert alone.status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": []}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": "c"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strng"}}}}, "text.format"),
        ({"text": {"format": {"type": "text", "name": []}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"include": ["everything"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"truncation": "middle"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused_by_name(qwen: Scripted, fields: dict[str, Any], param: str) -> None:
    answer = await qwen.server.post(
        RESPONSES, a_request(**fields) if "input" not in fields else {**a_request(), **fields}
    )

    assert answer.status in (400, 404)
    assert answer.json["error"]["param"] == param


async def test_chat_and_responses_share_the_counts(qwen: Scripted) -> None:
    qwen.model.say("A pod.")
    await ask(qwen.server)
    await qwen.server.post("/v1/chat/completions", a_chat(max_tokens=100))

    assert await qwen.server.metric("vllm:request_success_total", finished_reason="stop") == 2
    assert qwen.server.state.engine.num_accepted == 2


async def test_a_stream_that_leaves_nothing_to_choose_fails_by_its_own_fault(tiny_model: Path) -> None:
    async with real_server(tiny_model) as server:
        streamed = await server.post(
            RESPONSES, a_request(allowed_token_ids=[5], text={"format": {"type": "json_object"}}, stream=True)
        )

    response = check_events(parse_named(streamed.body))
    assert (response["status"], response["error"]["code"]) == ("failed", "invalid_prompt")
