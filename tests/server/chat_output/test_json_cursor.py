"""JSON read while it comes; the oracle is Python's json."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.chat_output.json_cursor import JsonCursor

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def taken(text: str) -> tuple[str, JsonCursor]:
    """What the cursor passes on of a text, character by character."""
    cursor, passed = JsonCursor(), ""
    for character in text:
        while not cursor.is_complete and not cursor.is_broken:
            count, piece = cursor.take(character)
            passed += piece
            if count:
                break
    cursor.end()
    return passed, cursor


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_valid_json_is_passed_on_as_it_is(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    passed, cursor = taken(text)

    assert (passed, cursor.is_complete) == (text, True)


@given(VALUES, st.integers(min_value=0), st.characters(exclude_categories=["Cs"]))
def test_what_was_passed_on_is_the_beginning_of_valid_json(value: object, place: int, wrong: str) -> None:
    """Whatever stands in it: what the cursor calls complete, Python reads."""
    text = json.dumps(value, ensure_ascii=False)
    at = place % (len(text) + 1)

    passed, cursor = taken(text[:at] + wrong + text[at:])

    if cursor.is_complete:
        json.loads(passed)


@pytest.mark.parametrize(
    "text",
    ["{1: 2}", "[1,]", '{"a" 1}', '{"a": 1,}', "[}", "tru1", "01", "1.", "-", "{'a': 1}", '"\\u12g4"', "NaN", "]", ":"],
)
def test_what_is_no_json_is_broken(text: str) -> None:
    _, cursor = taken(text + " ")

    assert cursor.is_broken


@pytest.mark.parametrize(
    ("text", "value"),
    [('"a\nb\tc\x01"', "a\nb\tc\x01"), (r'"it\'s"', "it's"), (r'"\d+\.\w"', r"\d+\.\w"), ('"\\\n"', "\\\n")],
)
def test_slips_inside_strings_are_mended(text: str, value: str) -> None:
    passed, cursor = taken(text)

    assert cursor.is_complete
    assert json.loads(passed) == value


def test_what_stands_behind_the_value_is_left() -> None:
    for text in ('{"a": [1]}', '"x"', "12", "true"):
        assert JsonCursor().take(text + "</end>")[0] == len(text)
