"""Scheduler, runner and kernels together on one model's shape: start, tokens a second, context's cost, the host's share.

Text (tokenizing, detokenizing, HTTP) is not in it. Sampling is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_report.models import BLOCK_SIZE, SHAPES, TINY, Model, greedy, prompts
from benchmarks.gpu_report.timing import wait
from octavo_server.config import EngineConfig
from octavo_server.errors import StartupError

if TYPE_CHECKING:
    from benchmarks.gpu_report.parts import EnginePart
    from benchmarks.gpu_report.record import PartRecord
    from octavo_server.engine import sequence

_KV_SHARE = 0.85
"""Of the memory that is free once the weights are there; the rest is for activations."""

_NUM_KERNELS = 14
"""That a profile names."""


def run(record: PartRecord, device: torch.device, part: EnginePart, deadline_s: float) -> None:
    """What the part is about in full; then its weights in fewer bits, in short, as far as there is time."""
    raw = (TINY if record.is_tiny else SHAPES)[part.shape]
    model = _load(record, device, raw, part.quantization, "")
    if model is not None:
        _measure(record, device, model, part, deadline_s)
    del model
    for quantization in part.also:
        if perf_counter() > deadline_s:
            record.lacks(quantization, "no time was left; run this part alone with a larger --budget")
            continue
        if (model := _load(record, device, raw, quantization, f"{quantization}: ")) is not None:
            _measure_decodes(record, model, (1, 64), f"{quantization}: ")
        del model


def _load(record: PartRecord, device: torch.device, raw: dict[str, Any], quantization: str, label: str) -> Model | None:
    """None, and noted why, where there are no kernels for it."""
    from benchmarks.gpu_report.parts import backend_on

    if quantization not in get_args(get_type_hints(EngineConfig)["quantization"]):
        record.lacks(f"{quantization} weights", f"the server has no --quantization {quantization}")
        return None
    started = perf_counter()
    try:
        if quantization == "none":
            model = Model.of(raw, "device", backend_on(device), torch.bfloat16)
        else:
            model = Model.quantized(raw, device, quantization)
    except StartupError as error:
        record.lacks(f"{quantization} weights", str(error))
        return None
    wait(device)
    size = f"{model.loaded.num_weight_bytes / 1e9:.1f} GB, on the device"
    record.figure(f"{label}weights made", perf_counter() - started, "s", size)
    num_blocks = 40 if record.is_tiny else _num_blocks(model, device)
    started = perf_counter()
    model.start(num_blocks, max_num_seqs=2 if record.is_tiny else 256)
    model.runner.warm_up(*((8, 2) if record.is_tiny else (8192, 256)))
    wait(device)
    record.figure(f"{label}cache and warm-up", perf_counter() - started, "s", f"{num_blocks} blocks; compiles kernels")
    _record_graphs(record, device, model, label)
    return model


def _measure(record: PartRecord, device: torch.device, model: Model, part: EnginePart, deadline_s: float) -> None:
    tiny = record.is_tiny
    short, middle, long = (8, 20, 40) if tiny else (128, 8192, 32768)
    single_ms = _measure_decodes(record, model, (1, 4, 16, 64, 256), "")
    for batch in (1, 2) if tiny else (1, 64):
        _profile(record, device, model, batch, 2 if tiny else 8)
    long_ms = _decode_ms(model, 1, long, 2 if tiny else 16)
    how = f"batch 1, context {long} against {short}"
    record.figure("context token", (long_ms - single_ms) / (long - short), "ms", how)
    batch = 2 if tiny else 16
    ms = _decode_ms(model, batch, middle, 2 if tiny else 16)
    record.figure(f"decode {batch}, long", 1000 * batch / ms, "tok/s", f"context {middle}, {ms:.2f} ms a step")
    _first_token(record, model, 16 if tiny else 1024)
    _prefill(record, model, 16 if tiny else 8192)
    if part.has_ragged:
        _saturate(record, model, "ragged", _ragged(*((2, 4, 8) if tiny else (256, 100, 1024))), deadline_s)
    _saturate(record, model, "saturation", [(8, 2)] * 2 if tiny else [(1024, 1024)] * 256, deadline_s)


def _measure_decodes(record: PartRecord, model: Model, batches: Sequence[int], label: str) -> float:
    """At a short context -> milliseconds of a step at the first batch."""
    short, steps = (8, 2) if record.is_tiny else (128, 32)
    found = []
    for batch in [batch for batch in batches if batch <= 2] if record.is_tiny else batches:
        found.append(ms := _decode_ms(model, batch, short, steps))
        record.figure(f"{label}decode {batch}", 1000 * batch / ms, "tok/s", f"context {short}, {ms:.2f} ms a step")
    return found[0]


def _record_graphs(record: PartRecord, device: torch.device, model: Model, label: str) -> None:
    """Of decodes of up to 256 sequences, as `octavo serve` does."""
    started = perf_counter()
    free = 0 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if not model.record_graphs(256):
        record.lacks(f"{label}CUDA graphs", "a CPU launches every step kernel by kernel")
        return
    wait(device)
    taken = (free - torch.cuda.mem_get_info(device)[0]) / 1e9
    record.figure(f"{label}graphs recorded", perf_counter() - started, "s", f"up to 256 sequences, {taken:.1f} GB")


def _num_blocks(model: Model, device: torch.device) -> int:
    free, _total = torch.cuda.mem_get_info(device)
    block_bytes = model.loaded.kv_bytes_per_token * BLOCK_SIZE
    return min(int(_KV_SHARE * free / block_bytes), 40_000)


def begin_decoding(model: Model, batch: int, context: int, num_tokens: int) -> list[sequence.Sequence]:
    """Prefills `batch` sequences, so that each step from here on decodes them all; they have to be stopped."""
    # More than all steps together, since the first decode while the last are prefilled, and one step is always under way.
    params = greedy(num_tokens + batch * -(-context // 8192) + 3)
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


def _profile(record: PartRecord, device: torch.device, model: Model, batch: int, steps: int) -> None:
    """Where a decode step's time goes; on a CPU operators stand in for kernels."""
    activity = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    begun = begin_decoding(model, batch, 8 if record.is_tiny else 128, steps)
    with profile(activities=[activity]) as profiled:
        started = perf_counter()
        for _ in range(steps):
            model.step()
        spent_us = 1e6 * (perf_counter() - started)
    model.stop(begun)
    busy_us = {
        entry.key: float(entry.self_cpu_time_total if device.type == "cpu" else entry.self_device_time_total)
        for entry in profiled.key_averages()
    }
    total_us = sum(busy_us.values()) if device.type == "cpu" else _covered(profiled)
    label = "host gap" if batch == 1 else f"host gap, batch {batch}"
    share = 100 * max(0.0, 1 - total_us / spent_us)
    record.figure(label, share, "% of a step", f"batch {batch}, by the profiler, {spent_us / steps:.0f} us a step")
    for name, spent in sorted(busy_us.items(), key=lambda entry: -entry[1])[:_NUM_KERNELS]:
        record.figure(f"batch {batch}: {name[:80]}", spent / steps, "us a step")


