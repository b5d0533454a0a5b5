"""Sampling on a CPU from stock torch operators: `sample_ref.py` without the sort of the whole vocabulary.

- Tokens that cannot win get no noise: it is bounded (see `gumbel_noise`), so a logit further below the best than the
  noise spans is out. That is exact.
- top-p looks at the most likely tokens first and at all only when those do not reach p.
- Philox for one seed and position: the words that are the same for all tokens stay Python integers.
"""

from __future__ import annotations

import torch

from octavo_kernels.batches import SamplingBatch
from octavo_kernels.checks import check_sample
from octavo_kernels.sample_ref import MULTIPLIERS, ROUNDS, WEYL, WORD, gumbel_from_word, marked

_NOISE_SPAN = 19.5
"""Nats; gumbel_noise lies in [-2.82, 16.64]."""

_LIKELY = 1024
"""Tokens in which top-p looks for its mass first."""


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """logits: [num_rows, vocab] float32, not written -> [num_rows] int64. See `KernelBackend.sample`."""
    check_sample(logits, params)
    largest, tokens = logits.max(dim=-1)
    if not params.all_greedy:
        for row in params.temperature.nonzero().flatten().tolist():
            tokens[row] = _sample_row(logits[row], tokens[row], params, row)
    return marked(tokens, largest)


def _sample_row(logits: torch.Tensor, greedy: torch.Tensor, params: SamplingBatch, row: int) -> torch.Tensor:
    """-> the token, a scalar tensor."""
    scaled = logits / params.temperature[row]
    best = scaled[greedy]
    kept = _kept_tokens(scaled, best, int(params.top_k[row]), float(params.top_p[row]), float(params.min_p[row]))
    values = scaled[kept]
    can_win = values >= best - _NOISE_SPAN
    kept, values = kept[can_win], values[can_win]
    if len(kept) == 0:
        # a logit is NaN, and the row has no distribution
        return greedy
    noisy = values + gumbel_from_word(philox_word(int(params.seed[row]), int(params.position[row]), kept))
    # kept is in no order of ids, and equal sums go to the lowest id as everywhere
    return kept[noisy == noisy.max()].min() if len(kept) > 1 else kept[0]


def _kept_tokens(scaled: torch.Tensor, best: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """scaled: [vocab] fp32, best: its maximum -> [n] int64, in no order."""
    has_top_k = 0 < top_k < len(scaled)
    if has_top_k:
        values, tokens = _largest(scaled, top_k)
    elif top_p < 1:
        values, tokens = _largest(scaled, min(_LIKELY, len(scaled)))
    else:
        values, tokens = scaled, torch.arange(len(scaled))
    if top_p < 1:
        total = torch.exp((values if has_top_k else scaled) - best).double().sum()
        mass = torch.exp(values - best).double().cumsum(0)
        if not has_top_k and mass[-1] < top_p * total:
            values, tokens = _largest(scaled, len(scaled))
            mass = torch.exp(values - best).double().cumsum(0)
        # a token stays while the mass before it is short of p: the smallest set that reaches it
        num_kept = 1 + int((mass[:-1] < top_p * total).sum())
        values, tokens = values[:num_kept], tokens[:num_kept]
    if min_p > 0:
        tokens = tokens[torch.exp(values - best) >= min_p]
    return tokens


def _largest(scaled: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids of the `count` first tokens in the order (logit falling, id rising)."""
    # topk promises nothing about which of equal values it returns, hence only its threshold is used
    threshold = scaled.topk(count, sorted=False).values.min()
    tokens = (scaled >= threshold).nonzero().squeeze(1)
    # stable, so that equal logits stay in the order of their ids
    values, order = scaled[tokens].sort(descending=True, stable=True)
    return values[:count], tokens[order[:count]]


def philox_word(seed: int, position: int, token_ids: torch.Tensor) -> torch.Tensor:
    """Word 0 of `philox_4x32` with key seed and counter (position, token_ids, 0). token_ids: [n] int64 -> [n] int64.

    Words 1 and 3 are kept as whole 64-bit products: only an exclusive or follows, whose result is cut to 32 bits.
    """
    key_0, key_1 = seed & WORD, (seed >> 32) & WORD
    first_product = MULTIPLIERS[0] * (position & WORD)
    word_1 = token_ids * MULTIPLIERS[1]
    word_0 = (word_1 >> 32).bitwise_xor_(((position >> 32) & WORD) ^ key_0).bitwise_and_(WORD)
    word_2 = torch.full_like(token_ids, (first_product >> 32) ^ key_1)
    word_3 = torch.full_like(token_ids, first_product & WORD)
    for _ in range(ROUNDS - 1):
        key_0, key_1 = (key_0 + WEYL[0]) & WORD, (key_1 + WEYL[1]) & WORD
        product_0 = word_0 * MULTIPLIERS[0]
        product_1 = word_2 * MULTIPLIERS[1]
        torch.bitwise_right_shift(product_1, 32, out=word_0)
        word_0.bitwise_xor_(word_1).bitwise_xor_(key_0).bitwise_and_(WORD)
        torch.bitwise_right_shift(product_0, 32, out=word_2)
        word_2.bitwise_xor_(word_3).bitwise_xor_(key_1).bitwise_and_(WORD)
        word_1, word_3 = product_1, product_0
    return word_0
