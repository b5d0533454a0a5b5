"""A prompt's tokens are those of the whole text, however little of it is read; what cannot fit is not read for long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from octavo_server.api.prompts import CUT_MARGIN_TOKENS, PIECE_CHARS, USUAL_TOKEN_CHARS, encode_bounded, encode_prompt
from octavo_server.engine.admission import Limits
from octavo_server.engine.served_model import ServedModel
from octavo_server.errors import InvalidRequestError
from octavo_server.models.config import GenerationDefaults, VectorSizes
from octavo_server.structured_output.compiler import GrammarCompiler
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer

CONTEXT = 256
WORDS = "A pod holds one or more containers, größer 日本 🙂. "


@dataclass
class Counting:
    """The tokenizer, which notes how much it was given."""

    inner: Tokenizer
    max_token_chars: int
    num_chars: int = 0
    most_chars: int = 0
    """Of one call."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.num_chars += len(text)
        self.most_chars = max(self.most_chars, len(text))
        return self.inner.encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Counting:
    # As of a vocabulary that has tokens of many spaces, so that characters alone say little.
    return Counting(load_tokenizer(tokenizer_folder), max_token_chars=128)


def a_model(tokenizer: Counting) -> ServedModel:
    return ServedModel(
        tokenizer=tokenizer,  # type: ignore[arg-type]  # the two methods that are used
        defaults=GenerationDefaults(),
        limits=Limits(max_sequence_tokens=CONTEXT, vocab_size=tokenizer.inner.vocab_size),
        vectors=VectorSizes(hidden=8),
        grammars=GrammarCompiler(tokenizer.inner, vocab_size=512, eos_token_ids=(1,)),
    )


@pytest.mark.parametrize("text", ["", WORDS, WORDS * 3])
def test_what_fits_is_the_whole_text(tokenizer: Counting, text: str) -> None:
    found = encode_prompt(a_model(tokenizer), text, add_special_tokens=True)

    assert found == tokenizer.inner.encode(text)
    assert tokenizer.num_chars == len(text)


def test_a_text_that_may_be_too_long_but_is_not_comes_whole(tokenizer: Counting) -> None:
    found = encode_bounded(
        tokenizer,  # type: ignore[arg-type]  # the two methods that are used
        WORDS * 40,
        len(tokenizer.inner.encode(WORDS * 40)),
        add_special_tokens=True,
        name="prompt",
        remedy="",
    )

    assert found == tokenizer.inner.encode(WORDS * 40)


@pytest.mark.parametrize("name", ["prompt", "input[3]"])
def test_what_cannot_fit_is_refused_before_it_is_read(tokenizer: Counting, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"more than .* tokens; the context holds 256") as refused:
        encode_prompt(a_model(tokenizer), WORDS * 600, add_special_tokens=True, name=name)

    assert refused.value.param == name
    assert tokenizer.num_chars <= 2 * CONTEXT * USUAL_TOKEN_CHARS
    with pytest.raises(InvalidRequestError, match="40,000 characters"):
        encode_prompt(a_model(tokenizer), "x" * 40_000, add_special_tokens=True, name=name)


def test_what_a_large_limit_may_not_hold_is_counted_in_pieces_too(tokenizer: Counting) -> None:
    """A million tokens may be made, but of a text of millions no more are made at once."""
    text = WORDS * 80_000
    with pytest.raises(InvalidRequestError, match="tokens; send less"):
        encode_bounded(
            tokenizer,  # type: ignore[arg-type]  # the two methods that are used
            text,
            10**6,
            add_special_tokens=True,
            name="prompt",
            remedy="send less",
        )

    assert tokenizer.most_chars <= PIECE_CHARS


@pytest.mark.parametrize("keep", [1, 5, 60])
@pytest.mark.parametrize("text", [WORDS, WORDS * 2000, "x" * 5 + "🙂" * 3000])
def test_the_last_tokens_are_those_of_the_whole_text(tokenizer: Counting, text: str, keep: int) -> None:
    found = encode_prompt(a_model(tokenizer), text, add_special_tokens=True, keep=keep)

    assert found == tokenizer.inner.encode(text)[-keep:]
    assert tokenizer.num_chars <= 4 * (keep + CUT_MARGIN_TOKENS) * USUAL_TOKEN_CHARS


class LongWords:
    """A token a word, of which each is longer than most tokens are."""

    max_token_chars = 128

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [len(word) for word in text.split()]


def test_the_end_of_a_text_of_long_tokens_is_read_as_far_as_needed(tokenizer: Counting) -> None:
    words = ["x" * (30 + number % 50) for number in range(2000)]
    model = replace(a_model(tokenizer), tokenizer=LongWords())  # type: ignore[arg-type]  # the two methods that are used

    found = encode_prompt(model, " ".join(words), add_special_tokens=True, keep=700)

    assert found == [len(word) for word in words[-700:]]
