from __future__ import annotations

from octavo_operator.metrics_adapter.expiring_cache import ExpiringCache


def test_an_entry_ends_at_its_time():
    cache: ExpiringCache[str, int] = ExpiringCache(8)
    cache.put("a", 1, expires=10.0)

    assert cache.get("a", 9.9) == 1
    assert cache.get("a", 10.0) is None
    assert cache.get("b", 0.0) is None


def test_the_oldest_entry_goes_first_when_it_is_full():
    """Whoever sends a thousand tokens must not fill the memory."""
    cache: ExpiringCache[str, int] = ExpiringCache(2)

    for number, key in enumerate("abac"):
        cache.put(key, number, expires=10.0)

    assert [cache.get(key, 0.0) for key in "abc"] == [2, None, 3]
    assert len(cache) == 2
