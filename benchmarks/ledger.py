"""What clients know of their requests, and whether `/metrics` says the same.

Every request that ended is known exactly: its prompt's tokens, its output's, how each output ended. Of an aborted one
its client knows less, and the table says what may still be demanded:

    certain   its stream had begun, so it was accepted. Each output it had not seen end was ended by the abort.
    unsure    its client left before any answer. Each of these asks for one output of a prompt of one fixed length, so
              the number of requests that the server took says exactly what it must have counted for them.

Tokens of an aborted output lie between what its client received and what it asked for; without aborts all is equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

UNSURE_PROMPT_TOKENS = 23
"""Tokens of every prompt whose client may leave before it has an answer."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Sums over the clients' requests of one phase."""

    requests: int = 0
    """Prompts that were answered; a completion may bring several."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Finish reason → outputs."""
    rejected: int = 0

    certain_requests: int = 0
    certain_prompt_tokens: int = 0
    certain_outputs: int = 0
    """Outputs of aborted requests whose end no client saw."""
    unsure_requests: int = 0
    received_tokens: int = 0
    """Of aborted requests."""
    asked_tokens: int = 0
    """`max_tokens` of every aborted output together."""

    @property
    def aborted(self) -> int:
        return self.certain_requests + self.unsure_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The server's counters at one moment, or how far they moved."""

    requests: int
    prompt_tokens: int
    generation_tokens: int
    outcomes: Counter[str]
    rejected: int
    request_prompt_sum: int
    request_generation_sum: int
    e2e: int
    preemptions: int
    step_errors: int

    def since(self, before: Counts) -> Counts:
        """How far each moved."""
        moved = Counter(self.outcomes)
        moved.subtract(before.outcomes)
        return Counts(
            requests=self.requests - before.requests,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            generation_tokens=self.generation_tokens - before.generation_tokens,
            outcomes=moved,
            rejected=self.rejected - before.rejected,
            request_prompt_sum=self.request_prompt_sum - before.request_prompt_sum,
            request_generation_sum=self.request_generation_sum - before.request_generation_sum,
            e2e=self.e2e - before.e2e,
            preemptions=self.preemptions - before.preemptions,
            step_errors=self.step_errors - before.step_errors,
        )


def read_counts(metrics: str, requests_total: int) -> Counts:
    """From the text of `/metrics`, and `/load`'s number of accepted requests."""
    sums: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            sums[sample.name] += int(sample.value) if sample.value == sample.value else 0
            if sample.name == "vllm:request_success_total":
                outcomes[sample.labels["finished_reason"]] += int(sample.value)
    return Counts(
        requests=requests_total,
        prompt_tokens=sums["vllm:prompt_tokens_total"],
        generation_tokens=sums["vllm:generation_tokens_total"],
        outcomes=outcomes,
        rejected=sums["octavo_rejected_requests_total"],
        request_prompt_sum=sums["vllm:request_prompt_tokens_sum"],
        request_generation_sum=sums["vllm:request_generation_tokens_sum"],
        e2e=sums["vllm:e2e_request_latency_seconds_count"],
        preemptions=sums["vllm:num_preemptions_total"],
        step_errors=sums["octavo_engine_step_errors_total"],
    )


def audit(ledger: Ledger, moved: Counts) -> list[str]:
    """Where the server's counters moved by something else than what the clients know; empty: nowhere."""
    unsure = moved.requests - ledger.requests - ledger.certain_requests
    aborted_tokens = moved.generation_tokens - ledger.output_tokens
    late = moved.outcomes["length"] - ledger.outcomes["length"]
    equal = {
        "prompt tokens": (
            ledger.prompt_tokens + ledger.certain_prompt_tokens + unsure * UNSURE_PROMPT_TOKENS,
            moved.prompt_tokens,
        ),
        "outputs that stopped": (ledger.outcomes["stop"], moved.outcomes["stop"]),
        # An abort may come when the output has just reached its length
        "aborted outputs": (ledger.certain_outputs + unsure, moved.outcomes["abort"] + late),
        "outputs that failed": (0, moved.outcomes["error"]),
        "rejected requests": (ledger.rejected, moved.rejected),
        "requests in the latency histogram": (moved.requests, moved.e2e),
        "prompt tokens in the histogram": (moved.prompt_tokens, moved.request_prompt_sum),
        "output tokens in the histogram": (moved.generation_tokens, moved.request_generation_sum),
        "steps that raised": (0, moved.step_errors),
    }
    within = {
        "requests of clients that left early": (0, unsure, ledger.unsure_requests),
        "output tokens of aborted requests": (ledger.received_tokens, aborted_tokens, ledger.asked_tokens),
        "aborts that came too late": (0, late, ledger.aborted // 20),
    }
    return [
        f"{name}: clients know {known:,}, /metrics says {counted:,}"
        for name, (known, counted) in equal.items()
        if known != counted
    ] + [
        f"{name}: {value:,} is not within {low:,} to {high:,}"
        for name, (low, value, high) in within.items()
        if not low <= value <= high
    ]
