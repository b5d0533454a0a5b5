"""Chat's objects by themselves: however the tokens come together, a stream joins to the whole answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.api.chat_request import parse_chat
from octavo_server.api.chat_shape import ChatShape
from octavo_server.api.conversation import PreparedChat
from octavo_server.api.generation import Output
from octavo_server.chat_output.answer import AnswerFormat
from octavo_server.chat_output.formats import REASONING_FORMATS, TOOL_FORMATS
from octavo_server.chat_output.reasoning import Phase
from octavo_server.engine.detokenizer import Detokenizer
from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.outputs import SampledToken, TokenLogprob
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.models.config import GenerationDefaults
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from octavo_testing.chat_templates import QWEN3
from octavo_testing.scripted_model import EOS, a_body, a_tokenizer, joined_choice

TEXT = (
    '<think>\nHm, 東京?\n</think>\n\nI look.\n<tool_call>\n{"name": "search", "arguments": {"q": "größer 🙂"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
)
FORM = AnswerFormat(reasoning=REASONING_FORMATS["think"], phase=Phase.UNDECIDED, tools=TOOL_FORMATS["hermes"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.getbasetemp() / "shape-qwen3"
    return load_tokenizer(a_tokenizer(folder, QWEN3, special=("<think>", "</think>")))


def a_shape(tokenizer: Tokenizer, form: AnswerFormat = FORM) -> ChatShape:
    special = [tokenizer.token_id(mark) for mark in ("<think>", "</think>")]
    prepared = PreparedChat(
        prompt_token_ids=[5],
        params=SamplingParams(),
        form=form,
        shown_special_ids=tuple(token_id for token_id in special if token_id is not None),
        ignored=(),
    )
    chat = parse_chat(a_body(logprobs=True), GenerationDefaults())
    return ChatShape(chat, prepared, tokenizer, new_id=lambda: "0123456789ab")


def a_token(token_id: int) -> SampledToken:
    return SampledToken(token_id=token_id, logprob=TokenLogprob(token_id=token_id, logprob=-1.0, rank=1))


def deltas_of(tokenizer: Tokenizer, text: str, sizes: list[int]) -> list[OutputDelta]:
    """The text's tokens in deltas of so many tokens."""
    ids = [*tokenizer.encode(text, add_special_tokens=False), EOS]
    special = [tokenizer.token_id(mark) for mark in ("<think>", "</think>")]
    detokenizer = Detokenizer(tokenizer, shown_special_ids=[item for item in special if item is not None])
    deltas = []
    while ids:
        size = sizes[len(deltas) % len(sizes)]
        some, ids = ids[:size], ids[size:]
        deltas.append(
            OutputDelta(
                request_id="r",
                index=0,
                text=detokenizer.append(some if ids else some[:-1]).text,
                tokens=tuple(a_token(token_id) for token_id in some),
                finish_reason=None if ids else FinishReason.STOP,
            )
        )
    return deltas


def streamed(shape: ChatShape, deltas: list[OutputDelta]) -> list[dict[str, Any]]:
    choices = [shape.opening(0), *(choice for delta in deltas for choice in shape.deltas(0, delta))]
    return [{"choices": [choice]} for choice in choices]


def whole(shape: ChatShape, deltas: list[OutputDelta]) -> dict[str, Any]:
    params = parse_chat(a_body(), GenerationDefaults()).options.params
    request = Request(request_id="r", prompt_token_ids=(5,), params=params, arrival_s=0)
    output = Output(request=request, finish_reason=FinishReason.STOP)
    for delta in deltas:
        shape.collect(0, delta)
    return shape.choice(0, output)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_however_tokens_come_together_a_stream_joins_to_the_whole(tokenizer: Tokenizer, sizes: list[int]) -> None:
    deltas = deltas_of(tokenizer, TEXT, sizes)
    by_stream, at_once = a_shape(tokenizer), a_shape(tokenizer)

    joined, choice = joined_choice(streamed(by_stream, deltas)), whole(at_once, deltas)

    message = {name: value for name, value in choice["message"].items() if name not in ("role", "refusal")}
    assert joined["message"] == message
    assert (joined["finish_reason"], choice["finish_reason"]) == ("tool_calls", "tool_calls")
    assert by_stream.num_reasoning_tokens() == at_once.num_reasoning_tokens()
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "search", "arguments": '{"q": "größer 🙂"}'},
        {"name": "f", "arguments": "{}"},
    ]


def test_arguments_stream_token_by_token_one_call_a_chunk(tokenizer: Tokenizer) -> None:
    chunks = streamed(a_shape(tokenizer), deltas_of(tokenizer, TEXT, [1]))
    together = streamed(a_shape(tokenizer), deltas_of(tokenizer, TEXT, [1000]))

    parts = [c["choices"][0]["delta"]["tool_calls"] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert len(parts) > 10
    assert [len(c["choices"][0]["delta"].get("tool_calls", [])) for c in together] == [0, 0, 0, 1, 1, 0]


def test_the_tokens_that_come_with_no_text_are_still_listed(tokenizer: Tokenizer) -> None:
    """A tool call's opening says nothing by itself, but its log-probabilities were asked for."""
    chunks = streamed(a_shape(tokenizer), deltas_of(tokenizer, TEXT, [1]))

    tokens = [entry for c in chunks for entry in (c["choices"][0]["logprobs"] or {}).get("content", [])]
    assert b"".join(bytes(entry["bytes"]) for entry in tokens).decode() == TEXT
