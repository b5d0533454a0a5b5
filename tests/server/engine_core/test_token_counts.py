"""Counts kept token by token are those of the whole list."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from octavo_server.engine.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 30), max_size=80)


@given(prompt=TOKENS, output=TOKENS)
def test_counts_are_of_the_output_and_tokens_of_both(prompt: list[int], output: list[int]) -> None:
    counts = TokenCounts(prompt)

    for number, token_id in enumerate(output, start=1):
        counts.add(token_id)

        expected = Counter(output[:number])
        assert dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True)) == {
            token_id: expected[token_id] for token_id in [*prompt, *output[:number]]
        }
