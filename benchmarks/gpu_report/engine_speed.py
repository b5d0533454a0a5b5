"""Scheduler, runner and kernels together on one model's shape: start, tokens a second, context's cost, the host's share.

Text (tokenizing, detokenizing, HTTP) is not in it. Sampling is greedy.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_report.models import BLOCK_SIZE, SHAPES, TINY, Model, greedy, prompts
from benchmarks.gpu_report.timing import wait

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord
    from octavo_server.engine.sequence import Sequence

_KV_SHARE = 0.85
"""Of the memory that is free once the weights are there; the rest is for activations."""


def run(record: PartRecord, device: torch.device, name: str, deadline_s: float) -> None:
    from benchmarks.gpu_report.parts import backend_on

    tiny = record.is_tiny
    started = perf_counter()
    model = Model((TINY if tiny else SHAPES)[name], "device", backend_on(device), torch.bfloat16)
    wait(device)
    record.figure(
        "weights made", perf_counter() - started, "s", f"{model.num_weight_bytes / 1e9:.1f} GB, on the device"
    )
    num_blocks = 40 if tiny else _num_blocks(model, device)
    started = perf_counter()
    model.start(num_blocks, max_num_seqs=2 if tiny else 256)
    model.runner.warm_up(*((8, 2) if tiny else (8192, 256)))
    wait(device)
    record.figure(
        "cache and warm-up", perf_counter() - started, "s", f"{num_blocks} blocks; compiles kernels, no graphs"
    )
    short, long = (8, 40) if tiny else (128, 32768)
    single = 0.0
    for batch in (1, 2) if tiny else (1, 4, 16, 64, 256):
        ms = _decode_ms(model, batch, short, 2 if tiny else 32)
        single = single or ms
        record.figure(f"decode {batch}", 1000 * batch / ms, "tok/s", f"context {short}, {ms:.2f} ms a step")
    record.figure(
        "host gap", _host_gap(model, device, short, 2 if tiny else 8), "% of a step", "batch 1, by the profiler"
    )
    ms = _decode_ms(model, 1, long, 2 if tiny else 16)
    record.figure("context token", (ms - single) / (long - short), "ms", f"batch 1, context {long} against {short}")
    _prefill(record, model, 16 if tiny else 8192)
    _saturate(record, model, (2, 8, 2) if tiny else (256, 1024, 1024), deadline_s)


def _num_blocks(model: Model, device: torch.device) -> int:
    free, _total = torch.cuda.mem_get_info(device)
    block_bytes = model.config.kv_bytes_per_token(torch.bfloat16.itemsize) * BLOCK_SIZE
    return min(int(_KV_SHARE * free / block_bytes), 40_000)


def begin_decoding(model: Model, batch: int, context: int, num_tokens: int) -> list[Sequence]:
    """Prefills `batch` sequences, so that each step from here on decodes them all; they have to be stopped."""
    # More than all steps together, since the first decode while the last are prefilled.
    params = greedy(num_tokens + batch * -(-context // 8192) + 2)
    begun = [model.add(prompt, params) for prompt in prompts(batch, context, model.config.vocab_size)]
    while model.step() < batch:
        if any(sequence.is_finished for sequence in begun):
            raise RuntimeError(f"{batch} sequences of {context} tokens never decoded together; the cache is too small")
    return begun


def _decode_ms(model: Model, batch: int, context: int, steps: int) -> float:
    begun = begin_decoding(model, batch, context, steps)
    started = perf_counter()
    for _ in range(steps):
        model.step()
    spent = perf_counter() - started
    model.stop(begun)
    return 1000 * spent / steps


def _host_gap(model: Model, device: torch.device, context: int, steps: int) -> float:
    """Per cent of the steps' time in which the device had nothing to do; on a CPU, in which no operator ran."""
    activity = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    begun = begin_decoding(model, 1, context, steps)
    with profile(activities=[activity]) as profiled:
        started = perf_counter()
        for _ in range(steps):
            model.step()
        spent_us = 1e6 * (perf_counter() - started)
    model.stop(begun)
    averages = profiled.key_averages()
    busy_us = sum(
        entry.self_cpu_time_total if device.type == "cpu" else entry.self_device_time_total for entry in averages
    )
    return 100 * max(0.0, 1 - float(busy_us) / spent_us)


def _prefill(record: PartRecord, model: Model, num_tokens: int) -> None:
    model.add(prompts(1, num_tokens, model.config.vocab_size)[0], greedy(1))
    started = perf_counter()
    model.run()
    spent = perf_counter() - started
    record.figure(
        "prefill", num_tokens / spent, "tok/s", f"one prompt of {num_tokens}, first token after {spent:.3f} s"
    )


def _saturate(record: PartRecord, model: Model, load: tuple[int, int, int], deadline_s: float) -> None:
    """load: requests at once, tokens in, tokens out. Cut at the deadline, and then it says so."""
    count, num_in, num_out = load
    for prompt in prompts(count, num_in, model.config.vocab_size, seed=3):
        model.add(prompt, greedy(num_out))
    started, made = perf_counter(), 0
    while model.scheduler.has_work and perf_counter() < deadline_s:
        made += model.step()
    spent = perf_counter() - started
    how = "whole" if not model.scheduler.has_work else f"cut after {made} of {count * num_out} tokens"
    record.figure("saturation", made / spent, "tok/s", f"{count} requests of {num_in} in, {num_out} out; {how}")
