"""Log-probabilities in the shapes of the two endpoints.

Tokens join to the text: one that it does not show (a skipped special token, what ended the output) is not listed, and of
one in whose middle a stop string begins only the beginning is. `bytes` are a token's own, so that half characters join too.
Alternatives in `top_logprobs` stand whole also beside a token that is cut: they are other tokens, and join to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from octavo_server.engine.detokenizer import is_hidden

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from octavo_server.engine.detokenizer import TokenTable
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob, SampledToken, TokenLogprob
    from octavo_server.engine.request import SamplingParams

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot hold."""


class ShownToken(NamedTuple):
    """A token that the text shows, with its log-probability."""

    logprob: TokenLogprob
    top_logprobs: Sequence[TokenLogprob]
    num_hidden_bytes: int = 0
    """At its end: where a stop string begins."""


class ShownTokens:
    """Lists one output's tokens as the text comes to show them. Owns those that are still held."""

    def __init__(self, tokens: TokenTable, params: SamplingParams, shown_special_ids: Collection[int] = ()) -> None:
        self._tokens = tokens
        self._params = params
        self._shown_special_ids = shown_special_ids
        self._held: list[SampledToken] = []

    def take(self, delta: OutputDelta) -> list[ShownToken]:
        """Those that are shown since the last delta; none where log-probabilities were not asked for."""
        if self._params.logprobs is None:
            return []
        self._held += delta.tokens
        count = len(self._held) - delta.num_held_tokens
        new, self._held = self._held[:count], self._held[count:]
        shown = [ShownToken(item.logprob, item.top_logprobs) for item in new if item.logprob is not None]
        if shown and delta.num_hidden_bytes:
            shown[-1] = shown[-1]._replace(num_hidden_bytes=delta.num_hidden_bytes)
        return [item for item in shown if not self._is_hidden(item.logprob.token_id)]

    def _is_hidden(self, token_id: int) -> bool:
        return self._params.skip_special_tokens and is_hidden(token_id, self._tokens, self._shown_special_ids)


def chat_logprobs(items: Iterable[ShownToken], tokens: TokenTable) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat choice."""
    return [
        {
            **_chat_entry(item.logprob, tokens, item.num_hidden_bytes),
            "top_logprobs": [_chat_entry(top, tokens) for top in item.top_logprobs],
        }
        for item in items
    ]


class CompletionLogprobs:
    """The four lists of a completion's `logprobs`; owns the offset, which goes on through a stream."""

    def __init__(self, tokens: TokenTable) -> None:
        self._tokens = tokens
        self._offset = 0

    def of_output(self, items: Sequence[ShownToken]) -> dict[str, Any]:
        """The next output tokens."""
        return self._lists(items)

    def of_echoed_output(self, items: Iterable[SampledToken], shown: Sequence[ShownToken]) -> dict[str, Any]:
        """All output tokens behind an echoed prompt; those that the text does not show have no text here either.

        Evaluation harnesses take one token of output and cut the lists' last entry off, whether or not it ended the text.
        """
        rest, listed = list(reversed(shown)), []
        for item in items:
            if item.logprob is None:
                continue
            # What is shown is what all are without some, and no token is both shown and hidden but at the end
            if rest and rest[-1].logprob.token_id == item.token_id:
                listed.append(rest.pop())
            else:
                listed.append(ShownToken(item.logprob, item.top_logprobs, num_hidden_bytes=self._size(item.token_id)))
        return self._lists(listed)

    def of_prompt(self, prompt: Sequence[int], given: Sequence[PromptLogprob]) -> dict[str, Any]:
        """The echoed prompt's tokens; the first has no log-probability, since nothing stands before it."""
        first = self._text(prompt[0])
        if self._tokens.is_special(prompt[0]):
            first = ""
        lists: dict[str, list[Any]] = {
            "tokens": [first],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._offset],
        }
        self._offset += len(first)
        rest = self._lists([ShownToken(item.logprob, item.top_logprobs) for item in given])
        return {name: lists[name] + rest[name] for name in lists}

    def _lists(self, items: Sequence[ShownToken]) -> dict[str, list[Any]]:
        texts = [token_text(self._tokens, item.logprob.token_id, item.num_hidden_bytes) for item in items]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(item.logprob.logprob) for item in items],
            "top_logprobs": [self._top(item.logprob, item.top_logprobs) for item in items],
            "text_offset": offsets,
        }

    def _top(self, chosen: TokenLogprob, tops: Sequence[TokenLogprob]) -> dict[str, float]:
        # As OpenAI: the sampled token is there even where it is not among the likeliest.
        entries = list(tops) if any(top.token_id == chosen.token_id for top in tops) else [*tops, chosen]
        return {self._text(top.token_id): _finite(top.logprob) for top in entries}

    def _text(self, token_id: int) -> str:
        return token_text(self._tokens, token_id)

    def _size(self, token_id: int) -> int:
        return len(self._tokens.token_bytes(token_id))


def prompt_logprobs_json(
    prompt: Sequence[int], given: Sequence[PromptLogprob], tokens: TokenTable
) -> list[dict[str, Any] | None]:
    """The field `prompt_logprobs` as in vLLM: one entry a prompt token, the first None, each token id → logprob, rank, decoded_token."""
    entries: list[dict[str, Any] | None] = [None]
    for item in given:
        both = [item.logprob, *item.top_logprobs]
        entries.append(
            {
                str(entry.token_id): {
                    "logprob": _finite(entry.logprob),
                    "rank": entry.rank,
                    "decoded_token": token_text(tokens, entry.token_id),
                }
                for entry in both
            }
        )
    assert len(entries) == len(prompt)
    return entries


def token_text(tokens: TokenTable, token_id: int, num_hidden_bytes: int = 0) -> str:
    r"""The token as text, without bytes at its end; half a character as OpenAI writes it, `bytes:\xe4`."""
    raw = _shown_bytes(tokens, token_id, num_hidden_bytes)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _shown_bytes(tokens: TokenTable, token_id: int, num_hidden: int) -> bytes:
    raw = tokens.token_bytes(token_id)
    return raw[: len(raw) - num_hidden]


def _chat_entry(entry: TokenLogprob, tokens: TokenTable, num_hidden_bytes: int = 0) -> dict[str, Any]:
    raw = _shown_bytes(tokens, entry.token_id, num_hidden_bytes)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(entry.logprob), "bytes": list(raw)}


def _finite(value: float) -> float:
    return max(value, LOWEST)
