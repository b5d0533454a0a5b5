"""The chat client against a small OpenAI-compatible server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from octavo_cli import chat
from octavo_cli.errors import CliError
from octavo_testing.local_mode import a_free_port


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


@contextlib.asynccontextmanager
async def a_service(
    *events: bytes, models: tuple[str, ...] = ("m",), port: int = 0
) -> AsyncIterator[tuple[str, list[Any]]]:
    """Its address, and the bodies that it was sent; every answer is the given events."""
    bodies: list[Any] = []

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in models]})

    async def complete(request: web.Request) -> web.StreamResponse:
        bodies.append({**await request.json(), "key": request.headers.get("Authorization")})
        if not events:
            return web.json_response({"error": {"message": "the model is not ready"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for each in events:
            await response.write(each)
        return response

    app = web.Application()
    app.router.add_get("/v1/models", list_models)
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", bodies
    finally:
        await runner.cleanup()


async def test_the_answer_is_printed_as_it_streams(capsys: pytest.CaptureFixture[str]) -> None:
    events = (b": heartbeat\n\n", chunk("Pa"), chunk("ris"), chunk("."), b"data: [DONE]\n\n")
    async with a_service(*events) as (url, bodies):
        arguments = ["--url", url, "--system", "be brief", "--api-key", "k", "--max-tokens", "9", "--temperature", "0"]
        status = await chat.run(chat.parse([*arguments, "capital", "of", "France?"]))

    assert (status, capsys.readouterr().out) == (0, "Paris.\n")
    (body,) = bodies
    assert (body["model"], body["stream"], body["max_tokens"], body["temperature"]) == ("m", True, 9, 0)
    assert [message["content"] for message in body["messages"]] == ["be brief", "capital of France?"]
    assert body["key"] == "Bearer k"


async def test_what_a_model_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async with a_service(chunk("\x1b]0;pwned\x07\x9b2J"), chunk("fine\n\tso"), b"data: [DONE]\n\n") as (url, _):
        await chat.run(chat.parse(["--url", url, "hello"]))

    assert capsys.readouterr().out == "]0;pwned2Jfine\n\tso\n"


@pytest.mark.parametrize(
    "event",
    [
        b"data: 5\n\n",
        b"data: []\n\n",
        b'data: {"choices": null}\n\n',
        b'data: {"choices": [{"delta": null}]}\n\n',
        b'data: {"error": "no"}\n\n',
        b'data: "\xff"\n\n',
        b"data: " + b"x" * 10**6,
    ],
)
async def test_an_answer_of_another_shape_ends_with_one_line(event: bytes) -> None:
    async with a_service(event, b"data: [DONE]\n\n") as (url, _):
        with pytest.raises(CliError, match="answers otherwise than OpenAI's API does"):
            await chat.run(chat.parse(["--url", url, "hello"]))


@pytest.mark.parametrize("listing", [[], {}, {"data": None}, {"data": [3]}, {"data": [{"name": "m"}]}, 7])
def test_a_list_of_models_of_another_shape_is_told_as_that(listing: Any) -> None:
    with pytest.raises(CliError, match="it does not list its models"):
        chat.pick_model(listing, chat.parse(["--url", "http://x"]))


async def test_a_conversation_remembers_its_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = iter(["one", "two", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(questions))
    async with a_service(chunk("yes"), b"data: [DONE]\n\n") as (url, bodies):
        status = await asyncio.to_thread(chat.main, ["--url", url + "/v1"])

    assert status == 0
    assert [message["content"] for message in bodies[1]["messages"]] == ["one", "yes", "two"]


async def test_an_error_does_not_end_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = iter(["one", "two", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(questions))
    async with a_service() as (url, bodies):
        status = await asyncio.to_thread(chat.main, ["--url", url])

    assert status == 0
    assert [len(body["messages"]) for body in bodies] == [1, 1]
    assert capsys.readouterr().err.count("error: 503: the model is not ready") == 2


async def test_ctrl_c_at_the_prompt_ends_at_once() -> None:
    async with a_service() as (url, _):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "octavo_cli", "chat", "--url", url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(20):
                await process.stdout.readexactly(2)
                # In read(2) of its standard input, a pipe: a signal that comes before it would not interrupt it.
                while "pipe_read" not in Path(f"/proc/{process.pid}/wchan").read_text():
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGINT)
                code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    assert code == 130


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((), "503: the model is not ready"),
        ((chunk("a"), b'data: {"error": {"message": "it broke"}}\n\n', b"data: [DONE]\n\n"), "it broke"),
        ((chunk("a"),), "the stream ended before its end was said"),
        ((b"data: {\n\n",), "sent an event that is not JSON"),
    ],
)
async def test_errors_are_one_sentence(events: tuple[bytes, ...], said: str) -> None:
    async with a_service(*events) as (url, _):
        with pytest.raises(CliError, match=said):
            await chat.run(chat.parse(["--url", url, "hi"]))


@pytest.mark.parametrize(
    ("models", "arguments", "said"),
    [
        (("a", "b"), [], "has a, b; choose one with --model"),
        ((), [], "has no models; choose one"),
        (("a",), ["--model", "c"], "has no model 'c'; it has a"),
    ],
)
async def test_which_model_must_be_clear(models: tuple[str, ...], arguments: list[str], said: str) -> None:
    async with a_service(b"data: [DONE]\n\n", models=models) as (url, _):
        with pytest.raises(CliError, match=said):
            await chat.run(chat.parse(["--url", url, *arguments, "hi"]))


async def test_it_waits_for_an_address_that_does_not_answer_yet(capsys: pytest.CaptureFixture[str]) -> None:
    port = a_free_port()
    asking = asyncio.create_task(chat.run(chat.parse(["--url", f"http://127.0.0.1:{port}", "--wait", "20", "hi"])))
    await asyncio.sleep(0.2)
    async with a_service(chunk("here"), b"data: [DONE]\n\n", port=port):
        assert await asking == 0

    assert capsys.readouterr().out == "here\n"


async def test_it_does_not_wait_for_a_refusal_to_go_away() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no such key"}}, status=401)

    app = web.Application()
    app.router.add_get("/v1/models", refuse)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(CliError, match="401: no such key"):
                await chat.run(
                    chat.parse(["--url", f"http://127.0.0.1:{runner.addresses[0][1]}", "--wait", "60", "hi"])
                )
    finally:
        await runner.cleanup()


async def test_without_waiting_an_address_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(CliError, match="does not answer"):
        await chat.run(chat.parse(["--url", f"http://127.0.0.1:{a_free_port()}", "hi"]))
