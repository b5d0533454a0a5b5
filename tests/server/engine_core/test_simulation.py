"""Long lives under dense traffic of every kind: nothing leaks, nothing grows, every output is right."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from random import Random

import pytest

from octavo_server.engine.request import FinishReason
from octavo_server.engine.scheduler import SchedulerConfig
from octavo_server.engine.waiting_queue import SchedulingPolicy
from octavo_testing.simulator import Report, Simulator, Traffic, num_entries

CONFIG = SchedulerConfig(max_num_batched_tokens=256, max_num_seqs=64, max_model_len=256)
ORDINARY = Traffic(mean_prompt=16, mean_output=12, max_prompt=200, arrivals_per_step=2.0)
VARIED = Traffic(mean_prompt=16, mean_output=12, max_prompt=200, arrivals_per_step=1.2, varied=0.5)
"""Some 1.5 outputs a request."""
NUM_BLOCKS = 60
"""Too few for 64 sequences, so that preemption and eviction are everyday events."""


def soak(
    num_requests: int, config: SchedulerConfig = CONFIG, *, traffic: Traffic = ORDINARY, abort_share: float = 0.02
) -> tuple[Simulator, Report]:
    simulator = Simulator(config, num_blocks=NUM_BLOCKS)
    requests = traffic.requests(num_requests, Random(1), vocabulary=1000)
    return simulator, simulator.run(requests, abort_share=abort_share)


def check_nothing_is_left(simulator: Simulator, report: Report, num_requests: int) -> None:
    stats = simulator.scheduler.stats()
    assert report.ended == report.added >= num_requests
    assert report.wrong == 0
    assert report.outcomes[FinishReason.ERROR] == 0
    assert report.largest_bookkeeping < 2_000
    assert (stats.running, stats.waiting, stats.kv_usage, stats.pressure, stats.waste) == (0, 0, 0, 0, 0)
    assert simulator.kv.num_free_blocks == simulator.kv.num_usable_blocks == NUM_BLOCKS - 1
    # What may stay: reference counts, free lists and both maps of the warm cache, an entry a block each
    assert num_entries(simulator.scheduler) <= 4 * NUM_BLOCKS
    simulator.scheduler.check_integrity()


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
def test_thousands_of_requests_leave_nothing_behind(policy: SchedulingPolicy) -> None:
    num_requests = 20_000 if policy is SchedulingPolicy.FCFS else 5_000
    config = SchedulerConfig(max_num_batched_tokens=256, max_num_seqs=64, max_model_len=256, policy=policy)

    simulator, report = soak(num_requests, config, traffic=VARIED)

    check_nothing_is_left(simulator, report, num_requests)
    assert report.added > 1.2 * num_requests
    assert report.preemptions > 0
    assert min(report.outcomes[reason] for reason in (FinishReason.ABORT, FinishReason.STOP, FinishReason.LENGTH)) > 100
    assert simulator.scheduler.stats().prefix_hits > 0


def test_memory_does_not_grow_with_the_number_of_requests() -> None:
    """The heap after 500 and after 1,500 more requests of one life differs by noise, not by requests."""
    simulator = Simulator(CONFIG, num_blocks=NUM_BLOCKS)
    requests = ORDINARY.requests(2_000, Random(1), vocabulary=1000)
    tracemalloc.start()
    try:
        simulator.run(request for request, _ in zip(requests, range(500), strict=False))
        before = _heap_bytes()
        simulator.report = Report()
        simulator.run(requests)
        simulator.report = Report()
        grown = _heap_bytes() - before
    finally:
        tracemalloc.stop()

    assert grown < 20_000, f"{grown:,} bytes in 1,500 requests"


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_million_requests_leave_nothing_behind(record_property: Callable[[str, object], None]) -> None:
    simulator, report = soak(1_000_000, traffic=VARIED)
    record_property("outputs", report.ended)
    record_property("preemptions", report.preemptions)
    record_property("largest_bookkeeping", report.largest_bookkeeping)

    check_nothing_is_left(simulator, report, 1_000_000)


def _heap_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
