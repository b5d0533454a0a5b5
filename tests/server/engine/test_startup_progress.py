"""How fast a start goes: what `/startup` tells of the last seconds."""

from __future__ import annotations

from octavo_server.engine.messages import Progressed
from octavo_server.engine.startup import StartupProgress

MB = 10**6


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    progress = StartupProgress(clock)
    progress.enter("downloading")
    progress.add_bytes(0, 1000 * MB)
    assert progress.bytes_per_second() == 0
    for second in range(1, 31):
        clock.now = second
        # Slow for twenty seconds, then ten times as fast.
        progress.add_bytes(min(second, 20) * MB + max(0, second - 20) * 10 * MB, 1000 * MB)

    assert progress.bytes_per_second() == 10 * MB


def test_a_download_that_stands_still_grows_slower_and_idle() -> None:
    clock = Clock()
    progress = StartupProgress(clock)
    progress.enter("downloading")
    progress.add_bytes(0, 100 * MB)
    clock.now = 1.0
    progress.add_bytes(10 * MB, 100 * MB)
    assert progress.bytes_per_second() == 10 * MB

    clock.now = 100.0

    assert progress.bytes_per_second() == MB / 10
    assert progress.idle_s() == 99.0


def test_many_small_pieces_are_few_samples() -> None:
    clock = Clock()
    progress = StartupProgress(clock)
    for piece in range(100_000):
        clock.now = piece / 1000
        progress.add_bytes(piece * 1000, 100 * MB)

    assert len(progress._seen) < 110
    assert 0.9 * MB < progress.bytes_per_second() < 1.1 * MB


def test_the_next_stage_begins_at_nothing() -> None:
    clock = Clock()
    progress = StartupProgress(clock)
    progress.enter("downloading")
    progress.add_bytes(0, 10)
    clock.now = 1.0
    progress.add_bytes(10, 10)

    progress.enter("loading_weights")

    assert (progress.bytes, progress.total_bytes, progress.bytes_per_second()) == (0, 0, 0)


def test_who_follows_another_knows_its_rate() -> None:
    clock = Clock()
    progress = StartupProgress(clock)

    def tell(stage: str, done: int) -> None:
        progress.follow(
            Progressed(stage=stage, bytes=done, total_bytes=10 * MB, message="", stage_seconds={}, location="")  # type: ignore[arg-type]
        )

    tell("downloading", 0)
    clock.now = 2.0
    tell("downloading", 8 * MB)
    assert progress.bytes_per_second() == 4 * MB

    clock.now = 3.0
    tell("loading_weights", 1)
    assert progress.bytes_per_second() == 0
