"""What is kept of a file and of a batch, and how a batch goes from one status to the next. Pure values.

validating ─┬─> in_progress ─┬─> finalizing ──> completed
            │       │        ├─> expired
            ├───────┼────────┴─> failed
            └───────┴─> cancelling ──> cancelled

A transition that the table does not have is a mistake of ours, except a cancel that comes too late, which is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from octavo_server.errors import ConflictError

SHOWN_ERRORS = 100
"""Errors of a batch that failed validation; a file of nothing but mistakes would give as many as it has lines."""


class BatchStatus(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One stored file; times in Unix seconds."""

    file_id: str
    purpose: str
    """"batch" for what a client sent, "batch_output" for what a batch made."""
    filename: str
    num_bytes: int
    created_at: int
    expires_at: int

    def as_json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.file_id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Why a batch failed, or cannot go on for now."""

    code: str
    message: str
    line: int | None = None
    """Of the input file, from 1."""
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "line": self.line, "param": self.param}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of the answers so far, or of one."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            prompt=self.prompt + other.prompt,
            cached=self.cached + other.cached,
            completion=self.completion + other.completion,
            reasoning=self.reasoning + other.reasoning,
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Lines of a batch: all, answered, and answered with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    def as_json(self) -> dict[str, int]:
        return {"total": self.total, "completed": self.completed, "failed": self.failed}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch; times in Unix seconds."""

    batch_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    output_max_age: int
    """Seconds for which the files that it makes are kept."""
    metadata: Mapping[str, str] | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    entered_at: Mapping[str, int] = field(default_factory=dict)
    """Status → when it was entered."""
    model: str | None = None
    counts: Counts = Counts()
    tokens: Tokens = Tokens()
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def ended_at(self) -> int | None:
        return self.entered_at.get(self.status) if self.status.is_end else None

    def as_json(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        named = [status for status in BatchStatus if status is not BatchStatus.VALIDATING]
        errors = [error.as_json() for error in self.errors]
        return {
            "id": self.batch_id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status.value,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{status}_at": self.entered_at.get(status) for status in named},
            "request_counts": self.counts.as_json(),
            "usage": self.tokens.as_json(),
            "metadata": self.metadata,
        }


def begin(batch: BatchRecord, *, total: int, model: str | None, now: int) -> BatchRecord:
    """The input is valid; its lines may run."""
    return replace(_enter(batch, BatchStatus.IN_PROGRESS, now), counts=Counts(total=total), model=model)


def fail(batch: BatchRecord, errors: tuple[BatchError, ...], now: int) -> BatchRecord:
    """The input is not valid, or gone; nothing runs any more."""
    return replace(_enter(batch, BatchStatus.FAILED, now), errors=errors[:SHOWN_ERRORS])


def finalize(batch: BatchRecord, now: int) -> BatchRecord:
    """Every line is answered; the files are being written."""
    return _enter(batch, BatchStatus.FINALIZING, now)


def cancel(batch: BatchRecord, now: int) -> BatchRecord:
    """A client wants no more of it; asked twice is asked once.

    Raises:
        ConflictError: there is nothing left to cancel.
    """
    if batch.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
        return batch
    if batch.status.is_end or batch.status is BatchStatus.FINALIZING:
        raise ConflictError(
            f"batch {batch.batch_id} is {batch.status.value}; only one that still runs can be cancelled"
        )
    return _enter(batch, BatchStatus.CANCELLING, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What has come of a batch at its end."""

    counts: Counts
    tokens: Tokens
    output_file_id: str | None
    error_file_id: str | None


def end(batch: BatchRecord, status: BatchStatus, results: Results, now: int) -> BatchRecord:
    """Its files are there. A cancel that came while they were made is heeded."""
    if batch.status is BatchStatus.CANCELLING:
        status = BatchStatus.CANCELLED
    return replace(
        _enter(batch, status, now),
        counts=results.counts,
        tokens=results.tokens,
        output_file_id=results.output_file_id,
        error_file_id=results.error_file_id,
        errors=(),
    )


_NEXT: Mapping[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset({BatchStatus.IN_PROGRESS, BatchStatus.FAILED, BatchStatus.CANCELLING}),
    BatchStatus.IN_PROGRESS: frozenset(
        {BatchStatus.FINALIZING, BatchStatus.EXPIRED, BatchStatus.CANCELLING, BatchStatus.FAILED}
    ),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
}


def _enter(batch: BatchRecord, status: BatchStatus, now: int) -> BatchRecord:
    assert status in _NEXT.get(batch.status, frozenset()), f"{batch.status} -> {status}"
    return replace(batch, status=status, entered_at={**batch.entered_at, status.value: now})
