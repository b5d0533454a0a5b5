"""A question about memory, its answer, and what would fit where it does not. Pure: each remedy is tried before it is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo_server.errors import ConfigError
from octavo_server.plan.gpus import GIB, GPUS, Device, share_of
from octavo_server.plan.layout import QUANTIZATION_BITS, choose_layout
from octavo_server.plan.memory import MemoryPlan, plan_memory

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.plan.model_shape import ModelShape

MAX_WAYS = 64
"""Devices that are tried for one model: eight machines of eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be known."""

    model: ModelShape
    device: Device
    config: EngineConfig
    """Of a single device; `ways` says how many there are."""
    ways: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan, and what to say beside it."""

    memory: MemoryPlan
    problem: str
    """Empty where it fits; else both numbers."""
    remedies: tuple[str, ...]
    """Changes of one thing each with which it fits."""
    notes: tuple[str, ...]
    """What of it this version does not do."""

    @property
    def fits(self) -> bool:
        return not self.problem


def answer(question: Question) -> Answer:
    """Plans, and looks for remedies where it does not fit.

    Raises:
        ConfigError: --max-model-len is beyond the model's context, or heads cannot be dealt to so many devices.
    """
    question.model.check_ways(question.ways)
    memory = _plan(question)
    problem = _problem(memory)
    return Answer(
        memory=memory,
        problem=problem,
        remedies=tuple(_remedies(question)) if problem else (),
        notes=tuple(_notes(question)),
    )


def _plan(question: Question) -> MemoryPlan:
    layout = choose_layout(
        question.config, stored_dtype=question.model.dtype, kind=question.device.kind, ways=question.ways
    )
    return plan_memory(question.model, layout, share_of(question.device, question.ways), question.config)


def _problem(memory: MemoryPlan) -> str:
    device, needed = memory.device, memory.needed_bytes
    usable = int(device.memory_bytes * memory.utilization)
    has = f"{device.name} has {_gib(device.memory_bytes)}"
    if memory.utilization < 1:
        has += f", {_gib(usable)} of it by --gpu-memory-utilization {memory.utilization:g}"
    if needed > usable:
        graphs = ", CUDA graphs" if memory.graph_bytes else ""
        parts = f"weights, activations{graphs} and the driver" if device.kind == "gpu" else "weights and activations"
        return f"{parts} take {_gib(needed)} without any KV cache, {has}"
    if memory.problem:
        return memory.problem
    if memory.free_bytes < 0:
        return (
            f"with the KV cache that was asked for it is {_gib(needed + memory.kv_bytes)}, {device.name} has "
            f"{_gib(device.memory_bytes)}; lower --kv-cache-memory-bytes or --num-gpu-blocks-override"
        )
    return ""


def _fits(question: Question) -> bool:
    try:
        return not _problem(_plan(question))
    except ConfigError:
        return False


def _remedies(question: Question) -> list[str]:
    config, model = question.config, question.model
    found = []
    if config.max_model_len is not None:
        shorter = replace(question, config=replace(config, max_model_len=None))
        if _fits(shorter):
            found.append(f"--max-model-len {_plan(shorter).largest_context}, the largest context that fits")
    smaller = replace(question, config=replace(config, kv_cache_dtype="fp8"))
    if question.device.kind == "gpu" and _fits(smaller):
        found.append("--kv-cache-dtype fp8, which keeps keys and values in 8 bits")
    if question.device.kind == "gpu":
        ways = [n for n in range(question.ways + 1, MAX_WAYS + 1) if model.can_split(n)]
        fitting = next((n for n in ways if _fits(replace(question, ways=n))), None)
        if fitting is not None:
            found.append(f"--tensor-parallel-size {fitting}, the fewest {question.device.name} that hold it")
    for name, bits in QUANTIZATION_BITS.items():
        fewer = replace(question, config=replace(config, quantization=name))  # type: ignore[arg-type]  # names of the Literal
        if bits is not None and config.quantization == "none" and _fits(fewer):
            found.append(f"--quantization {name}")
            break
    if question.device.kind == "gpu":
        larger = [gpu for gpu in GPUS.values() if gpu.memory_bytes > question.device.memory_bytes]
        fitting_gpus = [gpu for gpu in larger if _fits(replace(question, device=gpu))]
        if fitting_gpus:
            smallest = min(fitting_gpus, key=lambda gpu: gpu.memory_bytes)
            found.append(f"--gpu {smallest.name}, the smallest in the table that holds it")
    return found


def _notes(question: Question) -> list[str]:
    model, notes = question.model, list(question.model.notes)
    if not model.is_served:
        notes.append(f"{model.architecture} is planned, and not served by this version")
    if question.config.quantization == "fp8":
        notes.append("--quantization fp8 is served on GPUs of compute capability 8.9 or newer alone (L4, L40S, H100)")
    return notes


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
