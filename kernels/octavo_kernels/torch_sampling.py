"""Sampling on a CPU from stock torch operators: `sample_ref.py` without the sort of the whole vocabulary.

The noise is bounded (see `gumbel_noise`), so a token whose logit is further below the best than the noise spans cannot
win. Dropping those first is exact, and leaves a few tokens of a trained model's 10^5: only they are sorted and given
noise.
"""

from __future__ import annotations

import torch

from octavo_kernels.backend import SamplingBatch
from octavo_kernels.checks import check_sample
from octavo_kernels.sample_ref import gumbel_noise

_NOISE_SPAN = 19.5
"""Nats; gumbel_noise lies in [-2.82, 16.64]."""


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """logits: [num_rows, vocab] float32, not written -> [num_rows] int64. See `KernelBackend.sample`."""
    check_sample(logits, params)
    tokens = logits.argmax(dim=-1)
    if params.all_greedy:
        return tokens
    rows = zip(
        params.temperature.tolist(),
        params.top_k.tolist(),
        params.top_p.tolist(),
        params.min_p.tolist(),
        strict=True,
    )
    for row, (temperature, top_k, top_p, min_p) in enumerate(rows):
        if temperature == 0:
            continue
        scaled = logits[row] / temperature
        candidates = _candidates(scaled, scaled[tokens[row]], top_k, top_p, min_p)
        if len(candidates) == 0:
            # a logit is NaN: the row has no distribution, and keeps the argmax like every other broken row
            continue
        noise = gumbel_noise(params.seed[row], params.position[row], candidates)
        noisy = scaled[candidates] + noise
        # candidates are in no order of ids, and equal sums go to the lowest id as everywhere
        tokens[row] = candidates[noisy == noisy.max()].min()
    return tokens


def _candidates(scaled: torch.Tensor, best: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """scaled: [vocab] fp32, best: its maximum -> [n] int64, the kept tokens that can still win."""
    candidates = (scaled >= best - _NOISE_SPAN).nonzero().squeeze(1)
    if len(candidates) == 0 or (top_k <= 0 and top_p >= 1 and min_p <= 0):
        return candidates
    # stable, so that equal logits stay in the order of their ids
    values, order = scaled[candidates].sort(descending=True, stable=True)
    candidates = candidates[order]
    if top_k > 0:
        values, candidates = values[:top_k], candidates[:top_k]
    weights = torch.exp(values - best)
    is_kept = torch.ones_like(candidates, dtype=torch.bool)
    if top_p < 1:
        # the mass that p is a part of counts the tokens that cannot win too, if top-k keeps them
        eligible = scaled.topk(top_k).values if 0 < top_k < len(scaled) else scaled
        total = torch.exp(eligible - best).double().sum()
        is_kept &= weights.double().cumsum(0) - weights.double() < top_p * total
    if min_p > 0:
        is_kept &= weights >= min_p
    is_kept[0] = True
    return candidates[is_kept]
