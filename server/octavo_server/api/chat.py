"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from octavo_server.api.body import read_json
from octavo_server.api.endpoint import Endpoint
from octavo_server.api.generation import (
    Output,
    answer,
    encode_prompt,
    generation_of,
    make_requests,
    num_kept_tokens,
)
from octavo_server.api.generation_schemas import CHAT_ANSWERS, CHAT_BODY, CHAT_EXAMPLE
from octavo_server.api.logprobs import chat_logprobs, prompt_logprobs_json, shown_tokens
from octavo_server.api.schemas import parse_chat
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from aiohttp import web

    from octavo_server.api.schemas import GenerationOptions, Rendering
    from octavo_server.engine.detokenizer import TokenTable
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import SampledToken
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.served_model import ServedModel


async def chat_completions(http: web.Request) -> web.StreamResponse:
    """Renders the messages with the model's template and generates."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    chat = parse_chat(await read_json(http), loaded.defaults)
    state.check_model(chat.options.model)
    keep = num_kept_tokens(chat.options, loaded)
    prompt = await asyncio.to_thread(render, loaded, chat.rendering, keep=keep)
    return await answer(
        http,
        generation_of(
            http,
            options=chat.options,
            requests=await make_requests(state, chat.options, [prompt], chat.options.params),
            shape=ChatShape(chat.options, loaded.tokenizer),
            response_id=f"chatcmpl-{state.new_id()}",
        ),
    )


def render(loaded: ServedModel, rendering: Rendering, *, keep: int | None = None) -> list[int]:
    """The prompt's token ids, the last `keep` of them.

    Raises:
        InvalidRequestError: the template refuses the messages, or the model has none.
    """
    text = loaded.tokenizer.render_chat(
        rendering.messages,
        add_generation_prompt=rendering.add_generation_prompt,
        continue_final_message=rendering.continue_final_message,
        extra=rendering.chat_template_kwargs,
    )
    # The template writes special tokens itself.
    return encode_prompt(loaded, text, add_special_tokens=False, keep=keep)


class ChatShape:
    """OpenAI's chat completion objects."""

    def __init__(self, options: GenerationOptions, tokens: TokenTable) -> None:
        self._options = options
        self._tokens = tokens

    def opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, delta: OutputDelta) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs(self.shown(delta, self._options.params)),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._options.return_token_ids:
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        return choice

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "logprobs": self._logprobs(output.shown),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        prompt = output.request.prompt_token_ids
        if self._options.return_token_ids:
            choice["token_ids"] = [token.token_id for token in output.tokens]
            choice["prompt_token_ids"] = list(prompt)
        if self._options.params.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs_json(prompt, output.prompt_logprobs, self._tokens)
        return choice

    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def object(self) -> str:
        return "chat.completion"

    def shown(self, delta: OutputDelta, params: SamplingParams) -> list[SampledToken]:
        return [] if params.logprobs is None else shown_tokens(delta, self._tokens, params)

    def _logprobs(self, items: list[SampledToken]) -> dict[str, Any] | None:
        if self._options.params.logprobs is None:
            return None
        return {"content": chat_logprobs(items, self._tokens), "refusal": None}


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        tag="generation",
        summary="Answers a conversation",
        body=CHAT_BODY,
        examples=(CHAT_EXAMPLE,),
        answers=CHAT_ANSWERS,
        generates=True,
    ),
)
