"""Gumbel-argmax over the tokens that top-k, top-p and min-p keep. See `KernelBackend.sample` for what is kept.

The kept tokens are a prefix of the order (logit falling, id rising), so three numbers a row tell them: the threshold's
key, the last id kept among the logits equal to it, and the best logit (for min-p). Two passes:

1. `keep_threshold_kernel`, a program a row, finds them by a search over the 2^32 ordered keys of a float32: how many
   tokens (top-k) or how much mass (top-p) lies at or above a key, of eight keys at once, so that eleven readings of the
   row are the most. It returns at once where nothing is asked for.
2. `gumbel_argmax_kernel`, a program for 4096 tokens, adds noise to what is kept and takes its argmax.

The noise is Philox 4x32-10 with the same key and counters as sample_ref.py: identical words, hence identical draws.
"""

# Triton types a kernel's parameters at its launch
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.batches import NOT_FINITE, NOTHING_LEFT, SamplingBatch
from octavo_kernels.checks import check_sample
from octavo_kernels.launch import ceil_div, next_power_of_2
from octavo_kernels.overlap import await_inputs, overlapped
from octavo_kernels.sample_ref import marked

_BLOCK = 4096

_SEARCH_BLOCK = 1024
"""Tokens that a search weighs at once, each against eight keys: as many sums as registers hold."""

_NUM_PIVOTS = 8


