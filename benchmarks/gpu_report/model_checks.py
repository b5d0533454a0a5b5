"""Small models on this device against the same weights on the host's torch reference in float32, and against themselves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_report.kernel_checks import Check
from benchmarks.gpu_report.models import SMALL, TINY, Model, greedy, prompts
from benchmarks.gpu_report.process import apart
from octavo_kernels.torch_backend import TorchBackend
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.request import SamplingParams

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord
    from octavo_kernels.backend import KernelBackend


def run(record: PartRecord, device: torch.device) -> None:
    shapes = TINY if record.is_tiny else SMALL
    for name, found in apart(partial(checks_of, device=device, is_tiny=record.is_tiny), list(shapes), device):
        if isinstance(found, Exception):
            record.fails(name, found)
            continue
        for check in found:
            record.check(f"{name}, {check.name}", error=check.error, tolerance=check.tolerance, unit=check.unit)


def checks_of(name: str, *, device: torch.device, is_tiny: bool) -> list[Check]:
    """Of one model: in float32, in 16 bits, and alone and among others."""
    from benchmarks.gpu_report.parts import backend_on

    backend, host = backend_on(device), TorchBackend(torch.device("cpu"))
    invariant = backend_on(device, is_batch_invariant=True)
    num_tokens, length, mates = (2, 5, 3) if is_tiny else (16, 70, 64)
    raw = (TINY if is_tiny else SMALL)[name]
    asked = prompts(3 if is_tiny else 8, length, raw["vocab_size"])
    params = greedy(num_tokens)
    reference = Model.of(raw, "host", host, torch.float32)
    exact = _answers(Model.of(raw, "host", backend, torch.float32), asked, params)
    differing = sum(_ids(a) != _ids(b) for a, b in zip(exact, _answers(reference, asked, params), strict=True))
    return [
        Check(name="float32: greedy sequences unlike the reference", error=differing, tolerance=0, unit="of them"),
        _check_16_bits(raw, backend, reference, is_tiny=is_tiny),
        _check_alone(Model.of(raw, "host", invariant, torch.bfloat16), length, num_tokens, mates),
    ]


def _check_16_bits(raw: dict[str, Any], backend: KernelBackend, reference: Model, *, is_tiny: bool) -> Check:
    asked = prompts(3 if is_tiny else 32, 5 if is_tiny else 40, reference.config.vocab_size, seed=1)
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5, ignore_eos=True, detokenize=False)
    mine = _answers(Model.of(raw, "host", backend, torch.bfloat16), asked, params)
    theirs = _answers(reference, asked, params)
    shared = sum(len(_top(a) & _top(b)) for a, b in zip(mine, theirs, strict=True)) / (5 * len(asked))
    return Check(name="bfloat16: top-5 tokens that the reference lacks", error=1 - shared, tolerance=0.1, unit="share")


def _check_alone(model: Model, length: int, num_tokens: int, mates: int) -> Check:
    """The first of many requests, and the same request with nobody beside it."""
    asked = prompts(mates, length, model.config.vocab_size, seed=2)
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=0, ignore_eos=True, detokenize=False)
    alone, among = (_answers(model, those, params, has_fixed_pieces=True)[0] for those in (asked[:1], asked))
    differing = sum(a != b for a, b in zip(alone, among, strict=True))
    return Check(
        name=f"bfloat16, batch-invariant: tokens or log-probs that {mates - 1} batch mates change",
        error=differing,
        tolerance=0,
        unit=f"of {num_tokens}",
    )


def _answers(
    model: Model, asked: list[list[int]], params: SamplingParams, *, has_fixed_pieces: bool = False
) -> list[list[SampledToken]]:
    model.start(num_blocks=len(asked) * 8 + 16, max_num_seqs=len(asked), has_fixed_pieces=has_fixed_pieces)
    model.record_graphs(len(asked))
    ids = [model.add(prompt, params).sequence_id for prompt in asked]
    model.run()
    return [model.sampled[sequence_id] for sequence_id in ids]


def _ids(tokens: list[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def _top(tokens: list[SampledToken]) -> set[int]:
    return {entry.token_id for entry in tokens[0].top_logprobs}
