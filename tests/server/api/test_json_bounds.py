"""What is counted before a body is parsed: values and keys, and nothing that stands in a string."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.api import json_bounds
from octavo_server.api.json_bounds import MAX_KEYS, MAX_VALUES, too_many
from octavo_testing.server import a_completion, fake_server

ANY_JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a,:[{"\\é\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a,:[{"\\'), inner),
    max_leaves=20,
)


def num_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(num_keys, value.values()))
    return sum(map(num_keys, value)) if isinstance(value, list) else 0


@given(value=ANY_JSON, is_ascii=st.booleans())
def test_keys_are_counted_exactly(value: Any, is_ascii: bool) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    keys = num_keys(value)

    assert not json_bounds._has_more(raw, b":", keys)
    assert keys == 0 or json_bounds._has_more(raw, b":", keys - 1)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"[" + b"1," * MAX_VALUES + b"1]", "1,048,576 values"),
        (b"[" + b"[]," * MAX_VALUES + b"1]", "1,048,576 values"),
        (b"[" * (MAX_VALUES + 1), "1,048,576 values"),
        (b"{" + b'"":1,' * (MAX_KEYS + 1) + b'"":1}', "131,072 keys"),
    ],
    ids=["numbers", "arrays", "deep", "keys"],
)
def test_too_many_are_named(raw: bytes, what: str) -> None:
    assert what in str(too_many(raw))


@pytest.mark.parametrize("text", [",[{:", '\\",:', "\\\\,:"], ids=["plain", "quotes", "backslashes"])
def test_a_long_text_is_one_value(text: str) -> None:
    assert too_many(json.dumps({"prompt": text * (MAX_VALUES // 3 + 1)}).encode()) is None


async def test_a_body_with_too_many_keys_is_refused(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_bounds, "MAX_KEYS", 30_000)
    async with fake_server(tokenizer_folder) as server:
        answer = await server.post("/v1/completions", a_completion(extra={str(n): n for n in range(30_000)}))
        other = await server.post("/v1/completions", a_completion())

    error = answer.json["error"]
    assert (answer.status, error["code"]) == (400, "too_many_values")
    assert "30,000 keys; send fewer" in error["message"]
    assert other.status == 200