@triton.jit
def keep_threshold_kernel(
    p_logits,
    p_temperature,
    p_top_k,
    p_top_p,
    p_min_p,
    p_threshold,
    p_last_equal,
    p_best,
    stride_logits,
    vocab,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
    STAGES: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(p_temperature + i_row)
    top_k = tl.load(p_top_k + i_row)
    top_p = tl.load(p_top_p + i_row)
    has_top_k = (top_k > 0) & (top_k < vocab)
    has_top_p = top_p < 1.0
    # greedy rows and rows that keep all
    threshold = tl.full([], -(2**31), tl.int32)
    last_equal = tl.full([], 2**31 - 1, tl.int32)
    p_row = p_logits + i_row * stride_logits
    is_limited = has_top_k | has_top_p | (tl.load(p_min_p + i_row) > 0.0)
    if (temperature == 0.0) | (is_limited == 0):
        tl.store(p_threshold + i_row, threshold)
        tl.store(p_last_equal + i_row, last_equal)
        tl.store(p_best + i_row, 0.0)
        return

    best = tl.full([], float("-inf"), tl.float32)
    for i_first in range(0, vocab, BLOCK):
        best = tl.maximum(best, tl.max(_scaled(p_row, i_first, vocab, temperature, BLOCK), axis=0))
    tl.store(p_best + i_row, best)

    num_equal = tl.full([], 2**31 - 1, tl.int32)
    if has_top_k:
        threshold, above = _find_key(
            p_row, vocab, temperature, best, threshold, top_k.to(tl.float32), False, PIVOTS, BLOCK, STAGES
        )
        num_equal = top_k - above.to(tl.int32)
    if has_top_p:
        above, equal = _masses(p_row, vocab, temperature, best, threshold, BLOCK)
        if has_top_k:
            equal = tl.minimum(equal, num_equal.to(tl.float32) * _weight_of_key(threshold, best))
        goal = top_p * (above + equal)
        # all tokens below this one together weigh less than what may be left out
        lightest = best + tl.log((1.0 - top_p) / vocab) - 1.0
        lowest = tl.maximum(threshold, tl.max(_key(lightest + tl.zeros([1], tl.float32)), axis=0))
        nucleus, above = _find_key(p_row, vocab, temperature, best, lowest, goal, True, PIVOTS, BLOCK, STAGES)
        needed = tl.maximum(tl.ceil((goal - above) / _weight_of_key(nucleus, best)), 1.0)
        # a threshold that top-p raised leaves top-k's ties behind
        num_equal = tl.minimum(tl.where(nucleus > threshold, 2**31 - 1, num_equal), needed.to(tl.int32))
        threshold = nucleus
    if has_top_k | has_top_p:
        last_equal = _last_equal(p_row, vocab, temperature, threshold, num_equal, BLOCK)
    tl.store(p_threshold + i_row, threshold)
    tl.store(p_last_equal + i_row, last_equal)


@triton.jit
def gumbel_argmax_kernel(
    p_logits,
    p_temperature,
    p_min_p,
    p_seed,
    p_position,
    p_threshold,
    p_last_equal,
    p_best,
    p_value,
    p_token,
    stride_logits,
    vocab,
    num_tiles,
    IS_BROKEN: tl.constexpr,
    IS_EMPTY: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_OVERLAPPED: tl.constexpr,
):
    await_inputs(IS_OVERLAPPED)
    i_row = (tl.program_id(0) // num_tiles).to(tl.int64)
    i_tile = tl.program_id(0) % num_tiles
    o_token = i_tile * BLOCK + tl.arange(0, BLOCK)
    temperature = tl.load(p_temperature + i_row)
    p_row = p_logits + i_row * stride_logits
    # b_logits, b_noisy: [BLOCK] fp32
    b_logits = _scaled(p_row, i_tile * BLOCK, vocab, 1.0, BLOCK)
    b_noisy = b_logits
    if temperature != 0.0:
        b_scaled = tl.div_rn(b_logits, temperature + tl.zeros([BLOCK], tl.float32)) + 0.0
        b_key = _key(b_scaled)
        threshold = tl.load(p_threshold + i_row)
        is_kept = (b_key > threshold) | ((b_key == threshold) & (o_token <= tl.load(p_last_equal + i_row)))
        # exp is never below 0, which is min-p's "off"; nor is NaN, where a tiny temperature makes the best infinite
        is_kept = is_kept & ((tl.exp(b_scaled - tl.load(p_best + i_row)) < tl.load(p_min_p + i_row)) == 0)
        b_noise = _gumbel(tl.load(p_seed + i_row), tl.load(p_position + i_row), o_token)
        b_noisy = tl.where(is_kept, b_scaled + b_noise, float("-inf"))
    value = tl.max(b_noisy, axis=0)
    # ties go to the lowest id
    token = tl.minimum(tl.min(tl.where(b_noisy == value, o_token, 2**31 - 1), axis=0), vocab - 1)
    token = tl.where(value == float("-inf"), IS_EMPTY, token)
    is_broken = tl.max((b_logits < float("inf")).to(tl.int32) ^ 1, axis=0) > 0
    # a NaN is the largest of the tiles' values, as torch finds it
    tl.store(p_value + tl.program_id(0), tl.where(is_broken, float("nan"), value))
    tl.store(p_token + tl.program_id(0), tl.where(is_broken, IS_BROKEN, token).to(tl.int64))


@triton.jit
def _scaled(p_row, i_first, vocab, temperature, BLOCK: tl.constexpr):
    """Logits / temperature, -inf past the vocabulary: [BLOCK] fp32."""
    o_token = i_first + tl.arange(0, BLOCK)
    b_logits = tl.load(p_row + o_token, mask=o_token < vocab, other=float("-inf"))
    # rounded as the reference's; + 0 makes -0 and 0 one key
    return tl.div_rn(b_logits, temperature + tl.zeros([BLOCK], tl.float32)) + 0.0


@triton.jit
def _key(b_scaled):
    """int32 in the order of the floats."""
    b_bits = b_scaled.to(tl.int32, bitcast=True)
    return tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits)


@triton.jit
def _weight_of_key(key, best):
    """How much a token with this key weighs: exp of its float minus best."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    return tl.exp(bits.to(tl.float32, bitcast=True) - best)


@triton.jit
def _masses(p_row, vocab, temperature, best, threshold, BLOCK: tl.constexpr):
    """Mass, relative to the best token's, of the tokens whose key is above the threshold, and of those at it. fp32."""
    b_above = tl.zeros([BLOCK], tl.float32)
    b_equal = tl.zeros([BLOCK], tl.float32)
    for i_first in range(0, vocab, BLOCK):
        # past the vocabulary the weight is 0
        b_scaled = _scaled(p_row, i_first, vocab, temperature, BLOCK)
        b_weight = tl.where(i_first + tl.arange(0, BLOCK) < vocab, tl.exp(b_scaled - best), 0.0)
        b_above += tl.where(_key(b_scaled) > threshold, b_weight, 0.0)
        b_equal += tl.where(_key(b_scaled) == threshold, b_weight, 0.0)
    return tl.sum(b_above, axis=0), tl.sum(b_equal, axis=0)


@triton.jit
def _find_key(
    p_row,
    vocab,
    temperature,
    best,
    lowest,
    goal,
    IS_MASS: tl.constexpr,
    PIVOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The largest key at or above which `goal` tokens (or mass) lie, and how many (or what mass) lie above it, fp32.

    `lowest` is known to reach it. A reading of the row weighs it from PIVOTS keys on, which leave a part in PIVOTS of the
    range; numbers below 2^24 are exact.
    """
    low = lowest.to(tl.int64)
    high = tl.max(_key(best + tl.zeros([1], tl.float32)), axis=0).to(tl.int64)
    o_pivot = tl.arange(0, PIVOTS)
    # from high + 1 on
    above = tl.full([], 0.0, tl.float32)
    while low < high:
        # b_pivot: [PIVOTS] int64, rising to high; b_weight: [PIVOTS, BLOCK] fp32
        b_pivot = low + ((high - low) * (o_pivot + 1).to(tl.int64) + PIVOTS - 1) // PIVOTS
        b_weight = tl.zeros([PIVOTS, BLOCK], tl.float32)
        # loaded ahead: little else is there to wait with
        for i_first in tl.range(0, vocab, BLOCK, num_stages=STAGES):
            b_scaled = _scaled(p_row, i_first, vocab, temperature, BLOCK)
            b_each = tl.exp(b_scaled - best) if IS_MASS else tl.full([BLOCK], 1.0, tl.float32)
            b_each = tl.where(i_first + tl.arange(0, BLOCK) < vocab, b_each, 0.0)
            b_weight += tl.where(_key(b_scaled)[None, :] >= b_pivot.to(tl.int32)[:, None], b_each[None, :], 0.0)
        b_from = tl.sum(b_weight, axis=1)
        # weights fall as keys rise: those that reach the goal stand first
        num_reached = tl.sum((b_from >= goal).to(tl.int32), axis=0)
        b_low = tl.where(o_pivot < num_reached, b_pivot, low)
        b_high = tl.where(o_pivot >= num_reached, b_pivot - 1, high)
        if num_reached < PIVOTS:
            above = tl.sum(tl.where(o_pivot == num_reached, b_from, 0.0), axis=0)
        low = tl.max(b_low, axis=0)
        high = tl.min(b_high, axis=0)
    return low.to(tl.int32), above


@triton.jit
def _last_equal(p_row, vocab, temperature, threshold, num_equal, BLOCK: tl.constexpr):
    """Id of the num_equal-th token whose key is the threshold; the last such id if there are fewer."""
    seen = tl.full([], 0, tl.int32)
    last = tl.full([], -1, tl.int32)
    for i_first in range(0, vocab, BLOCK):
        o_token = i_first + tl.arange(0, BLOCK)
        b_equal = ((_key(_scaled(p_row, i_first, vocab, temperature, BLOCK)) == threshold) & (o_token < vocab)).to(
            tl.int32
        )
        b_rank = seen + tl.cumsum(b_equal, axis=0)
        last = tl.maximum(last, tl.max(tl.where((b_equal == 1) & (b_rank <= num_equal), o_token, -1), axis=0))
        seen += tl.sum(b_equal, axis=0)
    return last


@triton.jit
def _gumbel(seed, position, o_token):
    """-log(-log(u)), u = (floor(word / 512) + 0.5) / 2^23, for each token id: [BLOCK] fp32."""
    o_word = o_token.to(tl.uint32)
    low = (position & 0xFFFFFFFF).to(tl.uint32) + o_word * 0
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32) + o_word * 0
    word, _, _, _ = tl.philox(seed, low, high, o_word, o_word * 0)
    b_uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(b_uniform))


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """logits: [num_rows, vocab] float32, not written -> [num_rows] int64. See `KernelBackend.sample`."""
    check_sample(logits, params)
    num_rows, vocab = logits.shape
    if params.all_greedy or num_rows == 0:
        largest, tokens = logits.max(dim=-1)
        return marked(tokens, largest)
    block = min(_BLOCK, next_power_of_2(vocab))
    num_tiles = ceil_div(vocab, block)
    threshold = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    last_equal = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    best = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    values = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((num_rows, num_tiles), dtype=torch.int64, device=logits.device)
    keep_threshold_kernel[(num_rows,)](
        p_logits=logits,
        p_temperature=params.temperature,
        p_top_k=params.top_k,
        p_top_p=params.top_p,
        p_min_p=params.min_p,
        p_threshold=threshold,
        p_last_equal=last_equal,
        p_best=best,
        stride_logits=logits.stride(0),
        vocab=vocab,
        BLOCK=min(_SEARCH_BLOCK, block),
        PIVOTS=_NUM_PIVOTS,
        STAGES=4,
        num_warps=8,
        **overlapped(),
    )
    gumbel_argmax_kernel[(num_rows * num_tiles,)](
        p_logits=logits,
        p_temperature=params.temperature,
        p_min_p=params.min_p,
        p_seed=params.seed,
        p_position=params.position,
        p_threshold=threshold,
        p_last_equal=last_equal,
        p_best=best,
        p_value=values,
        p_token=tokens,
        stride_logits=logits.stride(0),
        vocab=vocab,
        num_tiles=num_tiles,
        IS_BROKEN=NOT_FINITE,
        IS_EMPTY=NOTHING_LEFT,
        BLOCK=block,
        num_warps=8,
        **overlapped(),
    )
    # the first of equal tiles holds the lowest id
    return tokens.gather(1, values.argmax(dim=1, keepdim=True)).squeeze(1)
