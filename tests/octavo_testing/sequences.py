"""Builders of requests, sequences and schedulers: a test names only what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.outputs import RunnerOutput, SampledToken, SchedulerOutput, SequenceId, SequenceOutput
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.waiting_queue import SchedulingPolicy

EOS = 2
LONG = SamplingParams(max_tokens=900)
_ids = count(1)
_tokens = count(1000)


def some_tokens(num_tokens: int) -> tuple[int, ...]:
    """Tokens that no other call of this process returned."""
    return tuple(next(_tokens) for _ in range(num_tokens))


def a_request(
    prompt: int | Iterable[int] = 5,
    *,
    params: SamplingParams | None = None,
    arrival_s: float = 0.0,
    priority: int = 0,
    salt: str = "",
) -> Request:
    """`prompt` is the tokens, or how many of them."""
    return Request(
        request_id=f"request-{next(_ids)}",
        prompt_token_ids=some_tokens(prompt) if isinstance(prompt, int) else tuple(prompt),
        params=params if params is not None else SamplingParams(),
        arrival_s=arrival_s,
        priority=priority,
        cache_salt=salt,
    )


def a_sequence(
    prompt: int | Iterable[int] = 5,
    *,
    params: SamplingParams | None = None,
    arrival_s: float = 0.0,
    priority: int = 0,
    salt: str = "",
    seed: int = 0,
) -> Sequence:
    """A new sequence with an id of its own; ids rise."""
    request = a_request(prompt, params=params, arrival_s=arrival_s, priority=priority, salt=salt)
    return Sequence(sequence_id=SequenceId(next(_ids)), request=request, seed=seed)


def a_scheduler(
    *,
    blocks: int = 100,
    block_size: int = 4,
    budget: int = 64,
    seqs: int = 8,
    context: int = 1000,
    policy: SchedulingPolicy = SchedulingPolicy.FCFS,
    share: int = 0,
    watermark: float = 0.0,
    prefix_caching: bool = True,
) -> Scheduler:
    """`blocks` usable blocks, beside the null block."""
    config = SchedulerConfig(
        max_num_batched_tokens=budget,
        max_num_seqs=seqs,
        max_model_len=context,
        policy=policy,
        long_prefill_token_threshold=share,
        watermark=watermark,
        eos_token_ids=frozenset({EOS}),
    )
    kv = KVCacheManager(num_blocks=blocks + 1, block_size=block_size, enable_prefix_caching=prefix_caching)
    return Scheduler(config, kv)


def added(scheduler: Scheduler, *sequences: Sequence) -> list[Sequence]:
    """The sequences, which wait in the scheduler now."""
    for sequence in sequences:
        scheduler.add(sequence)
    return list(sequences)


def a_step(
    scheduler: Scheduler, *, token: int | None = None, failed: dict[SequenceId, str] | None = None, now: float = 0.0
) -> tuple[SchedulerOutput, list[SequenceOutput]]:
    """Schedules, lets every sampling sequence draw `token` (default: a new one each), and updates."""
    output = scheduler.schedule(now)
    sampled = {
        item.sequence.sequence_id: SampledToken(token_id=next(_tokens) if token is None else token)
        for item in output.scheduled
        if item.samples
    }
    results = scheduler.update(output, RunnerOutput(sampled=sampled, failed=failed or {}))
    scheduler.check_integrity()
    return output, results


def ranges(output: SchedulerOutput) -> dict[SequenceId, tuple[int, int]]:
    """What a step computes: [start, end) of each sequence."""
    return {item.sequence.sequence_id: (item.start, item.start + item.num_tokens) for item in output.scheduled}
