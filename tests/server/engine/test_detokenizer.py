"""Text leaves whole characters at a time, never a stop string's beginning, and the same however tokens arrive."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.engine.detokenizer import Detokenizer

SPECIAL = 999


class Bytes:
    """Token 0..255 is that byte; further tokens stand for the given texts; SPECIAL is hidden."""

    def __init__(self, texts: list[bytes] | None = None) -> None:
        self.texts = texts or []

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == SPECIAL:
            return b"<special>"
        return bytes([token_id]) if token_id < 256 else self.texts[token_id - 256]

    def is_special(self, token_id: int) -> bool:
        return token_id == SPECIAL


@dataclass(frozen=True)
class Read:
    text: str
    num_shown: int
    """Tokens that the text shows."""
    stop: str | None
    num_hidden_bytes: int = 0


def read_all(detokenizer: Detokenizer, pieces: list[list[int]]) -> Read:
    text, count = "", 0
    for piece in pieces:
        delta = detokenizer.append(piece)
        text, count = text + delta.text, count + len(piece)
        if delta.stop is not None:
            return Read(text, count - delta.num_held_tokens, delta.stop, delta.num_hidden_bytes)
    return Read(text + detokenizer.finish(), count, None)


def split(items: list[int], cuts: list[int]) -> list[list[int]]:
    points = sorted({min(cut, len(items)) for cut in cuts} | {0, len(items)})
    return [items[low:high] for low, high in pairwise(points)]


def test_half_a_character_is_held_until_the_other_half_comes() -> None:
    euro = list("€".encode())
    detokenizer = Detokenizer(Bytes())

    texts = [detokenizer.append([byte]).text for byte in euro]

    assert texts == ["", "", "€"]


def test_the_bytes_of_half_a_character_at_the_end_are_dropped() -> None:
    assert Read("a", 3, None) == read_all(Detokenizer(Bytes()), [[ord("a"), 0xE2, 0x82]])


def test_bytes_that_are_no_utf8_become_the_replacement_character() -> None:
    assert read_all(Detokenizer(Bytes()), [[ord("a"), 0xFF, ord("b")]]).text == "a\ufffdb"


@pytest.mark.parametrize(("skip", "expected"), [(True, "ab"), (False, "a<special>b")])
def test_special_tokens_are_hidden_where_asked(skip: bool, expected: str) -> None:
    detokenizer = Detokenizer(Bytes(), skip_special_tokens=skip)

    assert expected == read_all(detokenizer, [[ord("a"), SPECIAL, ord("b")]]).text


def test_the_beginning_of_a_stop_string_waits_until_it_cannot_become_one() -> None:
    detokenizer = Detokenizer(Bytes(), stop=["<end>"])

    texts = [detokenizer.append([byte]).text for byte in b"a<en,"]

    assert texts == ["a", "", "", "", "<en,"]


def test_what_was_held_back_comes_out_at_the_end() -> None:
    assert Read("a<en", 4, None) == read_all(Detokenizer(Bytes(), stop=["<end>"]), [list(b"a<en")])


@pytest.mark.parametrize(("include", "expected"), [(False, "ab"), (True, "ab<end>")])
def test_a_stop_string_ends_the_text(include: bool, expected: str) -> None:
    detokenizer = Detokenizer(Bytes(), stop=["<end>"], include_stop=include)

    assert Read(expected, len(expected), "<end>") == read_all(detokenizer, [list(b"ab<end>cd")])


def test_of_several_stop_strings_the_first_that_is_complete_wins() -> None:
    whole = read_all(Detokenizer(Bytes([b"xabcz"]), stop=["abcz", "b"]), [[256]])
    single = read_all(Detokenizer(Bytes(), stop=["abcz", "b"]), [[byte] for byte in b"xabcz"])

    assert ("xa", "b") == (whole.text, whole.stop) == (single.text, single.stop)


def test_of_two_that_are_complete_at_once_the_longest_wins() -> None:
    assert Read("x", 1, "abc") == read_all(Detokenizer(Bytes(), stop=["c", "abc"]), [list(b"xabc")])


def test_text_that_min_tokens_demands_does_not_stop() -> None:
    detokenizer = Detokenizer(Bytes(), stop=["b"], min_tokens=3)

    assert Read("abba", 4, "b") == read_all(detokenizer, [list(b"abbab")])


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab€🙂", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=4),
    tokens=st.lists(
        st.one_of(st.integers(256, 259), st.sampled_from([97, 98, 0xE2, 0x82, 0xAC, SPECIAL])), max_size=30
    ),
    stop=st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
    min_tokens=st.integers(0, 4),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_every_split_gives_the_same_text_and_stops_at_the_same_token(
    texts: list[bytes], tokens: list[int], stop: list[str], include: bool, min_tokens: int, cuts: list[int]
) -> None:
    table = Bytes([texts[i % len(texts)] for i in range(4)])

    def detokenizer() -> Detokenizer:
        return Detokenizer(table, stop=stop, include_stop=include, min_tokens=min_tokens)

    whole = read_all(detokenizer(), [tokens])

    assert whole == read_all(detokenizer(), split(tokens, cuts))
    assert whole == read_all(detokenizer(), [[token] for token in tokens])


def test_a_token_waits_with_its_text_and_one_in_which_a_stop_string_begins_is_cut() -> None:
    detokenizer = Detokenizer(Bytes([b"so<e", b"nd>x"]), stop=["<end>"])

    first, second = detokenizer.append([256]), detokenizer.append([257])

    assert (first.text, first.num_held_tokens) == ("", 1)
    assert (second.text, second.num_held_tokens, second.num_hidden_bytes) == ("so", 1, 2)


@pytest.mark.parametrize(
    ("tokens", "stop", "text", "num_hidden"),
    [
        ([b"so\xff"], "\ufffd", "so", 1),
        ([b"so\xe2\x82x"], "\ufffdx", "so", 3),
        ([b"so\xff\xc3"], "\ufffd", "so", 2),
        ([b"so\xef\xbf\xbd"], "\ufffd", "so", 3),
        ([b"\xe2\x82", b"\xacso\xff\xff!"], "\ufffd!", "€so\ufffd", 2),
    ],
    ids=["one-byte", "two-bytes", "half-behind", "itself", "after-a-half"],
)
def test_the_sign_for_broken_characters_hides_the_bytes_that_it_stands_for(
    tokens: list[bytes], stop: str, text: str, num_hidden: int
) -> None:
    """It has three bytes of its own, and they are not the token's."""
    read = read_all(Detokenizer(Bytes(tokens), stop=[stop]), [[256 + number for number in range(len(tokens))]])

    assert read == Read(text, len(tokens), stop, num_hidden)


