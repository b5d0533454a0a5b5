"""One response on its way through the engine: what comes of its request, told to its writer.

Streamed, whole and in the background differ only in who takes the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.api.content_logprobs import ContentLogprobs
from octavo_server.api.generation import Usage, failure_of
from octavo_server.api.logprobs import ShownTokens, chat_logprobs
from octavo_server.api.responses_request import FORMAT_FIELD
from octavo_server.chat_output.parser import ContentText
from octavo_server.engine.detokenizer import is_hidden
from octavo_server.engine.request import FinishReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo_server.api.conversation import PreparedChat
    from octavo_server.api.error_response import ApiError
    from octavo_server.api.responses_writer import Event, ResponseWriter
    from octavo_server.api.state import ServerState
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.request import Request
    from octavo_server.engine.request_stream import RequestStream
    from octavo_server.tokenizer.tokenizer import Tokenizer


class ResponseRun:
    """Owns the parser and the counts of one response."""

    def __init__(
        self, state: ServerState, prepared: PreparedChat, request: Request, tokens: Tokenizer, writer: ResponseWriter
    ) -> None:
        self.writer = writer
        self._state = state
        self._params = request.params
        self._prepared = prepared
        self._tokens = tokens
        self._parser = prepared.form.parser()
        self._meter = prepared.form.meter(self._text_of)
        self._usage = Usage(prompt_tokens=len(request.prompt_token_ids))
        self._shown = ShownTokens(tokens, request.params, prepared.shown_special_ids)
        self._logprobs = ContentLogprobs()

    async def events(self, stream: RequestStream) -> AsyncIterator[list[Event]]:
        """Each step's events, the last ones included; those of `begin` are the caller's.

        Raises:
            ApiError: the request failed; its writer has not been told.
        """
        while deltas := await stream.read():
            told: list[Event] = []
            for delta in deltas:
                if delta.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
                    raise failure_of(self._state, delta, FORMAT_FIELD)
                told += self._take(delta)
            yield told

    def fail(self, error: ApiError) -> list[Event]:
        """The last events of a response that will not be finished."""
        # OpenAI's word for what the request itself makes impossible.
        code = "invalid_prompt" if error.status < 500 else "server_error"
        return self.writer.fail(str(error), code=code, usage=self._usage_json())

    def cancel(self) -> None:
        """The client has taken its request back."""
        self.writer.fail("the client cancelled the response", usage=self._usage_json(), is_cancelled=True)

    def _take(self, delta: OutputDelta) -> list[Event]:
        self._usage.add(delta)
        if self._meter is not None:
            for token in delta.tokens:
                self._meter.add(token.token_id)
        said = self._parser.feed(delta.text)
        if delta.finish_reason is not None:
            said += self._parser.finish()
        if self._params.logprobs is None:
            told = self.writer.say(said)
        else:
            self._logprobs.add(chat_logprobs(self._shown.take(delta), self._tokens))
            told = self.writer.say(said, self._logprobs.take(said))
        if delta.finish_reason is not None:
            told += self._end(is_whole=delta.finish_reason is FinishReason.STOP)
        return told

    def _end(self, *, is_whole: bool) -> list[Event]:
        rest = self._logprobs.unfinished() if self.writer.is_in_message else []
        # Half a character at the end is no text, yet it has been generated.
        told = self.writer.say([ContentText("")], [rest]) if rest else []
        return told + self.writer.end(self._usage_json(), is_whole=is_whole)

    def _usage_json(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens,
            # Nobody is charged for what is written into the cache.
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0 if self._meter is None else self._meter.count},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _text_of(self, token_id: int) -> bytes:
        hidden = self._params.skip_special_tokens and is_hidden(
            token_id, self._tokens, self._prepared.shown_special_ids
        )
        return b"" if hidden else self._tokens.token_bytes(token_id)
