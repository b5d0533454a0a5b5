"""Small models on this device against the same weights on the host's torch reference in float32, and against themselves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_report.models import SMALL, TINY, Model, greedy, prompts
from benchmarks.gpu_report.process import apart
from benchmarks.gpu_report.record import Figure, check
from octavo_kernels.torch_backend import TorchBackend
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.request import SamplingParams

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord


def run(record: PartRecord, device: torch.device) -> None:
    shapes = TINY if record.is_tiny else SMALL
    for name, found in apart(partial(checks_of, device=device, is_tiny=record.is_tiny), list(shapes), device):
        record.take(name, found)


def checks_of(name: str, *, device: torch.device, is_tiny: bool) -> list[Figure]:
    """Of one model: in float32, in 16 bits, and alone and among others."""
    from benchmarks.gpu_report.parts import backend_on

    backend, raw = backend_on(device), (TINY if is_tiny else SMALL)[name]
    invariant = backend_on(device, is_batch_invariant=True)
    reference = Model.of(raw, "host", TorchBackend(torch.device("cpu")), torch.float32)
    return [
        *_check_32_bits(name, Model.of(raw, "host", backend, torch.float32), reference, is_tiny=is_tiny),
        _check_16_bits(name, Model.of(raw, "host", backend, torch.bfloat16), reference, is_tiny=is_tiny),
        _check_alone(name, Model.of(raw, "host", invariant, torch.bfloat16), is_tiny=is_tiny),
    ]


def _check_32_bits(name: str, model: Model, reference: Model, *, is_tiny: bool) -> list[Figure]:
    asked = prompts(3 if is_tiny else 8, 5 if is_tiny else 70, model.config.vocab_size)
    params = greedy(2 if is_tiny else 16)
    differing = sum(
        _ids(a) != _ids(b)
        for a, b in zip(_answers(model, asked, params), _answers(reference, asked, params), strict=True)
    )
    mine, theirs = (
        [_logprob(a) for a in _answers(each, asked, _greedy_with_logprobs(1))] for each in (model, reference)
    )
    farthest = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    return [
        check(f"{name}, float32: greedy sequences unlike the reference", error=differing, tolerance=0, unit="of them"),
        check(f"{name}, float32: first tokens' log-probabilities", error=farthest, tolerance=1e-3, unit="nats"),
    ]


def _check_16_bits(name: str, model: Model, reference: Model, *, is_tiny: bool) -> Figure:
    asked = prompts(3 if is_tiny else 32, 5 if is_tiny else 40, reference.config.vocab_size, seed=1)
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5, ignore_eos=True, detokenize=False)
    mine, theirs = (_answers(each, asked, params) for each in (model, reference))
    shared = sum(len(_top(a) & _top(b)) for a, b in zip(mine, theirs, strict=True)) / (5 * len(asked))
    return check(
        f"{name}, bfloat16: top-5 tokens that the reference lacks", error=1 - shared, tolerance=0.1, unit="share"
    )


def _check_alone(name: str, model: Model, *, is_tiny: bool) -> Figure:
    """The first of many requests, and the same request with nobody beside it."""
    num_tokens, length, mates = (2, 5, 3) if is_tiny else (16, 70, 64)
    asked, params = prompts(mates, length, model.config.vocab_size, seed=2), _greedy_with_logprobs(num_tokens)
    alone, among = (_answers(model, those, params, has_fixed_pieces=True)[0] for those in (asked[:1], asked))
    differing = sum(a != b for a, b in zip(alone, among, strict=True))
    label = f"{name}, bfloat16, batch-invariant: tokens or log-probs that {mates - 1} batch mates change"
    return check(label, error=differing, tolerance=0, unit=f"of {num_tokens}")


def _greedy_with_logprobs(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=0, ignore_eos=True, detokenize=False)


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


def _logprob(tokens: list[SampledToken]) -> float:
    """Of the first."""
    assert tokens[0].logprob is not None, "it was asked for"
    return tokens[0].logprob.logprob


def _top(tokens: list[SampledToken]) -> set[int]:
    return {entry.token_id for entry in tokens[0].top_logprobs}
