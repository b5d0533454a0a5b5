"""OpenAI's chat completion objects, made of what an answer's parser says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo_server.api.generation import says_more
from octavo_server.api.logprobs import ShownTokens, chat_logprobs, prompt_logprobs_json
from octavo_server.chat_output.parser import ContentText, ReasoningText, ToolCallBegin
from octavo_server.engine.detokenizer import is_hidden
from octavo_server.engine.request import FinishReason

if TYPE_CHECKING:
    from octavo_server.api.chat_request import ChatRequest
    from octavo_server.api.conversation import PreparedChat
    from octavo_server.api.generation import Output
    from octavo_server.api.logprobs import ShownToken
    from octavo_server.chat_output.parser import ChatEvent
    from octavo_server.engine.detokenizer import TokenTable
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob
    from octavo_server.engine.request import Request


class ChatShape:
    """Owns a parser for each choice, and the ids of its calls."""

    def __init__(
        self, chat: ChatRequest, prepared: PreparedChat, tokens: TokenTable, *, new_id: Callable[[], str]
    ) -> None:
        self._options = chat.options
        self._tokens = tokens
        self._shown_special_ids = prepared.shown_special_ids
        self._shown = [
            ShownTokens(tokens, chat.options.params, prepared.shown_special_ids) for _ in range(chat.options.params.n)
        ]
        self._echoed = _echoed(chat)
        form = prepared.form
        self._parsers = [form.parser() for _ in range(chat.options.params.n)]
        self._meters = [form.meter(self._text_of) for _ in self._parsers]
        self._collected: list[list[dict[str, Any]]] = [[] for _ in self._parsers]
        # Of each choice's newest call; a choice without any has none.
        self._arguments: list[list[str] | None] = [None] * chat.options.params.n
        self._new_id = new_id
        self._has_short_ids = form.has_short_ids

    def opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": self._echoed}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, delta: OutputDelta) -> list[dict[str, Any]]:
        said, shown = self._read(index, delta), self.shown(index, delta)
        if not said and says_more(self._options, delta, shown):
            said = [{}]
        elif delta.finish_reason is not None and "tool_calls" in said[-1]:
            # openai's client takes a call for done only when a chunk without it has come.
            said.append({})
        choices: list[dict[str, Any]] = [
            {"index": index, "delta": item, "logprobs": None, "finish_reason": None} for item in said
        ]
        if not choices:
            return []
        last = choices[-1]
        last["logprobs"] = self._logprobs(shown)
        if delta.finish_reason is not None:
            last |= {
                "finish_reason": self._finish_reason(index, delta),
                "stop_reason": delta.stop_reason,
            }
        if self._options.return_token_ids:
            last["token_ids"] = [token.token_id for token in delta.tokens]
        return choices

    def collect(self, index: int, delta: OutputDelta) -> None:
        # As it comes: a long answer read at once would keep the others waiting.
        self._collected[index] += self._read(index, delta)

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "message": _message(self._echoed, self._collected[index]),
            "logprobs": self._logprobs(output.shown),
            "finish_reason": self._finish_reason(index, output),
            "stop_reason": output.stop_reason,
        }
        if self._options.return_token_ids:
            choice["token_ids"] = [token.token_id for token in output.tokens]
        return choice

    def about_prompt(self, request: Request, logprobs: Sequence[PromptLogprob] = ()) -> dict[str, Any]:
        # As vLLM: of a conversation all choices have one prompt, so it is told of beside them.
        prompt = request.prompt_token_ids
        found: dict[str, Any] = {"prompt_token_ids": list(prompt)} if self._options.return_token_ids else {}
        if self._options.params.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs_json(prompt, logprobs, self._tokens)
        return found

    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def object(self) -> str:
        return "chat.completion"

    def shown(self, index: int, delta: OutputDelta) -> list[ShownToken]:
        return self._shown[index].take(delta)

    def num_reasoning_tokens(self) -> int:
        return sum(meter.count for meter in self._meters if meter is not None)

    def _read(self, index: int, delta: OutputDelta) -> list[dict[str, Any]]:
        """What the text says, as deltas; none where nothing is certain yet."""
        meter = self._meters[index]
        if meter is not None:
            for token in delta.tokens:
                meter.add(token.token_id)
        events = self._parsers[index].feed(delta.text)
        if delta.finish_reason is not None:
            events += self._parsers[index].finish()
        return self._said(index, events)

    def _said(self, index: int, events: Iterable[ChatEvent]) -> list[dict[str, Any]]:
        """One delta for what comes together, and never two calls in one, which clients do not expect."""
        said: list[dict[str, Any]] = []
        for event in events:
            last = said[-1] if said else {}
            if isinstance(event, ContentText):
                if "content" not in last:
                    said.append({"content": ""})
                said[-1]["content"] += event.text
            elif isinstance(event, ReasoningText):
                if "reasoning" not in last:
                    said.append({"reasoning": ""})
                text = said[-1]["reasoning"] + event.text
                # Under both names that clients know.
                said[-1] = {"reasoning": text, "reasoning_content": text}
            elif isinstance(event, ToolCallBegin):
                self._arguments[index] = []
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.index, "id": self._call_id(), "type": "function", "function": function}
                said.append({"tool_calls": [call]})
            else:
                if "tool_calls" not in last or last["tool_calls"][0]["index"] != event.index:
                    said.append({"tool_calls": [{"index": event.index, "function": {"arguments": ""}}]})
                said[-1]["tool_calls"][0]["function"]["arguments"] += event.text
                pieces = self._arguments[index]
                assert pieces is not None, "a call begins with its name"
                pieces.append(event.text)
        return said

    def _call_id(self) -> str:
        return self._new_id()[:9] if self._has_short_ids else f"call_{self._new_id()}"

    def _finish_reason(self, index: int, end: OutputDelta | Output) -> str | None:
        """A model that stops by itself after a call waits for its result; the client's own stops may cut one off."""
        arguments = self._arguments[index]
        if end.finish_reason is not FinishReason.STOP or arguments is None:
            return end.finish_reason
        return "tool_calls" if end.stop_reason is None or _is_json("".join(arguments)) else end.finish_reason

    def _text_of(self, token_id: int) -> bytes:
        hidden = self._options.params.skip_special_tokens and is_hidden(token_id, self._tokens, self._shown_special_ids)
        return b"" if hidden else self._tokens.token_bytes(token_id)

    def _logprobs(self, items: list[ShownToken]) -> dict[str, Any] | None:
        if self._options.params.logprobs is None:
            return None
        return {"content": chat_logprobs(items, self._tokens), "refusal": None}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _echoed(chat: ChatRequest) -> str:
    """The text that `echo` puts in front, as vLLM does: that of a last message by the assistant."""
    last = chat.conversation.messages[-1]
    return str(last["content"] or "") if chat.echo and last["role"] == "assistant" else ""


def _message(echoed: str, said: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The message that the deltas of a whole answer make."""
    texts: dict[str, str] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in said:
        for name in delta.keys() - {"tool_calls"}:
            texts[name] = texts.get(name, "") + delta[name]
        for part in delta.get("tool_calls", ()):
            if part["index"] in calls:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
            else:
                calls[part["index"]] = {name: part[name] for name in ("id", "type", "function")}
    content = echoed + texts.pop("content", "")
    return {
        "role": "assistant",
        # Null where the answer is something else, as OpenAI says it.
        "content": content if content or not (texts or calls) else None,
        "refusal": None,
        **texts,
        **({"tool_calls": list(calls.values())} if calls else {}),
    }
