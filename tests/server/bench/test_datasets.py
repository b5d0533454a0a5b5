"""What is asked: the same for the same seed, of the lengths that the flags say, or what a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from octavo_server.bench.datasets import Ask, Dataset, read_asks, sha256_of
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.errors import ConfigError


def a_dataset(**fields: Any) -> Dataset:
    return Dataset(**{"prompt_tokens": 10, "max_tokens": 4, "vocab_size": 512, **fields})


def test_prompts_are_the_same_for_the_same_seed_and_share_what_was_asked() -> None:
    shape = PromptShape(num_tokens=10, shared_prefix=4, vocab_size=512)

    prompts = make_prompts(shape, 3, seed=1)

    assert prompts == make_prompts(shape, 3, seed=1)
    assert prompts != make_prompts(shape, 3, seed=2)
    assert {len(prompt) for prompt in prompts} == {10}
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 1
    assert len({tuple(prompt[4:]) for prompt in prompts}) == 3
    assert len(str(make_prompts(PromptShape(num_tokens=7), 1, seed=1)[0]).split()) == 7


def test_the_hash_tells_whether_the_same_was_asked() -> None:
    asks = a_dataset().asks(5, seed=3)

    assert sha256_of(asks) == sha256_of(a_dataset().asks(5, seed=3))
    assert sha256_of(asks) != sha256_of(a_dataset().asks(5, seed=4))
    assert sha256_of(asks) != sha256_of(a_dataset(max_tokens=5).asks(5, seed=3))


def test_words_and_ids_have_the_length_that_was_asked() -> None:
    assert {(len(ask.content), ask.max_tokens) for ask in a_dataset().asks(5, seed=0)} == {(10, 4)}
    assert {len(str(ask.content).split()) for ask in a_dataset(vocab_size=None).asks(5, seed=0)} == {10}


def test_ragged_lengths_fill_their_range() -> None:
    asks = a_dataset(prompt_tokens=100, max_tokens=50, range_ratio=0.5).asks(400, seed=0)

    given, answers = [len(ask.content) for ask in asks], [ask.max_tokens for ask in asks]
    assert (min(given), max(given)) == (50, 150)
    assert (min(answers), max(answers)) == (25, 75)
    assert mean(given) == pytest.approx(100, rel=0.05)


def test_lengths_like_sharegpts_have_its_means_and_a_long_tail() -> None:
    asks = a_dataset(kind="sharegpt-like", prompt_tokens=161, max_tokens=338).asks(4000, seed=0)

    given, answers = [len(ask.content) for ask in asks], [ask.max_tokens for ask in asks]
    # The cut at 1,024 takes a little from the tails.
    assert mean(given) == pytest.approx(161, rel=0.12)
    assert mean(answers) == pytest.approx(338, rel=0.12)
    assert median(given) < 0.7 * mean(given)
    assert max(given + answers) == 1024
    assert min(given + answers) >= 1


def test_each_group_of_prompts_begins_alike() -> None:
    asks = a_dataset(shared_prefix=6, prefix_groups=2).asks(6, seed=0)

    beginnings = [tuple(ask.content[:6]) for ask in asks]
    assert beginnings == beginnings[:2] * 3
    assert len(set(beginnings)) == 2
    assert len({tuple(ask.content) for ask in asks}) == 6


def test_a_prefix_as_long_as_the_prompt_leaves_something_to_ask() -> None:
    asks = a_dataset(shared_prefix=10).asks(2, seed=0)

    assert {len(ask.content) for ask in asks} == {11}


def test_lines_hold_prompts_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    lines = [{"prompt": "a"}, {"messages": messages, "max_tokens": 7}, {"prompt": [4, 5]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")

    asks = read_asks(str(path), None, seed=0)

    assert sorted(map(str, asks)) == sorted(
        map(
            str,
            [
                Ask(content="a", max_tokens=128),
                Ask(content=messages, max_tokens=7),
                Ask(content=[4, 5], max_tokens=128),
            ],
        )
    )
    assert {ask.max_tokens for ask in read_asks(str(path), 3, seed=0)} == {3}


def test_sharegpts_first_turns_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "x" * 40}, {"from": "human", "value": "So?"}]
    path.write_text(json.dumps([{"id": "1", "conversations": turns}, {"id": "2", "conversations": turns[:1]}]))

    assert read_asks(str(path), None, seed=0) == [Ask(content="Why?", max_tokens=10)]


def test_a_files_order_is_the_seeds(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(20)))

    one, same, other = (read_asks(str(path), 1, seed=seed) for seed in (1, 1, 2))

    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n{"text": "b"}', "line 2: needs"),
        ('{"prompt": ""}', "line 1: needs"),
        ('{"prompt": "a"}\nb', "line 2 is no JSON"),
        ('{"prompt": "a", "max_tokens": 0}', "line 1: max_tokens is 0"),
        ("[1", "is no JSON"),
        ('[{"conversations": [{"from": "human"}]}]', "item 0"),
        ("[]", "holds no prompts"),
        ("", "holds no prompts"),
    ],
)
def test_a_file_that_cannot_be_asked_is_told(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "prompts"
    path.write_text(content)

    with pytest.raises(ConfigError, match=words):
        read_asks(str(path), None, seed=0)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot read --dataset-path"):
        read_asks("/nowhere/prompts.jsonl", None, seed=0)
