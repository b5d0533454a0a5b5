"""Rules of the prefix cache."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.engine.outputs import BlockId
from octavo_server.engine.prefix_cache import PrefixCache, canonical_extra


def hashes_of(tokens: list[int], extra: bytes = b"", block_size: int = 2) -> list[bytes]:
    hashes: list[bytes] = []
    PrefixCache(block_size).extend_hashes(hashes, tokens, extra, len(tokens) // block_size)
    return hashes


def test_the_hash_is_the_documented_function_of_canonical_bytes() -> None:
    """Written out by hand: another process, language or release must get the same."""
    first = blake2b(bytes(16) + b"\x01\0\0\0\x02\x01\0\0" + b"x", digest_size=16).digest()
    second = blake2b(first + b"\x03\0\0\0\x04\0\0\0" + b"x", digest_size=16).digest()

    assert hashes_of([1, 258, 3, 4], b"x") == [first, second]


@pytest.mark.parametrize("other", [[9, 2, 3, 4], [1, 9, 3, 4]])
def test_a_block_hash_depends_on_every_token_before_it(other: list[int]) -> None:
    assert hashes_of([1, 2, 3, 4])[1] != hashes_of(other)[1]


def test_a_block_hash_depends_on_salt_and_adapter() -> None:
    plain, salted = hashes_of([1, 2]), hashes_of([1, 2], canonical_extra("salt"))
    swapped = [hashes_of([1, 2], canonical_extra(*parts)) for parts in (("a", ""), ("", "a"))]

    assert len({plain[0], salted[0], swapped[0][0], swapped[1][0]}) == 4


@given(st.lists(st.text(max_size=4), max_size=3), st.lists(st.text(max_size=4), max_size=3))
def test_equal_extras_come_of_equal_parts_alone(left: list[str], right: list[str]) -> None:
    """Whatever the parts contain: a client chooses its salt, and must not reach another's blocks with it."""
    if any(left) and any(right):
        assert (canonical_extra(*left) == canonical_extra(*right)) == (left == right)


def test_no_extra_is_no_bytes_and_a_lone_surrogate_is_hashed_too() -> None:
    assert canonical_extra("", "") == b""
    assert canonical_extra("\ud800")


def test_hashes_are_extended_from_where_they_end() -> None:
    cache = PrefixCache(2)
    hashes: list[bytes] = []

    cache.extend_hashes(hashes, [1, 2, 3], b"", 1)
    cache.extend_hashes(hashes, [1, 2, 3, 4], b"", 2)
    cache.extend_hashes(hashes, [1, 2, 3, 4], b"", 1)

    assert hashes == hashes_of([1, 2, 3, 4])


def test_match_stops_at_the_first_block_that_is_not_published() -> None:
    cache, hashes = PrefixCache(2), hashes_of([1, 2, 3, 4, 5, 6])
    cache.publish(BlockId(5), hashes[0])
    cache.publish(BlockId(7), hashes[2])

    assert cache.match(hashes, 3) == [5]

    cache.publish(BlockId(6), hashes[1])
    assert cache.match(hashes, 3) == [5, 6, 7]
    assert cache.match(hashes, 2) == [5, 6]


def test_of_two_blocks_with_equal_content_the_first_stays_found() -> None:
    """The second is never published, so it is reused early when it is freed."""
    cache, hashes = PrefixCache(2), hashes_of([1, 2])

    cache.publish(BlockId(5), hashes[0])
    cache.publish(BlockId(6), hashes[0])

    assert cache.match(hashes, 1) == [5]
    assert BlockId(6) not in cache
    assert len(cache) == 1


def test_a_forgotten_block_is_not_found_and_forgetting_twice_is_harmless() -> None:
    cache, hashes = PrefixCache(2), hashes_of([1, 2])
    cache.publish(BlockId(5), hashes[0])

    cache.forget(BlockId(5))
    cache.forget(BlockId(5))

    assert cache.match(hashes, 1) == []
    assert BlockId(5) not in cache
    cache.check_integrity()


def test_integrity_check_sees_maps_that_disagree() -> None:
    cache = PrefixCache(2)
    cache.publish(BlockId(5), b"hash")
    cache._hash_of[BlockId(6)] = b"hash"

    with pytest.raises(AssertionError):
        cache.check_integrity()
