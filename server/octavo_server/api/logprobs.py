"""Log-probabilities in the shapes of the two endpoints.

`bytes` are the token's own, so joined over tokens they are the text's bytes, half characters included. A token that the
text does not show (a skipped special token, the one that ended the output) is not listed, so that tokens join to the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.engine.detokenizer import is_hidden

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from octavo_server.engine.detokenizer import TokenTable
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob, SampledToken, TokenLogprob
    from octavo_server.engine.request import SamplingParams

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot hold."""


def shown_tokens(
    delta: OutputDelta, tokens: TokenTable, params: SamplingParams, shown_special_ids: Collection[int] = ()
) -> list[SampledToken]:
    """The delta's tokens that the text shows."""
    items = list(delta.tokens)
    ended_by_token = delta.finish_reason == "stop" and not isinstance(delta.stop_reason, str)
    if ended_by_token and not params.include_stop_str_in_output:
        items = items[:-1]
    if params.skip_special_tokens:
        items = [item for item in items if not is_hidden(item.token_id, tokens, shown_special_ids)]
    return items


def chat_logprobs(items: Iterable[SampledToken], tokens: TokenTable) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat choice."""
    return [
        {**_chat_entry(item.logprob, tokens), "top_logprobs": [_chat_entry(top, tokens) for top in item.top_logprobs]}
        for item in items
        if item.logprob is not None
    ]


class CompletionLogprobs:
    """The four lists of a completion's `logprobs`; owns the offset, which goes on through a stream."""

    def __init__(self, tokens: TokenTable) -> None:
        self._tokens = tokens
        self._offset = 0

    def of_output(self, items: Iterable[SampledToken]) -> dict[str, Any]:
        """The next output tokens."""
        return self._lists([(item.logprob, item.top_logprobs) for item in items if item.logprob is not None])

    def of_echoed_output(self, items: Iterable[SampledToken], shown: Iterable[SampledToken]) -> dict[str, Any]:
        """All output tokens behind an echoed prompt; those that the text does not show have no text here either.

        Evaluation harnesses take one token of output and cut the lists' last entry off, whether or not it ended the text.
        """
        visible = {id(item) for item in shown}
        given = [item for item in items if item.logprob is not None]
        return self._lists(
            [(item.logprob, item.top_logprobs) for item in given if item.logprob is not None],
            hidden={place for place, item in enumerate(given) if id(item) not in visible},
        )

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
        rest = self._lists([(item.logprob, item.top_logprobs) for item in given])
        return {name: lists[name] + rest[name] for name in lists}

    def _lists(
        self, items: Sequence[tuple[TokenLogprob, Sequence[TokenLogprob]]], hidden: Collection[int] = ()
    ) -> dict[str, list[Any]]:
        texts = ["" if place in hidden else self._text(item[0].token_id) for place, item in enumerate(items)]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(chosen.logprob) for chosen, _ in items],
            "top_logprobs": [self._top(chosen, tops) for chosen, tops in items],
            "text_offset": offsets,
        }

    def _top(self, chosen: TokenLogprob, tops: Sequence[TokenLogprob]) -> dict[str, float]:
        # As OpenAI: the sampled token is there even where it is not among the likeliest.
        entries = list(tops) if any(top.token_id == chosen.token_id for top in tops) else [*tops, chosen]
        return {self._text(top.token_id): _finite(top.logprob) for top in entries}

    def _text(self, token_id: int) -> str:
        return token_text(self._tokens, token_id)


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


def token_text(tokens: TokenTable, token_id: int) -> str:
    r"""The token as text; half a character as OpenAI writes it, `bytes:\xe4`."""
    raw = tokens.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _chat_entry(entry: TokenLogprob, tokens: TokenTable) -> dict[str, Any]:
    raw = tokens.token_bytes(entry.token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(entry.logprob), "bytes": list(raw)}


def _finite(value: float) -> float:
    return max(value, LOWEST)
