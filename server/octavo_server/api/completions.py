"""`POST /v1/completions`: raw prompts, as text or token ids, one or several."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from octavo_server.api.body import read_parsed
from octavo_server.api.endpoint import Endpoint
from octavo_server.api.generation import (
    Output,
    answer,
    generation_of,
    make_requests,
    num_kept_tokens,
    says_more,
)
from octavo_server.api.generation_schemas import COMPLETION_ANSWERS, COMPLETION_BODY, COMPLETION_EXAMPLE
from octavo_server.api.logprobs import CompletionLogprobs, ShownTokens, prompt_logprobs_json
from octavo_server.api.prompts import encode_prompt
from octavo_server.api.schemas import CompletionRequest, parse_completion
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from octavo_server.api.logprobs import ShownToken
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob
    from octavo_server.engine.request import Request
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.tokenizer.tokenizer import Tokenizer


async def completions(http: web.Request) -> web.StreamResponse:
    """Tokenizes the prompts and continues them."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    completion = await read_parsed(http, lambda body: parse_completion(body, loaded.defaults))
    options = completion.options
    state.check_model(options.model)
    prompts = await asyncio.to_thread(encode_prompts, loaded, completion)
    texts = await asyncio.to_thread(echoed_texts, loaded, completion, prompts) if completion.echo else []
    params = options.params
    if completion.echo and params.logprobs is not None:
        # The prompt's tokens are listed beside the output's.
        params = replace(params, prompt_logprobs=params.logprobs)
    return await answer(
        http,
        generation_of(
            http,
            options=options,
            requests=await make_requests(state, options, prompts, params),
            shape=CompletionShape(completion, prompts, texts, loaded.tokenizer),
            response_id=f"cmpl-{state.new_id()}",
        ),
    )


def encode_prompts(loaded: ServedModel, completion: CompletionRequest) -> list[list[int]]:
    """Token ids of each prompt."""
    keep = num_kept_tokens(completion.options, loaded)
    return [
        encode_prompt(loaded, prompt, add_special_tokens=completion.add_special_tokens, keep=keep)
        if isinstance(prompt, str)
        else list(prompt if keep is None else prompt[-keep:])
        for prompt in completion.prompts
    ]


def echoed_texts(loaded: ServedModel, completion: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """What `echo` puts in front of each prompt's outputs."""
    is_whole = completion.options.truncate_prompt_tokens is None
    return [
        given if isinstance(given, str) and is_whole else loaded.tokenizer.decode(ids, skip_special_tokens=True)
        for given, ids in zip(completion.prompts, prompts, strict=True)
    ]


class CompletionShape:
    """OpenAI's text completion objects."""

    def __init__(
        self, completion: CompletionRequest, prompts: list[list[int]], texts: list[str], tokenizer: Tokenizer
    ) -> None:
        """`texts`: of the prompts, where they are echoed."""
        self._options = completion.options
        self._echo = completion.echo
        self._prompts = prompts
        self._prompt_texts = texts
        self._tokens = tokenizer
        num_choices = len(prompts) * self._options.params.n
        self._logprobs = [CompletionLogprobs(tokenizer) for _ in range(num_choices)]
        self._shown = [ShownTokens(tokenizer, completion.options.params) for _ in range(num_choices)]
        self._begun = [False] * num_choices

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def deltas(self, index: int, delta: OutputDelta) -> list[dict[str, Any]]:
        shown = self.shown(index, delta)
        return [self._delta(index, delta, shown)] if delta.text or says_more(self._options, delta, shown) else []

    def _delta(self, index: int, delta: OutputDelta, shown: list[ShownToken]) -> dict[str, Any]:
        text, logprobs = delta.text, self._logprobs_of(index, shown)
        is_first, self._begun[index] = not self._begun[index], True
        if is_first and self._echo:
            text = self._prompt_text(index) + text
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if is_first and self._options.return_token_ids:
            choice["prompt_token_ids"] = self._prompt(index)
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._options.return_token_ids:
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        return choice

    def collect(self, index: int, delta: OutputDelta) -> None:
        """The text is the answer: nothing is to be read out of it."""

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        prompt = self._prompt(index)
        logprobs = (
            self._logprobs_of(index, output.shown, prompt, output)
            if self._options.params.logprobs is not None
            else None
        )
        choice: dict[str, Any] = {
            "index": index,
            "text": (self._prompt_text(index) if self._echo else "") + output.text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = [token.token_id for token in output.tokens]
            choice["prompt_token_ids"] = prompt
        if self._options.params.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs_json(prompt, output.prompt_logprobs, self._tokens)
        return choice

    def chunk_object(self) -> str:
        return "text_completion"

    def object(self) -> str:
        return "text_completion"

    def shown(self, index: int, delta: OutputDelta) -> list[ShownToken]:
        return self._shown[index].take(delta)

    def about_prompt(self, request: Request, logprobs: Sequence[PromptLogprob] = ()) -> dict[str, Any]:
        # There may be several prompts, so each choice tells of its own.
        return {}

    def num_reasoning_tokens(self) -> int:
        return 0

    def _prompt(self, index: int) -> list[int]:
        return self._prompts[index // self._options.params.n]

    def _prompt_text(self, index: int) -> str:
        return self._prompt_texts[index // self._options.params.n]

    def _logprobs_of(
        self, index: int, items: list[ShownToken], prompt: list[int] | None = None, output: Output | None = None
    ) -> dict[str, Any] | None:
        if self._options.params.logprobs is None:
            return None
        maker = self._logprobs[index]
        if not self._echo or prompt is None or output is None:
            return maker.of_output(items)
        before = maker.of_prompt(prompt, output.prompt_logprobs)
        after = maker.of_echoed_output(output.tokens, items)
        return {name: before[name] + after[name] for name in before}


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=completions,
        tag="generation",
        summary="Continues prompts",
        body=COMPLETION_BODY,
        examples=(COMPLETION_EXAMPLE,),
        answers=COMPLETION_ANSWERS,
        generates=True,
    ),
)
