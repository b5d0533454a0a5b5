"""Every format, on what its models write: the pieces change nothing, nothing is lost, arguments are JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.chat_output.formats import TOOL_FORMATS
from octavo_server.chat_output.parser import OutputParser
from octavo_testing.chat_output import Read, read_pieces, read_whole, split_at

SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "where": {"type": "object"},
        },
    },
    "search": {},
}
PARIS = ("get_weather", {"city": "Paris"})
HARD = {
    "q": 'nested {"a": [1, {"b": "}]"}]} </tool_call> "quoted" \\ back\nline',
    "größe": ["東京", None, -1.5e3, "🙂"],
}
HARD_JSON = json.dumps(HARD, ensure_ascii=False)
HARD_ASCII = json.dumps(HARD)
D_CALLS, D_CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
D_CALL, D_SEP, D_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

# Format, text, content, calls.
CORPUS: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", "Just text, <b>no</b> call < here", "Just text, <b>no</b> call < here", []),
    ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    (
        "hermes",
        'Let me look.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        f'<tool_call>\n{{"arguments": {HARD_JSON}, "name": "search"}}\n</tool_call>\nDone.',
        "Let me look.\n\n\n\nDone.",
        [PARIS, ("search", HARD)],
    ),
    ("hermes", f'<tool_call>{{"name": "search", "arguments": {HARD_ASCII}}}</tool_call>', "", [("search", HARD)]),
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n{"name": "search"}\n</tool_call>',
        "",
        [PARIS, ("search", {})],
    ),
    # The outer brace is missing, which small models do.
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}\n</tool_call>', "", [PARIS]),
    ("hermes", '<tool_call>{"name": "search", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("search", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "search", "arguments": null}</tool_call>', "", [("search", {})]),
    ("hermes", '<tool_call>{"name": "search", "arguments": "Paris"}</tool_call>', "", [("search", "Paris")]),
    ("hermes", "<tool_call>not json</tool_call> after", "<tool_call>not json</tool_call> after", []),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ("hermes", '<tool_call>["x"]</tool_call>', '<tool_call>["x"]</tool_call>', []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    (
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        "",
        [PARIS],
    ),
    (
        "llama3_json",
        f'\n\n{{"type": "function", "name": "get_weather", "parameters": {{"city": "Paris"}}}}; '
        f'{{"name": "search", "arguments": {HARD_JSON}}}',
        "",
        [PARIS, ("search", HARD)],
    ),
    ("llama3_json", '{"name": "Alice", "parameters": {}}', '{"name": "Alice", "parameters": {}}', []),
    ("llama3_json", '{"answer": {"name": "search"}}', '{"answer": {"name": "search"}}', []),
    ("llama3_json", 'Say {"name": "search", "parameters": {}}', 'Say {"name": "search", "parameters": {}}', []),
    (
        "llama3_json",
        'I call <|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}} now',
        "I call  now",
        [PARIS],
    ),
    ("llama3_json", '<|python_tag|>brave.call(query="x")', '<|python_tag|>brave.call(query="x")', []),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {{"city": "Paris"}}}}, '
        f'{{"name": "search", "arguments": {HARD_JSON}}}]',
        "",
        [PARIS, ("search", HARD)],
    ),
    (
        "mistral",
        f'Sure.[TOOL_CALLS]get_weather[ARGS]{{"city": "Paris"}}[TOOL_CALLS]search[CALL_ID]abcdef123[ARGS]{HARD_JSON}',
        "Sure.",
        [PARIS, ("search", HARD)],
    ),
    ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris"}', "", [PARIS]),
    ("mistral", "[TOOL_CALLS] nothing", "[TOOL_CALLS] nothing", []),
    ("mistral", "[1, 2] and [TOOLS]", "[1, 2] and [TOOLS]", []),
    (
        "deepseek_v3",
        f'{D_CALLS}{D_CALL}function{D_SEP}get_weather\n```json\n{{"city": "Paris"}}\n```{D_END}\n'
        f"{D_CALL}function{D_SEP}search\n```json\n{HARD_JSON}\n```{D_END}{D_CALLS_END}",
        "",
        [PARIS, ("search", HARD)],
    ),
    (
        "deepseek_v3",
        f'On it.{D_CALLS}{D_CALL}get_weather{D_SEP}{{"city": "Paris"}}{D_END}{D_CALL}search{D_SEP}{{}}{D_END}{D_CALLS_END}',
        "On it.",
        [PARIS, ("search", {})],
    ),
    ("deepseek_v3", f"{D_CALLS}oops", f"{D_CALLS}oops", []),
    ("deepseek_v3", f"{D_CALL}function{D_SEP}f\nno json", f"{D_CALL}function{D_SEP}f\nno json", []),
    ("generic", '{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    (
        "generic",
        'I shall look:\n```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```',
        "I shall look:",
        [PARIS],
    ),
    (
        "generic",
        f'[{{"name": "get_weather", "arguments": {{"city": "Paris"}}}}, {{"name": "search", "arguments": {HARD_JSON}}}]',
        "",
        [PARIS, ("search", HARD)],
    ),
    (
        "generic",
        '```python\nx = {"name": 1}\n```\n{"name": "Bob"}\n[1, 2]',
        '```python\nx = {"name": 1}\n```\n{"name": "Bob"}\n[1, 2]',
        [],
    ),
    ("generic", '[{"name": "Bob"}] is a list', '[{"name": "Bob"}] is a list', []),
    (
        "qwen3_coder",
        "Writing.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        '<parameter=where>\n{"lat": 1.5}\n</parameter>\n<parameter=units>\nnull\n</parameter>\n</function>\n</tool_call>',
        "Writing.",
        [("get_weather", {"city": "Paris", "days": 3, "where": {"lat": 1.5}, "units": None})],
    ),
    (
        "qwen3_coder",
        '<tool_call>\n<function=search>\n<parameter=code>\n  if a < b:\n    print("<x>\\n")\n\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=search>\n</function>\n</tool_call>",
        "",
        [("search", {"code": '  if a < b:\n    print("<x>\\n")\n'}), ("search", {})],
    ),
    (
        "qwen3_coder",
        "<function=get_weather><parameter=days>many</parameter><parameter=city>5</parameter><parameter=units>5</parameter></function>",
        "",
        [("get_weather", {"days": "many", "city": "5", "units": "5"})],
    ),
    ("qwen3_coder", "<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
    (
        # Half of a pair of escapes is no text, and would end the whole answer.
        "hermes",
        r'<tool_call>{"name": "f\ud83d", "arguments": "{\"q\": \"\ud83d\", \"r\": \"\ud83d\ude42\"}"}</tool_call>',
        "",
        [("f\ufffd", {"q": "\ufffd", "r": "🙂"})],
    ),
]
IDS = [f"{name}-{number}" for number, (name, *_) in enumerate(CORPUS)]


def a_parser(name: str) -> OutputParser:
    return TOOL_FORMATS[name].make(SCHEMAS)


@pytest.mark.parametrize(("name", "text", "content", "calls"), CORPUS, ids=IDS)
def test_what_models_write_is_read(name: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    read = read_whole(a_parser(name), text)

    assert (read.content, read.parsed_calls) == (content, calls)


@pytest.mark.parametrize("number", range(len(CORPUS)), ids=IDS)
def test_the_pieces_change_nothing_wherever_the_text_is_cut_off(number: int) -> None:
    """Character by character and in pairs, for the text and all its beginnings."""
    name, text, *_ = CORPUS[number]
    for end in range(len(text) + 1):
        cut = text[:end]
        whole = read_whole(a_parser(name), cut)

        assert read_pieces(a_parser(name), list(cut)) == whole
        assert read_pieces(a_parser(name), split_at(cut, range(1, end, 2))) == whole


@given(st.data())
def test_the_pieces_change_nothing_for_any_split_of_any_mixture(data: st.DataObject) -> None:
    """Texts of one format after each other, and broken in the middle."""
    name = data.draw(st.sampled_from(sorted(TOOL_FORMATS)))
    own = [text for form, text, *_ in CORPUS if form == name]
    text = "".join(data.draw(st.lists(st.sampled_from([*own, " and ", "{", "\n"]), max_size=4)))
    gone = data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, 12)))
    text = text[: gone[0]] + text[sum(gone) :]
    places = data.draw(st.lists(st.integers(0, len(text) + 1), max_size=12))

    assert read_pieces(a_parser(name), split_at(text, places)) == read_whole(a_parser(name), text)


@given(st.data())
def test_no_word_of_a_text_is_lost_however_it_is_broken(data: st.DataObject) -> None:
    """Punctuation belongs to the formats; what a model said is in the content or in the calls."""
    name = data.draw(st.sampled_from(["hermes", "llama3_json", "mistral", "generic"]))
    # An id and a type are the format's, too.
    texts = [text for form, text, *_ in CORPUS if form == name and '"type"' not in text and "CALL_ID" not in text]
    text = data.draw(st.sampled_from(texts))
    at = data.draw(st.integers(0, len(text)))
    broken = text[:at] + data.draw(st.sampled_from([" LOST ", '"', "}", "]", ""])) + text[at:]

    read = read_whole(a_parser(name), broken)

    assert broken.count("LOST") == _all_text(read).count("LOST")


def _all_text(read: Read) -> str:
    return read.content + "".join(name + text for name, text in read.calls)


def test_arguments_come_before_the_call_is_whole() -> None:
    parser = a_parser("hermes")

    read = read_pieces_until_now(parser, '<tool_call>{"name": "search", "arguments": {"q": "a lo')

    assert read.calls == [("search", '{"q": "a lo')]


def read_pieces_until_now(parser: OutputParser, text: str) -> Read:
    from octavo_testing.chat_output import join

    return join(parser.feed(text))


def test_a_call_that_is_cut_off_keeps_what_came() -> None:
    assert read_whole(a_parser("hermes"), '<tool_call>{"name": "search", "arg').calls == [("search", "")]
    assert read_whole(a_parser("hermes"), '<tool_call>{"na').content == '<tool_call>{"na'
    assert read_whole(a_parser("qwen3_coder"), "<function=search><parameter=a>it is").calls == [
        ("search", '{"a": "it is')
    ]


def test_arguments_that_break_off_are_followed_by_the_rest_as_content() -> None:
    read = read_whole(a_parser("hermes"), '<tool_call>{"name": "search", "arguments": {"a": 1, b: 2}}</tool_call>!')

    assert (read.calls, read.content) == ([("search", '{"a": 1, ')], "b: 2}}</tool_call>!")
