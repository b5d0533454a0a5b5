"""Sampling on a CPU: `sample_ref.py` compiled, a row a thread, without sorting a vocabulary.

One pass divides by the temperature and keeps the largest value of each 64 tokens, so that later ones skip what cannot
matter. Top-k and top-p are the same question, down to which value a prefix of the order (logit falling, id rising)
reaches a mass, with each token weighing 1 or its probability: answered by pivots, over the likely tokens first. Without
either, a token's noise is looked at only where its word can beat the best sum so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils

from octavo_kernels.batches import SamplingBatch
from octavo_kernels.checks import check_sample
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_threads import THREAD, ThreadPool, claim, finish, num_small_pieces
from octavo_kernels.numba_vector import FLOAT, FLOATS, LANES, LONG, Emitter, vector_function
from octavo_kernels.sample_ref import marked

_BLOCK = 64
"""Tokens that share a largest value."""

_LARGEST_NOISE = np.float32(16.65)
_LIKELY, _ALL = np.float32(8.0), np.float32(100.0)
"""Nats below the best: among those top-k and top-p look first, and what is as far as that they look for in all."""

_WORD = np.uint64(0xFFFFFFFF)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_NINE, _THIRTY_TWO = np.uint64(9), np.uint64(32)


class SamplingMemory:
    """What each thread writes to; grows to the largest vocabulary seen."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._vocab = 0
        self.arrays: tuple[Any, ...] = ()

    def reserve(self, vocab: int) -> tuple[Any, ...]:
        """Scaled logits, exponentials, largest values; kept ids, their weights, positions to search among; numbers."""
        if vocab > self._vocab:
            self._vocab = vocab
            width = -(-vocab // _BLOCK) * _BLOCK
            shape = (self._num_threads, width)
            self.arrays = (
                np.zeros(shape, np.float32),
                np.zeros(shape, np.float32),
                np.zeros((self._num_threads, width // _BLOCK), np.float32),
                np.zeros(shape, np.int64),
                np.zeros(shape, np.float64),
                np.zeros(shape, np.int64),
                np.zeros((self._num_threads, 8), np.float64),
            )
        return self.arrays


def sample(logits: torch.Tensor, params: SamplingBatch, pool: ThreadPool, memory: SamplingMemory) -> torch.Tensor:
    """logits: [num_rows, vocab] float32, not written -> [num_rows] int64. See `KernelBackend.sample`."""
    check_sample(logits, params)
    num_rows, vocab = logits.shape
    out = torch.zeros(num_rows, dtype=torch.int64)
    if num_rows:
        numbers = (params.temperature, params.top_p, params.min_p)
        integers = (params.top_k, params.seed, params.position)
        pool.run(
            _sample,
            1,
            (logits.data_ptr(), logits.stride(0) * 4, vocab),
            tuple(np.ascontiguousarray(values.numpy(), np.float32) for values in numbers),
            tuple(np.ascontiguousarray(values.numpy(), np.int64) for values in integers),
            memory.reserve(vocab),
            out.numpy(),
        )
    # The compiled maximum passes over a NaN.
    return marked(out, logits.amax(dim=-1)) if num_rows else out


def _divide(e: Emitter, *arguments: Any) -> None:
    """Whole blocks only."""
    b = e.builder
    source, divisor, target, peaks = (e.base(address) for address in arguments[:4])
    divisors = e.splat(e.load(divisor, 0, FLOAT))
    with cgutils.for_range(b, arguments[4], intp=LONG) as loop:
        place = e.times(loop.index, 4 * _BLOCK)
        largest = e.constant(FLOATS, float("-inf"))
        for i in range(_BLOCK // LANES):
            offset = e.sum(place, LONG(4 * LANES * i))
            value = b.fdiv(e.load(source, offset, FLOATS), divisors)
            e.store(value, target, offset)
            largest = e.larger(largest, value)
        peak = e.call("llvm.vector.reduce.fmax.v16f32", FLOAT, largest)
        e.store(peak, peaks, e.times(loop.index, 4))


def _exponentials(e: Emitter, *arguments: Any) -> None:
    b = e.builder
    source, best, target, total = (e.base(address) for address in arguments[:4])
    shift = e.splat(e.load(best, 0, FLOAT))
    wide = ir.VectorType(ir.DoubleType(), LANES)
    sums = cgutils.alloca_once_value(b, e.constant(wide, 0.0))
    with cgutils.for_range(b, arguments[4], intp=LONG) as loop:
        place = e.times(loop.index, 4 * LANES)
        value = e.exp(b.fsub(e.load(source, place, FLOATS), shift))
        e.store(value, target, place)
        b.store(b.fadd(b.load(sums), b.fpext(value, wide)), sums)
    lanes = b.load(sums)
    result = ir.DoubleType()(0.0)
    for lane in range(LANES):
        result = b.fadd(result, b.extract_element(lanes, ir.IntType(32)(lane)))
    e.store(result, total, 0)


def _divide_each(e: Emitter, source: Any, divisor: Any, target: Any, count: Any) -> None:
    values, out, factor = e.base(source), e.base(target), e.load(e.base(divisor), 0, FLOAT)
    e.each(count, lambda at, kind: e.store(e.builder.fdiv(e.load(values, at, kind), e.like(factor, kind)), out, at))


def _words(e: Emitter, *arguments: Any) -> None:
    """As `_philox`, 16 lanes of 64 bits that hold 32."""
    b = e.builder
    seed, position, start = arguments[:3]
    target = e.base(arguments[3])
    wide = ir.VectorType(LONG, LANES)
    mask, half = LONG(0xFFFFFFFF), LONG(32)

    def high(vector: Any) -> Any:
        return b.lshr(vector, e.constant(wide, 32))

    def low(vector: Any) -> Any:
        return b.and_(vector, e.constant(wide, 0xFFFFFFFF))

    for i in range(_BLOCK // LANES):
        keys = [b.and_(seed, mask), b.lshr(seed, half)]
        words = [e.splat(b.and_(position, mask)), e.splat(b.lshr(position, half))]
        words += [
            b.add(e.splat(start), ir.Constant(wide, list(range(LANES * i, LANES * (i + 1))))),
            e.constant(wide, 0),
        ]
        for _ in range(10):
            product_0 = b.mul(words[0], e.constant(wide, int(_MULTIPLIER_0)))
            product_1 = b.mul(words[2], e.constant(wide, int(_MULTIPLIER_1)))
            words[0] = b.xor(b.xor(high(product_1), words[1]), e.splat(keys[0]))
            words[2] = b.xor(b.xor(high(product_0), words[3]), e.splat(keys[1]))
            words[1], words[3] = low(product_1), low(product_0)
            keys = [
                b.and_(b.add(key, LONG(int(step))), mask) for key, step in zip(keys, (_WEYL_0, _WEYL_1), strict=True)
            ]
        e.store(b.lshr(words[0], e.constant(wide, 9)), target, 8 * LANES * i)


_philox_words = vector_function(4, _words)
"""(seed, position, token, out): int64; word 0 of a block of tokens from `token` on, without its last 9 bits."""

_divide_blocks = vector_function(5, _divide)
"""(logits, divisor, scaled, peaks, num_blocks): scaled = logits / divisor, and the largest of each block."""

_divide_rest = vector_function(4, _divide_each)
"""(logits, divisor, scaled, count): scaled = logits / divisor."""

_exponential_lanes = vector_function(5, _exponentials)
"""(scaled, best, weights, total, num_vectors): weights = exp(scaled - best), and their sum, float64."""


@part
def _philox(seed, position, token):  # type: ignore[no-untyped-def]
    """Word 0 of `sample_ref.philox_4x32`; all uint64."""
    key_0, key_1 = seed & _WORD, seed >> _THIRTY_TWO
    word_0, word_1, word_2, word_3 = position & _WORD, position >> _THIRTY_TWO, token, np.uint64(0)
    for _ in range(10):
        product_0, product_1 = word_0 * _MULTIPLIER_0, word_2 * _MULTIPLIER_1
        word_0, word_1 = (product_1 >> _THIRTY_TWO) ^ word_1 ^ key_0, product_1 & _WORD
        word_2, word_3 = (product_0 >> _THIRTY_TWO) ^ word_3 ^ key_1, product_0 & _WORD
        key_0, key_1 = (key_0 + _WEYL_0) & _WORD, (key_1 + _WEYL_1) & _WORD
    return word_0


@part
def _gumbel(word):  # type: ignore[no-untyped-def]
    """`sample_ref.gumbel_from_word` of a word without its last 9 bits: each logarithm rounded to float32."""
    uniform = (np.float64(word) + 0.5) * 2.0**-23
    inner = np.float32(np.log(uniform))
    return np.float32(-np.log(np.float64(-inner)))


@part
def _find_best(scaled, peaks, vocab):  # type: ignore[no-untyped-def]
    """The lowest id of the largest value; 0 where there is none."""
    best = np.float32(-np.inf)
    block = 0
    for i in range(peaks.shape[0]):
        if peaks[i] > best:
            best, block = peaks[i], i
    for i in range(block * _BLOCK, min((block + 1) * _BLOCK, vocab)):
        if scaled[i] == best:
            return i
    return 0


@part
def _collect(scaled, peaks, vocab, best, cut, ids, weights):  # type: ignore[no-untyped-def]
    """Tokens of at least `cut` in the order of ids, with exp(value - best) -> how many, and their mass."""
    count, mass = 0, 0.0
    for block in range(peaks.shape[0]):
        if peaks[block] >= cut:
            for i in range(block * _BLOCK, min((block + 1) * _BLOCK, vocab)):
                if scaled[i] >= cut:
                    ids[count] = i
                    weights[count] = np.float32(np.exp(np.float64(scaled[i] - best)))
                    mass += weights[count]
                    count += 1
    return count, mass


@part
def _keep_prefix(scaled, ids, weights, count, target, by_count, work):  # type: ignore[no-untyped-def]
    """Keeps, in order of ids, the smallest prefix of (value falling, id rising) whose mass reaches `target` -> count.

    A token weighs 1 where `by_count`. `work`: see `_find_threshold`.
    """
    threshold, above = _find_threshold(scaled, ids, weights, count, target, by_count, work)
    kept = 0
    for i in range(count):
        value = scaled[ids[i]]
        if value > threshold or (value == threshold and above < target):
            if value == threshold:
                above += 1.0 if by_count else weights[i]
            ids[kept], weights[kept] = ids[i], weights[i]
            kept += 1
    return kept


@part
def _find_threshold(scaled, ids, weights, count, target, by_count, work):  # type: ignore[no-untyped-def]
    """The value at which the mass reaches `target` (-infinity: nowhere), and the mass above it.

    work: positions in ids that the search still looks at; a pivot of theirs halves them.
    """
    for i in range(count):
        work[i] = i
    left, above = count, 0.0
    while left > 0:
        pivot = scaled[ids[work[left // 2]]]
        larger, equal = _mass_from(pivot, scaled, ids, weights, work[:left], by_count)
        goes_up = above + larger >= target
        if not goes_up and above + larger + equal >= target:
            return pivot, above + larger
        if not goes_up:
            above += larger + equal
        kept = 0
        for i in range(left):
            value = scaled[ids[work[i]]]
            if (value > pivot) if goes_up else (value < pivot):
                work[kept] = work[i]
                kept += 1
        if kept == left:
            # only a NaN is neither
            break
        left = kept
    return np.float32(-np.inf), above


@part
def _mass_from(pivot, scaled, ids, weights, work, by_count):  # type: ignore[no-untyped-def]
    """Mass of the values above the pivot, and of those equal to it."""
    larger, equal = 0.0, 0.0
    for at in work:
        weight = 1.0 if by_count else weights[at]
        if scaled[ids[at]] > pivot:
            larger += weight
        elif scaled[ids[at]] == pivot:
            equal += weight
    return larger, equal


@part
def _draw(scaled, ids, count, seed, position, first):  # type: ignore[no-untyped-def]
    """The id whose value + noise is largest, the lowest of equal ones; `first` where there is none."""
    best_sum, best_id = np.float32(-np.inf), np.int64(-1)
    for i in range(count):
        token = ids[i]
        if scaled[token] + _LARGEST_NOISE >= best_sum:
            value = scaled[token] + _gumbel(_philox(seed, position, np.uint64(token)) >> _NINE)
            if value > best_sum or (value == best_sum and token < best_id):
                best_sum, best_id = value, token
    return best_id if best_id >= 0 else first


@part
def _draw_of_all(scaled, exponentials, peaks, vocab, key, first, words):  # type: ignore[no-untyped-def]
    """As `_draw`, of the whole vocabulary.

    -log(-log(u)) is at most -log(1 - u), and 1 - u = n / 2^23 with n = 2^23 - floor(word / 512) - 0.5. So a token can
    only reach a sum where n <= 2^23 * exp(value - sum).
    """
    seed, position = key
    best_id = np.int64(first)
    best_sum = scaled[first] + _gumbel(_philox(seed, position, np.uint64(first)) >> _NINE)
    best = scaled[first]
    bound = 2.0**23 * 1.0001 * np.exp(np.float64(best) - np.float64(best_sum))
    for block in range(peaks.shape[0]):
        if peaks[block] + _LARGEST_NOISE < best_sum:
            continue
        start = block * _BLOCK
        _philox_words(np.int64(seed), np.int64(position), start, words.ctypes.data)
        for i in range(start, min(start + _BLOCK, vocab)):
            if 8388607.5 - np.float64(words[i - start]) <= bound * exponentials[i]:
                value = scaled[i] + _gumbel(np.uint64(words[i - start]))
                if value > best_sum or (value == best_sum and i < best_id):
                    best_sum, best_id = value, np.int64(i)
                    bound = 2.0**23 * 1.0001 * np.exp(np.float64(best) - np.float64(best_sum))
    return best_id


@part
def _keep_tokens(top_k, top_p, min_p, best, row, kept):  # type: ignore[no-untyped-def]
    """Fills kept's ids with the tokens that top-k, top-p and min-p leave -> how many."""
    scaled, exponentials, peaks, vocab, numbers = row
    ids, weights, work = kept
    has_top_k, has_top_p = 0 < top_k < vocab, top_p < 1.0
    total = 0.0
    if has_top_p and not has_top_k:
        _weigh(scaled, exponentials, numbers)
        total = numbers[0]
    reach = _LIKELY if has_top_k or has_top_p else np.float32(0.01 - np.log(np.float64(min_p)))
    while True:
        cut = best - reach if reach < _ALL else np.float32(-np.inf)
        count, mass = _collect(scaled, peaks, vocab, best, cut, ids, weights)
        enough = count >= top_k if has_top_k else mass >= np.float64(top_p) * total or not has_top_p
        if enough or reach >= _ALL:
            break
        reach *= np.float32(2.0)
    if has_top_k:
        count = _keep_prefix(scaled, ids, weights, count, np.float64(top_k), True, work)
        for i in range(count):
            total += weights[i]
    if has_top_p:
        count = _keep_prefix(scaled, ids, weights, count, np.float64(top_p) * total, False, work)
    if min_p > 0.0:
        num_likely = 0
        for i in range(count):
            if weights[i] >= min_p:
                ids[num_likely] = ids[i]
                num_likely += 1
        count = num_likely
    return count


@part
def _weigh(scaled, exponentials, numbers):  # type: ignore[no-untyped-def]
    """Exponentials of all values; their sum into numbers[0]. The largest value stands in numbers[1], as float32."""
    at = numbers.ctypes.data
    _exponential_lanes(scaled.ctypes.data, at + 8, exponentials.ctypes.data, at, scaled.shape[0] // LANES)


@part
def _scale(logits, divisor_at, scaled, peaks, vocab):  # type: ignore[no-untyped-def]
    """Writes logits / divisor into scaled, followed by -infinity up to a whole block, and each block's largest."""
    whole = vocab // _BLOCK
    _divide_blocks(logits, divisor_at, scaled.ctypes.data, peaks.ctypes.data, whole)
    if whole < peaks.shape[0]:
        start = whole * _BLOCK
        _divide_rest(logits + start * 4, divisor_at, scaled.ctypes.data + start * 4, vocab - start)
        peaks[whole] = -np.inf
        for i in range(start, vocab):
            peaks[whole] = max(peaks[whole], scaled[i])
        scaled[vocab:] = -np.inf


@part
def _sample_row(logits, vocab, floats, integers, own):  # type: ignore[no-untyped-def]
    """A row's token. logits: its address; floats: temperature, top_p, min_p; integers: top_k, seed, position."""
    (temperature, top_p, min_p), (top_k, seed, position) = floats, integers
    scaled, exponentials, peaks, ids, weights, work, numbers = own
    singles = numbers[1:].view(np.float32)
    singles[1] = temperature if temperature > 0.0 else np.float32(1.0)
    _scale(logits, singles.ctypes.data + 4, scaled, peaks, vocab)
    first = _find_best(scaled, peaks, vocab)
    if temperature == 0.0 or not scaled[first] > -np.inf:
        return first
    singles[0] = scaled[first]
    seed, position = np.uint64(seed), np.uint64(position)
    if 0 < top_k < vocab or top_p < 1.0 or min_p > 0.0:
        row = (scaled, exponentials, peaks, vocab, numbers)
        count = _keep_tokens(top_k, top_p, min_p, scaled[first], row, (ids, weights, work))
        return _draw(scaled, ids, count, seed, position, first)
    _weigh(scaled, exponentials, numbers)
    return _draw_of_all(scaled, exponentials, peaks, vocab, (seed, position), first, ids)


@kernel
def _sample(threads, logits, floats, integers, memory, out):  # type: ignore[no-untyped-def]
    """logits: (address, row bytes, vocabulary). The rest: see `sample`."""
    address, stride, vocab = logits
    thread = threads[THREAD]
    num_blocks = (vocab + _BLOCK - 1) // _BLOCK
    width = num_blocks * _BLOCK
    own = (
        memory[0][thread, :width],
        memory[1][thread, :width],
        memory[2][thread, :num_blocks],
        memory[3][thread],
        memory[4][thread],
        memory[5][thread],
        memory[6][thread],
    )
    pieces = num_small_pieces(out.shape[0], threads)
    done, (start, end) = 0, claim(out.shape[0], pieces, 0, threads)
    while start < end:
        for row in range(start, end):
            numbers = (floats[0][row], floats[1][row], floats[2][row])
            others = (integers[0][row], integers[1][row], integers[2][row])
            out[row] = _sample_row(address + row * stride, vocab, numbers, others, own)
        done, (start, end) = done + end - start, claim(out.shape[0], pieces, 0, threads)
    finish(done, out.shape[0], 0, threads)
