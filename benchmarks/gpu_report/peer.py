"""Transformers' continuous batching, on the same weights and prompts as ours, in the same run.

Without the flash-attn package, which the report does without, it attends with torch's SDPA over pages that it gathers
each step. Everything else is as it chooses by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_report.models import SHAPES, SMALL, TINY, Model, greedy, prompts
from benchmarks.gpu_report.record import check
from octavo_server.models.config import parse_model_config
from octavo_server.models.dummy_weights import DummyWeights

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord

_NAME = "llama-8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that all come at once; tokens in and out of each."""

    count: int
    num_in: int
    num_out: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        return prompts(self.count, self.num_in, vocab_size, seed=4)

    @property
    def num_blocks(self) -> int:
        return self.count * (-(-(self.num_in + self.num_out) // 16) + 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Greedy token ids of each request, and the seconds from the first one's arrival to the last one's end."""

    token_ids: list[list[int]]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.token_ids)) / self.seconds


def run(record: PartRecord, device: torch.device) -> None:
    _check_same(record, device)
    raw = (TINY if record.is_tiny else SHAPES)[_NAME]
    load = Load(count=4, num_in=8, num_out=4) if record.is_tiny else Load(count=64, num_in=128, num_out=128)
    dtype = torch.float32 if record.is_tiny else torch.bfloat16
    ours = _our_speed(raw, device, dtype, load)
    how = f"{load.count} requests of {load.num_in} in, {load.num_out} out"
    record.figure("ours", ours, "tok/s", how)
    theirs = _their_speed(raw, device, dtype, load)
    record.figure("transformers", theirs, "tok/s", f"{how}; continuous batching, paged SDPA")
    record.figure("ours against transformers", ours / theirs, "x", f"{how}; it runs as paged SDPA")


def our_answers(model: Model, load: Load) -> Answers:
    model.start(load.num_blocks, max_num_seqs=load.count)
    model.record_graphs(load.count)
    asked = load.prompts(model.config.vocab_size)
    started = perf_counter()
    ids = [model.add(prompt, greedy(load.num_out)).sequence_id for prompt in asked]
    model.run()
    seconds = perf_counter() - started
    found = [[token.token_id for token in model.sampled[sequence_id]] for sequence_id in ids]
    return Answers(token_ids=found, seconds=seconds)


def their_model(raw: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Transformers' own, with the weights that `Model` makes on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw), dtype=dtype, attn_implementation="sdpa")
    weights = DummyWeights(parse_model_config(raw, {}, source="gpu_report"), device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.read(name))
    # Its thread does not take over that this one computes no gradients.
    return model.eval().requires_grad_(False)


def their_answers(model: Any, load: Load) -> Answers:
    """Raises RuntimeError where it did not answer all of all."""
    from transformers import GenerationConfig

    asked = load.prompts(model.config.vocab_size)
    generation = GenerationConfig(max_new_tokens=load.num_out, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(
        asked, generation_config=generation, continuous_batching_config=_batching(model.device, load)
    ).values()
    found = [list(output.generated_tokens) for output in outputs]
    if [len(tokens) for tokens in found] != [load.num_out] * load.count:
        raise RuntimeError(
            f"transformers made {sum(map(len, found))} of {load.count * load.num_out} tokens: "
            f"{next((output.error for output in outputs if output.error), 'it says not why')}"
        )
    # By its own stamps, so that making its cache does not count, as ours does not.
    began, ended = min(output.created_time for output in outputs), max(output.lifespan[1] for output in outputs)
    return Answers(token_ids=found, seconds=ended - began)


def _batching(device: torch.device, load: Load) -> Any:
    from transformers import ContinuousBatchingConfig

    # By itself it would look for flash-attn on the network.
    wanted: dict[str, Any] = {"auto_switch_to_flash": False}
    if device.type == "cpu":
        # Else more than half of the machine's memory.
        wanted |= {"num_blocks": load.num_blocks, "page_size": 16, "max_batch_tokens": 64}
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})


def _check_same(record: PartRecord, device: torch.device) -> None:
    """In float32, where rounding decides no token: or the comparison would be of two different things."""
    from benchmarks.gpu_report.parts import backend_on

    raw = TINY[_NAME] if record.is_tiny else SMALL["llama"]
    load = Load(count=3, num_in=6, num_out=4) if record.is_tiny else Load(count=8, num_in=70, num_out=16)
    mine = our_answers(Model.of(raw, "device", backend_on(device), torch.float32), load)
    theirs = their_answers(their_model(raw, device, torch.float32), load)
    differing = sum(a != b for a, b in zip(mine.token_ids, theirs.token_ids, strict=True))
    label = "float32: greedy sequences unlike transformers'"
    record.add(check(label, error=differing, tolerance=0, unit="of them"))


def _our_speed(raw: dict[str, Any], device: torch.device, dtype: torch.dtype, load: Load) -> float:
    from benchmarks.gpu_report.parts import backend_on

    model = Model.of(raw, "device", backend_on(device), dtype)
    # What compiles does so in the first, which does not count.
    our_answers(model, replace(load, num_out=2))
    return our_answers(model, load).tokens_per_second


def _their_speed(raw: dict[str, Any], device: torch.device, dtype: torch.dtype, load: Load) -> float:
    model = their_model(raw, device, dtype)
    their_answers(model, replace(load, num_out=2))
    return their_answers(model, load).tokens_per_second
