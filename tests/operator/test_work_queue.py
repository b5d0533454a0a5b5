"""The queue: one key is worked on once at a time, never lost, and comes back later after each failure."""

from __future__ import annotations

import asyncio

import pytest

from octavo_operator.work_queue import FIRST_DELAY_S, MAX_DELAY_S, WorkQueue

# A lost key would otherwise be waited for until the suite's own limit.
pytestmark = pytest.mark.timeout(10)


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(jitter=lambda: 0.5)


async def test_key_that_waits_is_not_added_twice(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")

    assert await queue.get() == "a"
    assert len(queue) == 1
    queue.done("a")
    assert len(queue) == 0


async def test_key_that_is_added_during_its_work_comes_again_afterwards(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("b")

    assert await queue.get() == "b"
    queue.done("a")
    assert await queue.get() == "a"


@pytest.mark.looptime
async def test_later_key_comes_at_the_earlier_of_two_times(queue: WorkQueue[str]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    queue.add_after("a", 20)
    queue.add_after("a", 5)
    queue.add_after("a", 9)

    assert await queue.get() == "a"
    assert loop.time() - started == pytest.approx(5)
    queue.done("a")
    await asyncio.sleep(30)
    assert len(queue) == 0


@pytest.mark.looptime
async def test_event_cuts_a_delay_short(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 60)
    queue.add("a")
    queue.add_after("a", 1)

    assert await asyncio.wait_for(queue.get(), 0.1) == "a"
    await asyncio.sleep(2)
    assert len(queue) == 1


@pytest.mark.looptime
async def test_delays_double_to_a_limit_and_start_anew_after_success(queue: WorkQueue[str]) -> None:
    delays = [queue.retry("a") for _ in range(12)]

    assert delays[:3] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays[-1] == MAX_DELAY_S
    queue.forgive("a")
    assert queue.retry("a") == FIRST_DELAY_S


async def test_who_is_asked_to_wait_longer_waits_longer_within_the_limit(queue: WorkQueue[str]) -> None:
    assert queue.retry("a", at_least_s=7) == 7
    assert queue.retry("a", at_least_s=900) == MAX_DELAY_S


async def test_jitter_spreads_the_failed() -> None:
    spread = [WorkQueue[str](jitter=lambda share=share: share).retry("a") for share in (0.0, 0.99)]  # type: ignore[misc]  # default binds

    assert spread[0] == 0.5 * FIRST_DELAY_S
    assert spread[1] == pytest.approx(1.49 * FIRST_DELAY_S)


async def test_it_stands_still_while_a_key_waits_or_is_in_work_and_not_after_a_long_quiet() -> None:
    now = [0.0]
    queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.5, clock=lambda: now[0])

    now[0] = 1000.0
    assert queue.still_s == 0
    queue.add("a")
    assert queue.still_s == 0

    now[0] += 5
    queue.add("b")
    assert queue.still_s == 5
    await queue.get()
    assert queue.still_s == 0

    now[0] += 7
    queue.add("c")
    assert queue.still_s == 7
    queue.done("a")
    assert queue.still_s == 0
