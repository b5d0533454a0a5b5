"""Every line is answered once, however the server behaves and whatever is given back."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.batch import runner as module
from octavo_server.batch.answers import Answer, Reply
from octavo_server.batch.lines import BadLine, Line
from octavo_server.batch.runner import AskError, LineRunner


@pytest.fixture(autouse=True, scope="module")
def _fast() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "TICK_S", 0.0005)
    patch.setattr(module, "BUSY_S", 0.0)
    yield
    patch.undo()


class Moody:
    """An Asker that is busy, breaks the connection, takes its time, or answers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.running = self.most = 0

    async def ask(self, url: str, payload: bytes) -> Reply:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.rng.choice((0, 0, 0.0004, 0.002)))
            mood = self.rng.randrange(8)
            if mood == 0:
                raise AskError("the connection broke")
            return Reply(status={1: 429, 2: 503, 3: 400, 4: 500}.get(mood, 200), request_id="r", body=payload.decode())
        finally:
            self.running -= 1


def some_lines(count: int, bad: set[int]) -> list[Line | BadLine]:
    return [
        BadLine(number=n, custom_id=None, message="bad")
        if n in bad
        else Line(number=n, custom_id=str(n), url="/", payload=str(n).encode(), model=None)
        for n in range(1, count + 1)
    ]


def a_runner(asker: Moody, allowed: list[int]) -> LineRunner:
    def num_allowed(_: int) -> int:
        # The last one stands for ever, so that the run ends.
        return allowed.pop(0) if len(allowed) > 1 else max(1, allowed[0])

    return LineRunner(asker, num_allowed, new_id=lambda: "i", clock=lambda: 0.0)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    bad=st.sets(st.integers(1, 40)),
    allowed=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
)
def test_each_line_has_one_answer_and_it_is_its_own(count: int, bad: set[int], allowed: list[int], seed: int) -> None:
    asker, answers = Moody(random.Random(seed)), []  # type: Moody, list[Answer]
    most = max(1, *allowed) if allowed else 1

    async def keep(some: list[Answer]) -> None:
        answers.extend(some)

    runner = a_runner(asker, list(allowed))
    ended = asyncio.run(runner.run(iter(some_lines(count, bad)), keep, lambda: False))

    assert ended
    assert Counter(answer.number for answer in answers) == Counter(range(1, count + 1))
    assert asker.most <= most
    for answer in answers:
        entry = json.loads(answer.entry)
        if answer.number in bad:
            assert (entry["error"]["line"], answer.is_ok) == (answer.number, False)
        else:
            assert entry["custom_id"] == entry["response"]["body"] == str(answer.number)
            assert entry["response"]["status_code"] not in (429, 503)
            assert answer.is_ok == (entry["response"]["status_code"] == 200)


async def test_a_stop_gives_back_what_runs() -> None:
    asker = Moody(random.Random(1))
    must_stop = [False]
    seen: list[Answer] = []

    async def keep(some: list[Answer]) -> None:
        seen.extend(some)
        must_stop[0] = True

    ended = await a_runner(asker, [4]).run(iter(some_lines(40, set())), keep, lambda: must_stop[0])

    assert not ended
    assert 0 < len(seen) < 40
    assert asker.running == 0


async def test_what_goes_wrong_where_answers_are_kept_ends_the_run() -> None:
    asker = Moody(random.Random(1))

    async def keep(_: list[Answer]) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        await a_runner(asker, [4]).run(iter(some_lines(40, set())), keep, lambda: False)
    assert asker.running == 0
