"""The gate of a rollout, decided from values alone: what to check next, and what a report means.

| state | meaning |
|---|---|
| Measuring | the revision that serves shows how fast it answers, before any of it is taken away |
| Pending | no replica of the new revision is ready yet |
| Running | a ready replica of it is asked, by its own address; the gateway does not route to it |
| Passed | it is admitted |
| Failed | it is rolled back |

A check that was under way when the operator died is begun again: asking changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from octavo_operator.api.rollout_status import GateStatus
from octavo_operator.api.types import RolloutGate
from octavo_operator.desired.revision import Revision
from octavo_operator.observed import Observed, Pod
from octavo_operator.rollout.gate_report import GateCheck, GateReport

MEASURING, PENDING, RUNNING, PASSED, FAILED = "Measuring", "Pending", "Running", "Passed", "Failed"
_LEFT_OUT = "minThroughputRatio is left out: there is nothing to compare with"


def advance(
    gate: RolloutGate, status: GateStatus | None, *, stable: str, target: str, observed: Observed, now: datetime
) -> GateStatus:
    """The gate's next state; it is called until it has passed or failed."""
    if status is None:
        first = MEASURING if gate.min_throughput_ratio else PENDING
        status = GateStatus(state=first, message="", at=now)
    if status.state in (PASSED, FAILED):
        return status
    report = observed.gate_report
    if report is not None and _is_answer(report.check, gate, status, stable if status.state == MEASURING else target):
        status = _judge(status, report, now)
    if status.state == MEASURING and not observed.ready_pods(stable):
        status = GateStatus(state=PENDING, message=f"the revision before was not ready, so {_LEFT_OUT}", at=now)
    if status.state == PENDING and observed.ready_pods(target):
        status = replace(status, state=RUNNING, at=now)
    if status.state in (MEASURING, RUNNING) and now - status.at >= timedelta(seconds=gate.timeout_s):
        what = "measuring the revision before" if status.state == MEASURING else "the checks"
        return replace(status, state=FAILED, message=f"{what} took longer than timeout, {gate.timeout_s} s", at=now)
    return status


def paused(status: GateStatus | None) -> GateStatus | None:
    """As it is while nobody asks anything: what was under way begins anew, and so does its time."""
    if status is None or status.state == MEASURING:
        return None
    return replace(status, state=PENDING) if status.state == RUNNING else status


def next_check(
    gate: RolloutGate,
    status: GateStatus | None,
    *,
    stable: Revision,
    target: Revision,
    default_name: str,
    observed: Observed,
) -> GateCheck | None:
    """What has to be asked now; None where nothing has. `default_name` is how a model without names is served."""
    if status is None or status.state not in (MEASURING, RUNNING):
        return None
    revision = stable if status.state == MEASURING else target
    pod = _first(observed.ready_pods(revision.name))
    if pod is None:
        return None
    names = revision.inputs.get("servedNames") or (default_name,)
    return GateCheck(
        state=status.state,
        revision=revision.name,
        address=pod.ip,
        model=str(names[0]),
        gate=gate,
        baseline=float(status.baseline or 0),
    )


def _is_answer(check: GateCheck, gate: RolloutGate, status: GateStatus, revision: str) -> bool:
    return (check.state, check.revision, check.gate) == (status.state, revision, gate)


def _judge(status: GateStatus, report: GateReport, now: datetime) -> GateStatus:
    if report.problem:
        return replace(status, state=FAILED, message=report.problem, at=now)
    if status.state == MEASURING and not report.tokens_per_second:
        return replace(status, state=PENDING, message=f"the revision before gave no tokens, so {_LEFT_OUT}", at=now)
    if status.state == MEASURING:
        baseline = f"{report.tokens_per_second:.1f}"
        return replace(status, state=PENDING, baseline=baseline, at=now)
    return replace(status, state=PASSED, message=status.message, at=now)


def _first(pods: tuple[Pod, ...]) -> Pod | None:
    """Always the same one, so that a check is not begun anew at each look."""
    return min((pod for pod in pods if pod.ip), key=lambda pod: pod.name, default=None)
