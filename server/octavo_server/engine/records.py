"""What an engine notes for `/metrics` between two reports: plain values, made where it steps, counted where clients are.

So the engine knows nothing of Prometheus, and may run in a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo_server.metrics import RequestTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step that ended."""

    num_tokens: int
    seconds: float
    """Of steps that overlap, since the end of the one before."""
    gap_s: float | None
    """Since the step before, where work was waiting all along; 0 where they overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRecord:
    """A request all of whose outputs ended."""

    times: RequestTimes
    ended_s: float


@dataclass(slots=True, kw_only=True)
class EngineRecords:
    """Everything since the last report; grows with what was done, never with time."""

    steps: list[StepRecord] = field(default_factory=list)
    accepted_prompt_tokens: list[int] = field(default_factory=list)
    """Prompt tokens of each request that the engine took."""
    num_output_tokens: int = 0
    token_gaps_s: list[float] = field(default_factory=list)
    """Between two tokens of a sequence."""
    first_tokens_s: list[float] = field(default_factory=list)
    """Arrival to first token, of each request that got one."""
    finished: list[FinishedRecord] = field(default_factory=list)
    num_step_errors: int = 0
    num_compilations: int = 0
    """Kernels compiled after the start."""

    def extend(self, later: EngineRecords) -> None:
        """Takes in what was noted after this."""
        self.steps += later.steps
        self.accepted_prompt_tokens += later.accepted_prompt_tokens
        self.num_output_tokens += later.num_output_tokens
        self.token_gaps_s += later.token_gaps_s
        self.first_tokens_s += later.first_tokens_s
        self.finished += later.finished
        self.num_step_errors += later.num_step_errors
        self.num_compilations += later.num_compilations
