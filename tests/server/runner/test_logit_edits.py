"""What may be chosen at all: grammars, allowed tokens, bad words, and what is said where nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from octavo_kernels.backend import select_backend
from octavo_server.engine.logit_edits import MAX_REMEMBERED, LogitEdits
from octavo_server.engine.outputs import NOTHING_LEFT, SampledToken, ScheduledSequence, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.sampler import Sampler
from octavo_server.engine.sequence import Sequence
from octavo_testing.stepping import chosen

EOS = 7
VOCABULARY = 8
INF = float("inf")


class AGrammar:
    """Allows `tokens`, or cannot go on where they are None."""

    def __init__(self, tokens: list[int] | None) -> None:
        self._tokens = tokens
        self.error = "" if tokens is not None else "too complex"

    def allowed_tokens(self) -> bytes | None:
        return None if self._tokens is None else sum(1 << token for token in self._tokens).to_bytes(4, "little")

    def accept(self, token_id: int) -> bool:
        raise AssertionError("the scheduler takes tokens in, not the sampler")


def an_item(
    output: list[int] | None = None,
    *,
    grammar: AGrammar | None = None,
    bad: tuple[tuple[int, ...], ...] = (),
    **params: Any,
) -> ScheduledSequence:
    request = Request(
        request_id="r",
        prompt_token_ids=(1,),
        params=SamplingParams(**{"temperature": 0.0, **params}),
        arrival_s=0.0,
        bad_token_ids=bad,
    )
    sequence = Sequence(sequence_id=SequenceId(1), request=request, grammar=grammar)
    for token_id in output or []:
        sequence.append(token_id)
    return ScheduledSequence(sequence=sequence, start=sequence.num_tokens - 1, num_tokens=1, samples=True)


def choose(*items: ScheduledSequence, logits: list[float] | None = None) -> list[int | str]:
    """What each row becomes; a higher id is likelier where no logits are given."""
    row = torch.arange(float(VOCABULARY)) if logits is None else torch.tensor(logits)
    sampler = Sampler(select_backend("cpu"), (EOS,))
    found = chosen(sampler, row.repeat(len(items), 1), items)
    return [item.token_id if isinstance(item, SampledToken) else item for item in found]


def test_a_grammar_leaves_only_what_it_allows_in_its_own_row() -> None:
    assert choose(an_item(), an_item(grammar=AGrammar([2, 4])), an_item(grammar=AGrammar([0]))) == [7, 4, 0]


def test_a_grammar_that_cannot_go_on_ends_its_row_alone() -> None:
    assert choose(an_item(grammar=AGrammar(None)), an_item()) == ["structured_outputs: too complex", 7]


def test_only_allowed_tokens_are_chosen() -> None:
    assert choose(an_item(allowed_token_ids=(1, 5)), an_item()) == [5, 7]


def test_what_many_requests_allow_is_not_mixed_up_and_not_kept_for_ever() -> None:
    edits = LogitEdits((EOS,))
    for turn in range(3 * MAX_REMEMBERED):
        item = an_item(allowed_token_ids=(turn % EOS, turn // EOS % EOS))
        for _ in range(2):
            logits = torch.zeros(1, VOCABULARY)

            assert edits.apply(logits, [item], [0]) == {}

            assert {*torch.nonzero(logits[0] == 0).flatten().tolist()} == {turn % EOS, turn // EOS % EOS}
    assert len(edits._forbidden) == MAX_REMEMBERED


@pytest.mark.parametrize(
    ("output", "bad", "expected"),
    [
        ([], ((7,),), 6),
        ([], ((7,), (6,)), 5),
        ([3], ((3, 7),), 6),
        ([2], ((3, 7),), 7),
        ([], ((1, 7),), 7),
        ([3, 4], ((2, 3, 4, 7),), 7),
        ([2, 3, 4], ((2, 3, 4, 7),), 6),
    ],
    ids=["one", "two", "prefix", "other-prefix", "prefix-in-the-prompt", "part-of-the-prefix", "long-prefix"],
)
def test_a_bad_word_loses_its_last_token_where_the_output_ends_with_the_others(
    output: list[int], bad: tuple[tuple[int, ...], ...], expected: int
) -> None:
    assert choose(an_item(output, bad=bad)) == [expected]


@pytest.mark.parametrize(
    "make",
    [
        lambda: an_item(allowed_token_ids=(3,), bad=((3,),)),
        lambda: an_item(grammar=AGrammar([2]), allowed_token_ids=(3,)),
        lambda: an_item(grammar=AGrammar([2]), bad=((2,),)),
        lambda: an_item(allowed_token_ids=(EOS,), min_tokens=3),
        lambda: an_item(grammar=AGrammar([])),
    ],
    ids=["allowed-and-bad", "grammar-and-allowed", "grammar-and-bad", "only-the-end", "empty-grammar"],
)
def test_where_nothing_is_left_the_row_says_so_and_the_others_go_on(make: Callable[[], ScheduledSequence]) -> None:
    assert choose(make(), an_item()) == [NOTHING_LEFT, 7]


def test_a_biased_row_is_not_taken_for_an_empty_one() -> None:
    assert choose(an_item(grammar=AGrammar([2]), logit_bias={2: -100.0})) == [2]


def test_min_tokens_keeps_an_output_from_ending_where_its_grammar_could_go_on() -> None:
    assert choose(an_item(grammar=AGrammar([3, EOS]), min_tokens=2)) == [3]


def test_a_fulfilled_grammar_ends_the_output_however_short() -> None:
    assert choose(an_item(grammar=AGrammar([EOS]), min_tokens=2)) == [EOS]


def test_log_probabilities_are_raw_whatever_may_be_chosen() -> None:
    sampler = Sampler(select_backend("cpu"), (EOS,))

    [token] = chosen(sampler, torch.arange(8.0).unsqueeze(0), [an_item(allowed_token_ids=(1, 5), logprobs=8)])

    expected = torch.arange(8.0).log_softmax(0).flip(0).tolist()
    assert isinstance(token, SampledToken)
    assert [entry.logprob for entry in token.top_logprobs] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("params", "kept", "temperature"),
    [
        ({"temperature": 0.5}, range(8), 0.5),
        ({"temperature": 0.0}, range(8), 1.0),
        ({"temperature": 1.0, "top_k": 3}, (5, 6, 7), 1.0),
        ({"temperature": 1.0, "allowed_token_ids": (1, 5)}, (1, 5), 1.0),
        ({"temperature": 2.0, "top_p": 0.5}, (6, 7), 2.0),
        ({"temperature": 1.0, "min_p": 0.1}, (5, 6, 7), 1.0),
    ],
    ids=["temperature", "greedy", "top-k", "allowed", "top-p", "min-p"],
)
def test_processed_log_probabilities_are_those_of_the_draw(
    params: dict[str, Any], kept: tuple[int, ...], temperature: float
) -> None:
    sampler = Sampler(select_backend("cpu"), (EOS,), "processed")

    [token] = chosen(sampler, torch.arange(8.0).unsqueeze(0), [an_item(logprobs=8, **params)])

    expected = torch.full((8,), -INF)
    expected[list(kept)] = torch.arange(8.0)[list(kept)] / temperature
    expected = expected.log_softmax(0)
    assert isinstance(token, SampledToken)
    found = {entry.token_id: entry.logprob for entry in token.top_logprobs}
    assert [found[token_id] for token_id in range(8)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert token.logprob is not None
    assert token.logprob.logprob > -INF


def test_processed_prompt_log_probabilities_follow_temperature_bias_and_allowed_tokens() -> None:
    sampler = Sampler(select_backend("cpu"), (EOS,), "processed")
    params = SamplingParams(temperature=2.0, allowed_token_ids=(1, 2), logit_bias={1: 4.0}, repetition_penalty=1.5)

    logits = sampler.prompt_logits(torch.arange(8.0).unsqueeze(0), [params])[0]

    assert logits.tolist() == [-INF, 2.5, 1.0, -INF, -INF, -INF, -INF, -INF]
