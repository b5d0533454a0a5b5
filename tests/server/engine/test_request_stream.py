"""What a reader gets is what was pushed, however late it comes."""

from __future__ import annotations

import pytest

from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.request_stream import MAX_PARTS, RequestStream


def a_stream(n: int = 1) -> RequestStream:
    return RequestStream([Request(request_id="a", prompt_token_ids=(1,), params=SamplingParams(n=n), arrival_s=0.0)])


def a_delta(number: int, index: int = 0, finish_reason: FinishReason | None = None) -> OutputDelta:
    return OutputDelta(
        request_id="a", index=index, text=f"{number} ", tokens=(SampledToken(token_id=number),),
        finish_reason=finish_reason,
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, MAX_PARTS - 1, MAX_PARTS, MAX_PARTS + 1, 3 * MAX_PARTS + 7])
async def test_what_waited_comes_as_one_delta_an_output(count: int) -> None:
    stream = a_stream(n=2)
    for number in range(count):
        stream.push(a_delta(number))
        stream.push(a_delta(number + 1000, index=1))

    first, second = await stream.read()

    assert list(range(count)) == [token.token_id for token in first.tokens]
    assert "".join(f"{number} " for number in range(count)) == first.text
    assert list(range(1000, 1000 + count)) == [token.token_id for token in second.tokens]
    assert sum(map(len, stream._pending.values())) == 0


async def test_a_reader_that_never_comes_keeps_few_parts() -> None:
    stream = a_stream()
    for number in range(10 * MAX_PARTS):
        stream.push(a_delta(number))
        assert len(stream._pending["a", 0]) <= MAX_PARTS


async def test_the_last_delta_keeps_its_reason_and_nothing_comes_after_it() -> None:
    stream = a_stream()
    stream.push(a_delta(1))
    stream.push(a_delta(2, finish_reason=FinishReason.STOP))
    stream.push(a_delta(3))
    stream.fail("too late")

    (delta,) = await stream.read()

    assert (delta.text, delta.finish_reason, delta.error) == ("1 2 ", FinishReason.STOP, None)
    assert await stream.read() == []


async def test_failing_ends_each_open_output_once() -> None:
    stream = a_stream(n=3)
    stream.push(a_delta(1, index=1, finish_reason=FinishReason.LENGTH))
    stream.fail("it died")
    stream.fail("twice")

    ends = {delta.index: (delta.finish_reason, delta.error) for delta in await stream.read()}

    assert ends == {
        0: (FinishReason.ERROR, "it died"),
        1: (FinishReason.LENGTH, None),
        2: (FinishReason.ERROR, "it died"),
    }
