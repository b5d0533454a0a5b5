"""Why something is not as it should be: one reason and one sentence, and which of several is told first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo_operator.api import reasons

MAX_QUOTE = 400
"""Characters of somebody else's message that a condition repeats."""

# Ordered: what a person can act on comes before what passes by itself.
SEVERITY = (
    reasons.NAME_TAKEN,
    reasons.KEYS_UNREADABLE,
    reasons.QUOTA_EXCEEDED,
    reasons.POD_REFUSED,
    reasons.SECRET_NOT_FOUND,
    reasons.IMAGE_PULL_FAILED,
    reasons.SPEC_INVALID,
    reasons.MODEL_NOT_FOUND,
    reasons.MODEL_ACCESS_DENIED,
    reasons.MODEL_INVALID,
    reasons.UNSUPPORTED_ARCHITECTURE,
    reasons.CHECKSUM_MISMATCH,
    reasons.GPU_OUT_OF_MEMORY,
    reasons.KV_CACHE_TOO_SMALL,
    reasons.HOST_OUT_OF_MEMORY,
    reasons.ENGINE_CRASHED,
    reasons.VOLUME_UNBOUND,
    reasons.RESOURCE_CLAIM_PENDING,
    reasons.INSUFFICIENT_GPU,
    reasons.NODE_SELECTOR_MISMATCH,
    reasons.TAINT_NOT_TOLERATED,
    reasons.INSUFFICIENT_RESOURCES,
    reasons.UNSCHEDULABLE,
    reasons.DOWNLOAD_STALLED,
    reasons.PROBE_FAILED,
    reasons.DOWNLOADING,
    reasons.LOADING_WEIGHTS,
    reasons.WARMING_UP,
    reasons.STARTING,
    reasons.CREATING,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why something is not as it should be."""

    reason: str
    sentence: str


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The one to tell first; the first of equals."""
    return min(findings, key=lambda finding: SEVERITY.index(finding.reason), default=None)


def quote(text: str) -> str:
    """One bounded line of somebody else's words."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE else f"{line[: MAX_QUOTE - 1]}…"


def quote_end(text: str) -> str:
    """As `quote`, but the end: a log tells its cause last."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE else f"…{line[1 - MAX_QUOTE :]}"
