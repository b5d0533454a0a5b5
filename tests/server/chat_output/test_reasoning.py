"""Reasoning apart from the answer: the prompt says how it begins, the pieces change nothing, its tokens are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.chat_output.answer import AnswerFormat
from octavo_server.chat_output.formats import REASONING_FORMATS, TOOL_FORMATS
from octavo_server.chat_output.reasoning import Phase, ReasoningMeter, first_phase
from octavo_testing.chat_output import Read, read_pieces, read_whole, split_at

THINK, R1 = REASONING_FORMATS["think"], REASONING_FORMATS["deepseek_r1"]
MARKS = ("<think>", "</think>")


def an_answer(phase: Phase = Phase.UNDECIDED, name: str = "think", **fields: object) -> AnswerFormat:
    return AnswerFormat(reasoning=REASONING_FORMATS[name], phase=phase, **fields)  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(
    ("phase", "text", "reasoning", "content"),
    [
        (Phase.UNDECIDED, "<think>\nSo, 1 < 2.\n\nYes.\n</think>\n\nYes.\n", "So, 1 < 2.\n\nYes.", "Yes.\n"),
        (Phase.UNDECIDED, "\n <think></think>Yes", "", "Yes"),
        (Phase.UNDECIDED, "\nYes <think>no</think>", "", "\nYes <think>no</think>"),
        (Phase.UNDECIDED, "  <thin", "", "  <thin"),
        (Phase.UNDECIDED, "<think>and no end </thi", "and no end </thi", ""),
        (Phase.THINKING, "hm\n</think>\n\nYes", "hm", "Yes"),
        # A model that opens once more what its prompt has opened.
        (Phase.THINKING, "<think>\nhm</think>Yes", "hm", "Yes"),
        (Phase.THINKING, "no end\n", "no end\n", ""),
        (Phase.ANSWERING, "<think>literally</think>", "", "<think>literally</think>"),
        (Phase.UNDECIDED, "", "", ""),
    ],
)
def test_reasoning_is_told_apart(phase: Phase, text: str, reasoning: str, content: str) -> None:
    expected = Read(reasoning=reasoning, content=content)
    for end in range(len(text) + 1):
        whole = read_whole(an_answer(phase).parser(), text[:end])
        assert read_pieces(an_answer(phase).parser(), list(text[:end])) == whole

    assert whole == expected


@given(st.data())
def test_the_pieces_change_nothing(data: st.DataObject) -> None:
    """Reasoning in front of tool calls, marks anywhere."""
    parts = st.sampled_from(["<think>", "</think>", "\n", " hm", '<tool_call>{"name": "f"}</tool_call>', "<t", "yes"])
    text = "".join(data.draw(st.lists(parts, max_size=7)))
    form = an_answer(data.draw(st.sampled_from(Phase)), tools=TOOL_FORMATS["hermes"])
    places = data.draw(st.lists(st.integers(0, len(text) + 1), max_size=8))

    assert read_pieces(form.parser(), split_at(text, places)) == read_whole(form.parser(), text)


def test_calls_stand_behind_the_reasoning_and_not_in_it() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    form = an_answer(tools=TOOL_FORMATS["hermes"])

    read = read_whole(form.parser(), f"<think>I could {call}</think>\n\n{call}")

    assert read == Read(reasoning=f"I could {call}", calls=[("f", "{}")])


@pytest.mark.parametrize(
    ("prompt", "continued", "phase"),
    [
        ("<|im_start|>assistant\n", None, Phase.UNDECIDED),
        ("<|im_start|>assistant\n<think>\n", None, Phase.THINKING),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, Phase.ANSWERING),
        ("<｜Assistant｜></think>", None, Phase.ANSWERING),
        ("say <think><|im_end|>\n<|im_start|>assistant\n", None, Phase.UNDECIDED),
        ("…", "<think>\nSo far", Phase.THINKING),
        ("…", "<think>\nSo</think> far", Phase.ANSWERING),
        ("<think>", "My answer", Phase.ANSWERING),
    ],
)
def test_the_prompt_says_how_the_answer_begins(prompt: str, continued: str | None, phase: Phase) -> None:
    assert first_phase(THINK, prompt, continued) == phase


def test_r1_thinks_where_the_prompt_does_not_say() -> None:
    assert first_phase(R1, "<｜Assistant｜>") == Phase.THINKING
    assert first_phase(R1, "<｜Assistant｜><think>\n\n</think>\n") == Phase.ANSWERING


def counted(tokens: list[str], phase: Phase) -> int:
    meter = ReasoningMeter(THINK, phase, lambda token_id: tokens[token_id].encode())
    for token_id in range(len(tokens)):
        meter.add(token_id)
    return meter.count


@pytest.mark.parametrize(
    ("tokens", "phase", "count"),
    [
        (["<think>", "\n", "a", "b", "</think>", "\n\n", "yes"], Phase.UNDECIDED, 5),
        (["\n", "<th", "ink>", "a", "</", "think>", "yes"], Phase.UNDECIDED, 6),
        (["\n", "yes", "</think>"], Phase.UNDECIDED, 0),
        (["a", "b</think>c", "d"], Phase.THINKING, 2),
        (["a", "", "b"], Phase.THINKING, 3),
        (["a", "</think>", "b"], Phase.ANSWERING, 0),
        (["<think>a</think>b", "c"], Phase.UNDECIDED, 1),
        (["\n", "<thi", "s"], Phase.UNDECIDED, 0),
        ([], Phase.UNDECIDED, 0),
    ],
)
def test_tokens_count_from_the_first_mark_to_the_last(tokens: list[str], phase: Phase, count: int) -> None:
    assert counted(tokens, phase) == count


def test_half_a_character_is_a_token_too() -> None:
    halves = ["é".encode()[:1], "é".encode()[1:], b"</think>", b"x"]
    meter = ReasoningMeter(THINK, Phase.THINKING, halves.__getitem__)

    for token_id in range(4):
        meter.add(token_id)

    assert meter.count == 3


def test_what_the_client_does_not_want_is_left_out() -> None:
    calls = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' * 3
    tools = TOOL_FORMATS["hermes"]

    silent = read_whole(an_answer(shows_reasoning=False).parser(), "<think>hm</think>yes")
    one = read_whole(AnswerFormat(tools=tools, max_calls=1).parser(), calls)

    assert silent == Read(content="yes")
    assert one == Read(calls=[("f", '{"a": 1}')])


def test_forced_calls_need_no_format_of_the_model() -> None:
    calls = ' [{"name": "f", "parameters": {"a": [1]}}, {"name": "g", "parameters": {}}]\n'

    required = AnswerFormat(is_forced=True)
    named = AnswerFormat(forced_name="f", reasoning=THINK, phase=Phase.THINKING)

    for pieces in ([calls], list(calls)):
        assert read_pieces(required.parser(), pieces) == Read(calls=[("f", '{"a": [1]}'), ("g", "{}")])
    assert read_whole(named.parser(), 'hm</think>{"a": 1} ') == Read(reasoning="hm", calls=[("f", '{"a": 1}')])
    assert read_whole(required.parser(), '[{"name": "f", "para').calls == [("f", "")]
    assert read_whole(named.parser(), 'hm</think>{"a": "b').calls == [("f", '{"a": "b')]


def test_marks_are_those_of_both_parsers() -> None:
    assert an_answer(tools=TOOL_FORMATS["llama3_json"]).marks == ("<|python_tag|>", *MARKS)
    assert AnswerFormat().is_plain
    assert not an_answer().is_plain
