"""Order of the waiting queue under each policy."""

from __future__ import annotations

import pytest

from octavo_server.engine.sequence import Sequence
from octavo_server.engine.waiting_queue import (
    CacheAwareQueue,
    FCFSQueue,
    PriorityQueue,
    SchedulingPolicy,
    WaitingQueue,
    make_waiting_queue,
)
from octavo_testing.sequences import a_sequence


def drained(queue: WaitingQueue) -> list[Sequence]:
    order = []
    while len(queue):
        order.append(queue.peek())
        queue.remove(order[-1])
    return order


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (SchedulingPolicy.FCFS, FCFSQueue),
        (SchedulingPolicy.PRIORITY, PriorityQueue),
        (SchedulingPolicy.CACHE_AWARE, CacheAwareQueue),
    ],
)
def test_each_policy_has_its_queue(policy: SchedulingPolicy, kind: type) -> None:
    assert type(make_waiting_queue(policy, lambda _: 0)) is kind


def test_fcfs_serves_in_the_order_of_arrival_and_preempted_ones_first() -> None:
    first, second, preempted = a_sequence(), a_sequence(), a_sequence()
    queue = FCFSQueue()
    queue.push(first)
    queue.push(second)
    queue.push_front(preempted)

    assert list(queue) == [preempted, first, second]
    assert drained(queue) == [preempted, first, second]


def test_fcfs_forgets_an_aborted_sequence_from_the_middle() -> None:
    sequences = [a_sequence() for _ in range(3)]
    queue = FCFSQueue()
    for sequence in sequences:
        queue.push(sequence)

    queue.remove(sequences[1])

    assert drained(queue) == [sequences[0], sequences[2]]


def test_priority_serves_lower_numbers_first_then_earlier_arrivals_then_lower_ids() -> None:
    late = a_sequence(priority=0, arrival_s=2)
    early = a_sequence(priority=0, arrival_s=1)
    twin = a_sequence(priority=0, arrival_s=1)
    urgent = a_sequence(priority=-1, arrival_s=3)
    queue = PriorityQueue()
    for sequence in (twin, late, urgent, early):
        queue.push(sequence)

    assert list(queue) == [urgent, early, twin, late]
    assert drained(queue) == [urgent, early, twin, late]


def test_priority_puts_a_preempted_sequence_where_its_arrival_puts_it() -> None:
    urgent, preempted, later = a_sequence(priority=-1), a_sequence(arrival_s=1), a_sequence(arrival_s=2)
    queue = PriorityQueue()
    queue.push(later)
    queue.push(urgent)

    queue.push_front(preempted)

    assert drained(queue) == [urgent, preempted, later]


def test_priority_forgets_just_the_aborted_one_of_equals() -> None:
    sequences = [a_sequence() for _ in range(3)]
    queue = PriorityQueue()
    for sequence in sequences:
        queue.push(sequence)

    queue.remove(sequences[1])

    assert drained(queue) == [sequences[0], sequences[2]]


def test_cache_aware_serves_the_longest_hit_first_and_the_oldest_of_equals() -> None:
    hits = dict(zip([a_sequence() for _ in range(4)], [1, 5, 0, 5], strict=True))
    queue = CacheAwareQueue(hits.__getitem__)
    for sequence in hits:
        queue.push(sequence)

    a, b, c, d = hits
    assert drained(queue) == [b, d, a, c]


def test_cache_aware_lets_the_oldest_be_overtaken_only_so_often() -> None:
    """Hot prefixes that never stop coming do not starve a cold one."""
    cold = a_sequence()
    queue = CacheAwareQueue(lambda sequence: 0 if sequence is cold else 9)
    queue.push(cold)

    served = 0
    queue.push(a_sequence())
    while (chosen := queue.peek()) is not cold:
        queue.remove(chosen)
        queue.push(a_sequence())
        served += 1
        assert served <= CacheAwareQueue.MAX_OVERTAKES

    assert served == CacheAwareQueue.MAX_OVERTAKES


def test_cache_aware_counts_anew_for_the_next_oldest() -> None:
    cold, cold_too = a_sequence(), a_sequence()
    queue = CacheAwareQueue(lambda sequence: 0 if sequence in (cold, cold_too) else 9)
    for sequence in (cold, cold_too, *(a_sequence() for _ in range(CacheAwareQueue.MAX_OVERTAKES))):
        queue.push(sequence)
    while (chosen := queue.peek()) is not cold:
        queue.remove(chosen)
    queue.remove(cold)
    queue.push(hot := a_sequence())

    assert queue.peek() is hot


def test_cache_aware_compares_only_the_oldest() -> None:
    """The cost of a choice must not grow with the queue."""
    asked: list[Sequence] = []

    def num_hit_blocks(sequence: Sequence) -> int:
        asked.append(sequence)
        return 0

    queue = CacheAwareQueue(num_hit_blocks)
    for _ in range(100):
        queue.push(a_sequence())

    queue.peek()

    assert len(asked) == CacheAwareQueue.WINDOW
