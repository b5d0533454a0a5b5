"""From one status of a batch to the next: OpenAI's words, each entered once and with its time."""

from __future__ import annotations

import msgspec
import pytest
from openai.types import Batch

from octavo_server.batch.records import (
    SHOWN_ERRORS,
    BatchError,
    BatchRecord,
    BatchStatus,
    Counts,
    Results,
    Tokens,
    begin,
    cancel,
    end,
    fail,
    finalize,
)
from octavo_server.errors import ConflictError

RESULTS = Results(
    counts=Counts(total=2, completed=1, failed=1), tokens=Tokens(prompt=4), output_file_id="o", error_file_id="e"
)


def a_batch() -> BatchRecord:
    return BatchRecord(
        batch_id="batch_1",
        endpoint="/v1/completions",
        input_file_id="file-1",
        completion_window="24h",
        created_at=10,
        expires_at=100,
        output_max_age=3600,
        metadata={"a": "b"},
    )


def a_running_batch() -> BatchRecord:
    return begin(a_batch(), total=2, model="m", now=11)


def test_a_whole_life_in_openais_shape() -> None:
    batch = end(finalize(a_running_batch(), 12), BatchStatus.COMPLETED, RESULTS, 13)

    shown = Batch.model_validate(batch.as_json())

    times = (shown.created_at, shown.in_progress_at, shown.finalizing_at, shown.completed_at, shown.expires_at)
    assert times == (10, 11, 12, 13, 100)
    assert (shown.status, shown.output_file_id, shown.error_file_id) == ("completed", "o", "e")
    assert (shown.cancelled_at, shown.expired_at, shown.failed_at, shown.errors) == (None, None, None, None)
    assert shown.usage is not None
    assert (shown.usage.input_tokens, shown.usage.total_tokens) == (4, 4)


@pytest.mark.parametrize("batch", [a_batch(), a_running_batch()])
def test_a_cancel_before_the_end_is_heeded(batch: BatchRecord) -> None:
    cancelling = cancel(batch, 20)

    assert cancelling.status is BatchStatus.CANCELLING
    assert cancel(cancelling, 21) is cancelling
    assert end(cancelling, BatchStatus.COMPLETED, RESULTS, 22).as_json()["cancelled_at"] == 22


@pytest.mark.parametrize(
    "ended",
    [
        end(finalize(a_running_batch(), 12), BatchStatus.COMPLETED, RESULTS, 13),
        end(a_running_batch(), BatchStatus.EXPIRED, RESULTS, 13),
        fail(a_batch(), (), 13),
    ],
    ids=lambda batch: batch.status.value,
)
def test_a_cancel_after_the_end_is_a_conflict(ended: BatchRecord) -> None:
    with pytest.raises(ConflictError, match=ended.status.value):
        cancel(ended, 20)
    assert ended.ended_at == 13


def test_a_failed_batch_names_some_of_its_errors() -> None:
    errors = tuple(BatchError(code="c", message="m", line=line) for line in range(1, 500))

    shown = Batch.model_validate(fail(a_batch(), errors, 11).as_json())

    assert shown.errors is not None
    assert shown.errors.data is not None
    assert (len(shown.errors.data), shown.errors.data[0].line) == (SHOWN_ERRORS, 1)


def test_a_step_that_is_not_in_the_table_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        finalize(a_batch(), 11)


def test_a_record_survives_the_disk() -> None:
    batch = end(finalize(a_running_batch(), 12), BatchStatus.COMPLETED, RESULTS, 13)

    assert msgspec.json.decode(msgspec.json.encode(batch), type=BatchRecord) == batch
