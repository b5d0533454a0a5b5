"""What a sequence derives from its tokens."""

from __future__ import annotations

from octavo_testing.sequences import a_sequence


def test_tokens_are_prompt_then_output() -> None:
    sequence = a_sequence([1, 2, 3], arrival_s=4.5)
    sequence.token_ids += [8, 9]
    sequence.num_computed_tokens = 3

    assert sequence.request.prompt_token_ids == (1, 2, 3)
    assert sequence.num_prompt_tokens == 3
    assert sequence.num_tokens == 5
    assert sequence.output_token_ids == [8, 9]
    assert sequence.num_output_tokens == 2
    assert sequence.arrival_s == 4.5
    assert not sequence.is_finished


def test_sequences_of_equal_content_are_two_streams() -> None:
    assert a_sequence([1]) != a_sequence([1])
