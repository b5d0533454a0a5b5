"""A step whose kernels have been launched: what is on its way to the host of it, and what that means for each sequence.

A row that fails fails alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.engine.outputs import PromptLogprob, RunnerOutput, SampledToken, SequenceId
from octavo_server.engine.transfers import Download

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from octavo_server.engine.batch import PromptTarget
    from octavo_server.engine.gathered_logprobs import GatheredLogprobs
    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.sampler import Choice

NON_FINITE = "the model computed a logit that is not a number or infinite; the request cannot go on"
NON_FINITE_STATE = "the model computed a hidden state that is not a number or infinite; the request cannot go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScores:
    """Log-probabilities of some prompt tokens, on the device."""

    targets: tuple[PromptTarget, ...]
    logprobs: GatheredLogprobs
    sums: torch.Tensor
    """[len(targets)] float32, of each row's logits: a NaN or an infinity among them makes it non-finite."""


class LaunchedStep:
    """`result` waits for the device, and nothing else does."""

    def __init__(
        self,
        samples: Sequence[ScheduledSequence],
        *,
        failed: dict[SequenceId, str],
        choice: Choice | None = None,
        scores: Sequence[PromptScores] = (),
        pooled: Sequence[ScheduledSequence] = (),
        states: torch.Tensor | None = None,
    ) -> None:
        """`failed`: sequences that end whatever the device says. `states`: [len(pooled), hidden] float32."""
        self._samples = samples
        self._pooled = pooled
        self._failed = failed
        self._choice = choice
        self._scores = scores
        self._has_states = states is not None
        tensors = [*(choice.tensors if choice is not None else ())]
        for part in scores:
            tensors += [*part.logprobs.tensors, part.sums]
        self._download = Download([*tensors, *([states] if states is not None else [])])

    def result(self) -> RunnerOutput:
        """What the step gave."""
        tensors, failed = self._download.wait(), dict(self._failed)
        refused: dict[SequenceId, str] = {}
        sampled: dict[SequenceId, SampledToken] = {}
        if self._choice is not None:
            num_tensors = len(self._choice.tensors)
            chosen, tensors = tensors[:num_tensors], tensors[num_tensors:]
            sampled = self._sampled(self._choice.read(chosen), failed, refused)
        prompt_logprobs: dict[SequenceId, list[PromptLogprob]] = {}
        for part in self._scores:
            num_tensors = len(part.logprobs.tensors) + 1
            _read_scores(part, tensors[:num_tensors], prompt_logprobs, failed)
            tensors = tensors[num_tensors:]
        # A sequence in `failed` ends, whatever else the step gave it.
        return RunnerOutput(
            sampled=sampled,
            prompt_logprobs={sequence_id: tuple(found) for sequence_id, found in prompt_logprobs.items()},
            hidden_states=self._states(tensors[0], failed) if self._has_states else {},
            refused=refused,
            failed=failed,
        )

    def _sampled(
        self,
        tokens: list[SampledToken | str | None],
        failed: dict[SequenceId, str],
        refused: dict[SequenceId, str],
    ) -> dict[SequenceId, SampledToken]:
        sampled: dict[SequenceId, SampledToken] = {}
        sequence_ids = [item.sequence.sequence_id for item in self._samples]
        for sequence_id, token in zip(sequence_ids, tokens, strict=True):
            if sequence_id in failed:
                continue
            if isinstance(token, SampledToken):
                sampled[sequence_id] = token
            elif token is None:
                failed[sequence_id] = NON_FINITE
            else:
                refused[sequence_id] = token
        return sampled

    def _states(self, states: torch.Tensor, failed: dict[SequenceId, str]) -> dict[SequenceId, bytes]:
        """states: [len(pooled), hidden] float32 on the host -> the bytes of each row."""
        for item, is_finite in zip(self._pooled, states.sum(dim=-1).isfinite().tolist(), strict=True):
            if not is_finite:
                failed.setdefault(item.sequence.sequence_id, NON_FINITE_STATE)
        values = states.numpy().astype("<f4", copy=False)
        return {item.sequence.sequence_id: values[row].tobytes() for row, item in enumerate(self._pooled)}


def _read_scores(
    part: PromptScores,
    tensors: Sequence[torch.Tensor],
    found: dict[SequenceId, list[PromptLogprob]],
    failed: dict[SequenceId, str],
) -> None:
    *gathered, sums = tensors
    rows = zip(part.targets, part.logprobs.read(gathered), sums.isfinite().tolist(), strict=True)
    for target, (logprob, top), is_finite in rows:
        sequence_id = target.sequence.sequence_id
        if not is_finite:
            failed.setdefault(sequence_id, NON_FINITE)
        entry = PromptLogprob(position=target.position, logprob=logprob, top_logprobs=top)
        found.setdefault(sequence_id, []).append(entry)
