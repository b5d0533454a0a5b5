"""A model that says what a test has written down, token by token, under the real engine and the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_server.engine.outputs import RunnerOutput, SampledToken, SchedulerOutput, TokenLogprob
from octavo_server.engine.request import Request
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from octavo_testing.fake_engine import fake_engine
from octavo_testing.server import NAME, Server, running, write_tokenizer

CONTEXT = 4096
EOS = 1


class ScriptedRunner:
    """A ModelRunner: output number `index` of every request says `texts[index]`, then ends."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = [""]
        self.prompts: list[str] = []
        """Of the requests that were seen, in order of their first token."""
        self.requests: list[Request] = []
        """The same requests."""

    def say(self, *texts: str) -> None:
        """What the outputs of the next requests say; the last one is said by all that follow."""
        self.texts = list(texts)

    def token_ids(self, index: int) -> list[int]:
        """The tokens of output `index`, the one that ends it included."""
        text = self.texts[min(index, len(self.texts) - 1)]
        return [*self._tokenizer.encode(text, add_special_tokens=False), EOS]

    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        sampled = {}
        for item in output.scheduled:
            sequence = item.sequence
            if not item.samples:
                continue
            if sequence.num_output_tokens == 0:
                prompt = sequence.token_ids[: sequence.num_prompt_tokens]
                self.requests.append(sequence.request)
                self.prompts.append(self._tokenizer.decode(prompt, skip_special_tokens=False))
            token_id = self.token_ids(sequence.index)[sequence.num_output_tokens]
            logprob = TokenLogprob(token_id=token_id, logprob=-0.5, rank=1)
            asked = sequence.request.params.logprobs is not None
            sampled[sequence.sequence_id] = SampledToken(token_id=token_id, logprob=logprob if asked else None)
        return RunnerOutput(sampled=sampled)


@dataclass(slots=True, kw_only=True)
class Scripted:
    """A server and the model that it serves."""

    server: Server
    model: ScriptedRunner
    tokenizer: Tokenizer

    async def chat(self, **fields: Any) -> dict[str, Any]:
        """An answer that is not streamed."""
        answer = await self.server.post("/v1/chat/completions", a_body(**fields))
        assert answer.status == 200, answer.body
        body: dict[str, Any] = answer.json
        return body

    async def events(self, **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed one."""
        return (await self.server.post("/v1/chat/completions", a_body(stream=True, **fields))).events


@asynccontextmanager
async def scripted_server(folder: Path, **config: Any) -> AsyncIterator[Scripted]:
    """A server over the tokenizer in `folder`; `config` are fields of ServerConfig."""
    tokenizer = load_tokenizer(folder)
    model = ScriptedRunner(tokenizer)
    parts = fake_engine(tokenizer, blocks=CONTEXT // 16 * 4, context=CONTEXT, model_runner=model)
    async with running(lambda _: parts.loaded, fake=parts, **config) as server:
        yield Scripted(server=server, model=model, tokenizer=tokenizer)


def a_tokenizer(folder: Path, template: str, *, special: tuple[str, ...] = (), added: tuple[str, ...] = ()) -> Path:
    """A folder with a small tokenizer that has these tokens and this chat template; made once."""
    if not (folder / "tokenizer_config.json").exists():
        write_tokenizer(folder, chat_template=template, special=special, added=added)
    return folder


def a_body(text: str = "What is a pod?", **fields: Any) -> dict[str, Any]:
    """A chat body that may fill the context."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], **fields}


def a_tool(name: str = "get_weather", **properties: Any) -> dict[str, Any]:
    """A function tool; `properties` are its parameters, all needed."""
    properties = properties or {"city": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"Runs {name}.", "parameters": schema}}


def joined_choice(events: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """A streamed choice as a client joins it: the message, and what stood beside it."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    for choice in (choice for event in events for choice in event["choices"] if choice["index"] == index):
        assert not last, "a chunk after the last one"
        delta = choice["delta"]
        for name in ("content", "reasoning", "reasoning_content"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for part in delta.get("tool_calls", []):
            _join_call(calls, part)
        if choice["finish_reason"] is not None:
            last = choice
    message["content"] = message["content"] or None
    return {
        "message": {**message, **({"tool_calls": list(calls.values())} if calls else {})},
        "finish_reason": last["finish_reason"],
        "stop_reason": last["stop_reason"],
    }


def _join_call(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    if part["index"] not in calls:
        assert {"index", "id", "type", "function"} == set(part), "the first delta of a call names it"
        assert part["index"] == len(calls)
        calls[part["index"]] = {"id": part["id"], "type": part["type"], "function": dict(part["function"])}
        return
    assert {"index", "function"} == set(part)
    assert {"arguments"} == set(part["function"])
    calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