def test_text_that_min_tokens_demands_waits_with_its_token_and_still_does_not_stop() -> None:
    detokenizer = Detokenizer(Bytes([b"Gr\xc3", b"\xb6r"]), stop=["r"], min_tokens=1)

    first, second = detokenizer.append([256]), detokenizer.append([257])

    assert (first.text, first.num_held_tokens) == ("", 1)
    assert (second.text, second.stop, second.num_held_tokens, second.num_hidden_bytes) == ("Grö", "r", 0, 1)


def test_text_that_min_tokens_demands_begins_no_stop_string() -> None:
    detokenizer = Detokenizer(Bytes([b"Gr\xc3", b"\xb6"]), stop=["rö!"], min_tokens=1)

    assert [detokenizer.append([token]).text for token in (256, 257)] == ["", "Grö"]


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="abc€🙂", max_size=30),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    stop=st.lists(st.text(alphabet="abc€", min_size=1, max_size=3), max_size=3),
    include=st.booleans(),
    min_tokens=st.integers(0, 3),
)
def test_what_is_shown_of_tokens_is_the_text_at_every_moment(
    text: str, cuts: list[int], stop: list[str], include: bool, min_tokens: int
) -> None:
    """Tokens are any pieces of the text's bytes; half a character stands for itself until it is whole."""
    table = Bytes([bytes(piece) for piece in split(list(text.encode()), cuts)])
    detokenizer = Detokenizer(table, stop=stop, include_stop=include, min_tokens=min_tokens)

    sent = ""
    for count in range(1, len(table.texts) + 1):
        delta = detokenizer.append([255 + count])
        sent += delta.text
        shown = b"".join(table.texts[: count - delta.num_held_tokens])
        shown_text = shown[: len(shown) - delta.num_hidden_bytes].decode("utf-8", "strict" if stop else "ignore")
        assert shown_text == sent
        if delta.stop is not None:
            return
    assert sent + detokenizer.finish() == text


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abc€🙂", max_size=30),
    stop=st.lists(st.text(alphabet="abc€", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_what_has_left_is_always_the_beginning_of_the_final_text(text: str, stop: list[str]) -> None:
    """So no prefix of a stop string ever leaves: the oracle looks at the whole text at once."""
    detokenizer = Detokenizer(Bytes(), stop=stop)
    final = text_before_first_stop(text, stop)

    sent = ""
    for byte in text.encode():
        delta = detokenizer.append([byte])
        sent += delta.text
        assert final.startswith(sent)
        if delta.stop is not None:
            break
    else:
        sent += detokenizer.finish()
    assert final == sent


def text_before_first_stop(text: str, stop: list[str]) -> str:
    """The rule once more, naively: the shortest beginning of the text that ends with a stop string, longest first."""
    for end in range(len(text) + 1):
        ending = [item for item in stop if text[:end].endswith(item)]
        if ending:
            return text[: end - max(len(item) for item in ending)]
    return text
