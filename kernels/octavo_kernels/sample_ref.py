"""Reference of `sample.py`: Gumbel-argmax over the tokens that top-k, top-p and min-p keep.

argmax(logits / temperature + Gumbel noise) is a draw from softmax(logits / temperature). The noise of a token comes
from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the request's seed as
key and (position, token id) as counter, so a draw depends neither on the batch nor on the device.
"""

from __future__ import annotations

import torch

from octavo_kernels.batches import NOT_FINITE, NOTHING_LEFT, SamplingBatch
from octavo_kernels.checks import check_sample

WORD = 0xFFFFFFFF
"""Cuts to 32 bits."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """logits: [num_rows, vocab] float32, not written -> [num_rows] int64. See `KernelBackend.sample`."""
    check_sample(logits, params)
    tokens = [_sample_row(logits[row], params, row) for row in range(logits.shape[0])]
    return marked(torch.tensor(tokens, dtype=torch.int64, device=logits.device), logits.amax(dim=-1))


def marked(tokens: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """tokens: [num_rows] int64; largest: [num_rows], each row's largest logit, NaN where it holds one -> like tokens."""
    tokens = torch.where(largest < torch.inf, tokens, NOT_FINITE)
    return torch.where(largest == -torch.inf, NOTHING_LEFT, tokens)


def _sample_row(logits: torch.Tensor, params: SamplingBatch, row: int) -> int:
    temperature = params.temperature[row]
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits / temperature
    kept = kept_tokens(scaled, int(params.top_k[row]), float(params.top_p[row]), float(params.min_p[row]))
    token_ids = torch.arange(logits.shape[0], device=logits.device)
    noise = gumbel_noise(params.seed[row], params.position[row], token_ids)
    return int((scaled + noise).masked_fill(~kept, -torch.inf).argmax())


def kept_tokens(scaled: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """scaled: [vocab] fp32 -> [vocab] bool. The kept tokens are a prefix of the order (logit falling, id rising)."""
    # stable, so that equal logits stay in the order of their ids
    values, order = scaled.sort(descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if top_k > 0:
        keep[top_k:] = False
    weights = torch.exp(values - values[0]).masked_fill(~keep, 0.0)
    if top_p < 1:
        # a token stays while the mass before it is short of p: the smallest set that reaches it
        mass_before = weights.double().cumsum(0) - weights.double()
        keep &= mass_before < top_p * weights.double().sum()
    if min_p > 0:
        keep &= weights >= min_p
    keep[0] = True
    return torch.zeros_like(keep).scatter_(0, order, keep)


def gumbel_noise(seed: torch.Tensor, position: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """-log(-log(u)), u = (floor(word / 512) + 0.5) / 2^23: exact in float32, never 0 or 1.

    seed, position, token_ids: int64, broadcast against each other -> float32, in [-2.82, 16.64].
    """
    counter = (position & WORD, (position >> 32) & WORD, token_ids & WORD, torch.zeros_like(token_ids))
    word = philox_4x32(counter, (seed & WORD, (seed >> 32) & WORD))[0]
    return gumbel_from_word(word)


def gumbel_from_word(word: torch.Tensor) -> torch.Tensor:
    """word: int64 that holds 32 bits -> float32."""
    uniform = ((word >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


Words4 = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox_4x32(counter: Words4, key: tuple[torch.Tensor, torch.Tensor]) -> Words4:
    """Philox 4x32-10. Every word is an int64 tensor that holds 32 bits."""
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(MULTIPLIERS[0], word_0)
        high_1, low_1 = _multiply(MULTIPLIERS[1], word_2)
        word_0, word_1, word_2, word_3 = high_1 ^ word_1 ^ key_0, low_1, high_0 ^ word_3 ^ key_1, low_0
        key_0, key_1 = (key_0 + WEYL[0]) & WORD, (key_1 + WEYL[1]) & WORD
    return word_0, word_1, word_2, word_3


def _multiply(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the 64-bit product. int64 wraps around, and its bits are still the product's."""
    product = multiplier * word
    return (product >> 32) & WORD, product & WORD