def _covered(profiled: profile) -> float:
    """Microseconds in which at least one kernel ran: kernels that are launched early overlap those before them."""
    events = profiled.events() or ()  # type: ignore[no-untyped-call]  # torch's
    ran = [event.time_range for event in events if event.device_type == DeviceType.CUDA]
    covered, end = 0.0, float("-inf")
    for span in sorted((time.start, time.end) for time in ran):
        covered += max(0.0, span[1] - max(span[0], end))
        end = max(end, span[1])
    return covered


def _first_token(record: PartRecord, model: Model, num_tokens: int) -> None:
    """The median of five."""
    spent = []
    for seed in range(5):
        model.add(prompts(1, num_tokens, model.config.vocab_size, seed)[0], greedy(1))
        started = perf_counter()
        model.run()
        spent.append(1000 * (perf_counter() - started))
    record.figure("first token", median(spent), "ms", f"prompt of {num_tokens}, nothing else running")


def _prefill(record: PartRecord, model: Model, num_tokens: int) -> None:
    model.add(prompts(1, num_tokens, model.config.vocab_size)[0], greedy(1))
    started = perf_counter()
    model.run()
    spent = perf_counter() - started
    record.figure(
        "prefill", num_tokens / spent, "tok/s", f"one prompt of {num_tokens}, first token after {spent:.3f} s"
    )


def _ragged(count: int, least: int, most: int) -> list[tuple[int, int]]:
    """Tokens in and out of each request, between the two."""
    rng = Random(5)
    return [(rng.randint(least, most), rng.randint(least, most)) for _ in range(count)]


def _saturate(
    record: PartRecord, model: Model, name: str, requests: Sequence[tuple[int, int]], deadline_s: float
) -> None:
    """requests: tokens in and out of each, all at once. Cut at the deadline, and then it says so."""
    if perf_counter() > deadline_s:
        record.lacks(name, "no time was left; run this part alone with a larger --budget")
        return
    for index, (num_in, num_out) in enumerate(requests):
        model.add(prompts(1, num_in, model.config.vocab_size, seed=index)[0], greedy(num_out))
    started, made = perf_counter(), 0
    while model.has_work and perf_counter() < deadline_s:
        made += model.step()
    spent = perf_counter() - started
    wanted = sum(num_out for _, num_out in requests)
    how = "whole" if not model.has_work else f"cut after {made} of {wanted} tokens"
    least, most = min(map(min, requests)), max(map(max, requests))
    record.figure(name, made / spent, "tok/s", f"{len(requests)} requests of {least} to {most} in and out; {how}")
