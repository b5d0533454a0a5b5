"""The two things whose quality is taken: a server over HTTP, and an engine in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp

from octavo_server.bench.quality import Case, Sample, Scored
from octavo_server.errors import OctavoError

if TYPE_CHECKING:
    from octavo_server.bench.client import Target
    from octavo_server.llm import LLM


class ServerAnswerer:
    """Asks as the load does, but not streamed."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target

    async def answer(self, case: Case) -> Sample:
        body: dict[str, Any] = {"max_tokens": case.max_tokens, "temperature": case.temperature}
        if self._target.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": case.prompt}]
        else:
            body["prompt"] = case.prompt
        if case.schema is not None:
            schema = {"name": "answer", "schema": case.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        status, answer = await self._post(self._target.path, body)
        if status != 200:
            return Sample(error=f"HTTP {status}")
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self._target.endpoint == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError):
            return Sample(error="HTTP 200 without an answer")
        return Sample(text=text or "", finish_reason=choice.get("finish_reason"))

    async def score(self, text: str) -> Scored | str:
        body = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        status, answer = await self._post("/v1/completions", body)
        if status != 200:
            return f"/v1/completions with echo and logprobs: HTTP {status}"
        try:
            found = answer["choices"][0]["logprobs"]
            # The first token has none before it, the last was generated.
            tokens, logprobs = found["tokens"][1:-1], found["token_logprobs"][1:-1]
        except (KeyError, IndexError, TypeError):
            return "the server does not score prompts"
        return Scored(tokens=tokens, logprobs=logprobs) if logprobs else "the server does not score prompts"

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int | str, Any]:
        target = self._target
        extra = {name: value for name, value in target.extra.items() if name not in body}
        whole = {name: value for name, value in {"model": target.model, **body, **extra}.items() if value is not None}
        try:
            async with self._session.post(target.url + path, json=whole, headers=target.headers) as response:
                return response.status, json.loads(await response.text()) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"({error or type(error).__name__})", None


class EngineAnswerer:
    """Asks the offline engine; without a chat template the prompt is continued."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    async def answer(self, case: Case) -> Sample:
        from octavo_server.engine.request import SamplingParams
        from octavo_server.structured_output.params import StructuredOutputsParams

        wanted = None if case.schema is None else StructuredOutputsParams(json=json.dumps(case.schema))
        params = SamplingParams(max_tokens=case.max_tokens, temperature=case.temperature, structured_outputs=wanted)
        try:
            if self._llm.tokenizer.chat_template_sources:
                made = self._llm.chat([{"role": "user", "content": case.prompt}], params, use_tqdm=False)
            else:
                made = self._llm.generate(case.prompt, params, use_tqdm=False)
        except OctavoError as error:
            return Sample(error=type(error).__name__)
        output = made[0].outputs[0]
        if output.finish_reason == "error":
            return Sample(error=str(output.stop_reason))
        return Sample(text=output.text, finish_reason=output.finish_reason)

    async def score(self, text: str) -> Scored | str:
        from octavo_server.engine.request import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        try:
            output = self._llm.generate(text, params, use_tqdm=False)[0]
        except OctavoError as error:
            return str(error)
        pairs = [
            (entry[token_id].decoded_token, entry[token_id].logprob)
            for token_id, entry in zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True)
            if entry is not None
        ]
        return Scored(tokens=[token for token, _ in pairs], logprobs=[logprob for _, logprob in pairs])
