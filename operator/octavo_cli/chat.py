"""`octavo chat`: ask one question, or talk, over any OpenAI-compatible address; the answer is printed as it streams."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from .errors import CliError
from .printable import printable

RETRY_EVERY_S = 0.25
NOT_OPENAIS = (ValueError, TypeError, KeyError, AttributeError, aiohttp.http_exceptions.HttpProcessingError)
"""What comes of an answer that has another shape than OpenAI's, or of a line without end."""
Message = dict[str, str]


class NotYet(CliError):
    """What may pass by itself, so that `--wait` tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    url: str
    model: str
    question: str
    system: str
    api_key: str
    max_tokens: int | None
    temperature: float | None
    wait_s: float
    verifies_tls: bool = True
    """False only behind a tunnel that ends at the address itself."""


def main(argv: Sequence[str]) -> int:
    return start(parse(argv))


def start(options: ChatOptions) -> int:
    return asyncio.run(run(options)) if options.question else converse(options)


def parse(argv: Sequence[str]) -> ChatOptions:
    parser = argparse.ArgumentParser(prog="octavo chat", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="address, with or without /v1 (%(default)s)")
    parser.add_argument("--model", default="", help="model name (default: the only one that the address serves)")
    add_arguments(parser)
    given = parser.parse_args(argv)
    return options_of(given, url=given.url, model=given.model)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything but where the model is."""
    parser.add_argument("question", nargs="*", help="the question; without one a conversation begins")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""), help="default: $OPENAI_API_KEY")
    parser.add_argument("--max-tokens", type=int, help="most tokens of an answer (default: the server's)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the model's)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for the address")


def options_of(given: argparse.Namespace, *, url: str, model: str, verifies_tls: bool = True) -> ChatOptions:
    base = url.rstrip("/")
    return ChatOptions(
        url=base if base.endswith("/v1") else base + "/v1",
        model=model,
        question=" ".join(given.question),
        system=given.system,
        api_key=given.api_key,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        wait_s=given.wait,
        verifies_tls=verifies_tls,
    )


async def run(options: ChatOptions) -> int:
    """One question."""
    async with open_session(options) as session:
        model = await wait_for_model(session, options)
        await ask(session, options, model, [*_opening(options), {"role": "user", "content": options.question}])
    return 0


def converse(options: ChatOptions) -> int:
    """Questions from standard input, which is read outside of the event loop: there Ctrl-C ends `input` at once."""
    messages = _opening(options)

    async def find_model() -> str:
        async with open_session(options) as session:
            return await wait_for_model(session, options)

    async def answer(model: str) -> str:
        async with open_session(options) as session:
            return await ask(session, options, model, messages)

    with asyncio.Runner() as runner:
        model = runner.run(find_model())
        print(f"{model} at {options.url}; an empty line or Ctrl-D ends", file=sys.stderr)
        while question := _next_question():
            messages.append({"role": "user", "content": question})
            try:
                messages.append({"role": "assistant", "content": runner.run(answer(model))})
            except CliError as error:
                messages.pop()
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                # It ends the answer, which is no part of the conversation then.
                messages.pop()
    return 0


def open_session(options: ChatOptions) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    # An answer may stream for as long as it likes; only connecting is bounded.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    connector = aiohttp.TCPConnector(ssl=options.verifies_tls)
    return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)


def _opening(options: ChatOptions) -> list[Message]:
    return [{"role": "system", "content": options.system}] if options.system else []


def _next_question() -> str:
    """Empty where there is none."""
    try:
        return input("> ").strip()
    except EOFError:
        _end_line()
        return ""
    except KeyboardInterrupt:
        _end_line()
        raise


def _end_line() -> None:
    """Of a prompt that nobody has answered with Enter."""
    if sys.stdin.isatty():
        print(file=sys.stderr)


async def wait_for_model(session: aiohttp.ClientSession, options: ChatOptions) -> str:
    """The model's name, once the address answers and serves it."""
    end = time.monotonic() + options.wait_s
    while True:
        try:
            return pick_model(await _get_json(session, f"{options.url}/models"), options)
        except NotYet:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(RETRY_EVERY_S)


def pick_model(listing: Any, options: ChatOptions) -> str:
    try:
        names = [str(model["id"]) for model in listing["data"]]
    except NOT_OPENAIS:
        raise CliError(f"{options.url} is no OpenAI-compatible address: it does not list its models") from None
    if options.model:
        if options.model not in names and "/" not in options.model:
            raise NotYet(f"{options.url} has no model '{options.model}'; it has {', '.join(names) or 'none'}")
        return options.model
    if len(names) != 1:
        kind = CliError if names else NotYet
        raise kind(f"{options.url} has {', '.join(names) or 'no models'}; choose one with --model")
    return names[0]


async def ask(session: aiohttp.ClientSession, options: ChatOptions, model: str, messages: list[Message]) -> str:
    """Print the answer as it comes; the whole text is returned."""
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    if options.max_tokens is not None:
        body["max_tokens"] = options.max_tokens
    if options.temperature is not None:
        body["temperature"] = options.temperature
    text = ""
    try:
        async with session.post(f"{options.url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise CliError(_error_message(response.status, await response.text()))
            async for piece in answer_pieces(response):
                print(printable(piece), end="", flush=True)
                text += piece
    except asyncio.CancelledError:
        # By Ctrl-C: what is shown next gets a line of its own.
        print()
        raise
    except (aiohttp.ClientError, OSError) as error:
        raise CliError(f"{options.url} broke off: {error}") from error
    except NOT_OPENAIS as error:
        raise CliError(f"{options.url} answers otherwise than OpenAI's API does: {str(error)[:200]}") from error
    print()
    return text


async def answer_pieces(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The text pieces of a stream of chat chunks; raises CliError for an error inside it or an early end."""
    async for line in response.content:
        field, _, value = line.decode().partition(":")
        value = value.strip()
        if field != "data":
            continue
        if value == "[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError:
            raise CliError(f"the address sent an event that is not JSON: {value[:100]}") from None
        if "error" in event:
            raise CliError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            if piece := choice.get("delta", {}).get("content"):
                yield piece
    raise CliError("the stream ended before its end was said")


async def _get_json(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
            text = await response.text()
    except (aiohttp.ClientError, OSError) as error:
        raise NotYet(f"{url} does not answer: {error}") from error
    if response.status >= 500:
        raise NotYet(_error_message(response.status, text))
    if response.status != 200:
        raise CliError(_error_message(response.status, text))
    try:
        return json.loads(text)
    except ValueError:
        raise CliError(f"{url} is no OpenAI-compatible address: it does not answer with JSON") from None


def _error_message(status: int, text: str) -> str:
    try:
        return f"{status}: {json.loads(text)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {text[:500]}"
