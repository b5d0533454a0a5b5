"""Quantised linear layers: the arithmetic to the last bit that matters, on this processor's path and the portable one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.backend import select_quantized_backend
from octavo_kernels.errors import KernelError
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.numba_dot import KINDS, Kind, tile_function
from octavo_kernels.numba_linear import (
    NUM_TILES,
    activation_buffers,
    described,
    first_tile,
    item_of,
    linear,
    num_items,
    pack,
    tile_at,
)
from octavo_kernels.numba_threads import (
    NUM_THREADS,
    THREAD,
    ThreadPool,
    add_to,
    begin_to_write,
    claim,
    end_writing,
    finish,
    look_at,
    most_taken,
    num_pieces,
    num_taken,
    share_start,
    take,
    wait_for,
)
from octavo_kernels.quantized_weight import QuantizedWeight, quantize, stack
from octavo_kernels.weight_memory import WeightMemory

WITHIN_8_BITS = 0.02
"""Of the results' spread: what activations of 8 bits a group may cost; measured 0.006."""


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x: [num_tokens, in] as int8 with one scale for 32 inputs, and back; the meaning of the kernels' activations."""
    groups = x.unflatten(1, (-1, 32))
    steps = groups.abs().amax(dim=-1, keepdim=True) / 127
    return (torch.round(groups / torch.where(steps > 0, steps, 1.0)) * steps).flatten(1)


@pytest.fixture(scope="module")
def backend() -> NumbaBackend:
    return NumbaBackend(2)


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
def test_a_rounded_weight_is_half_a_step_away_at_most(bits: int, steps: int) -> None:
    weight = random(1, 6, 96)
    groups = weight.unflatten(1, (-1, 32))
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    span = high - low if bits == 4 else 2 * torch.maximum(high, -low)

    error = (quantize(weight, bits).dequantize() - weight).abs().unflatten(1, (-1, 32)).amax(dim=-1)

    assert bool((error <= span / steps / 2 * 1.001).all())


def test_a_group_of_equal_values_is_exact() -> None:
    weight = torch.full((1, 32), -0.75)

    assert quantize(weight, 4).dequantize().tolist() == weight.tolist()
    assert quantize(torch.zeros(1, 32), 8).dequantize().tolist() == [[0.0] * 32]


def test_stacked_parts_of_different_bits_keep_their_values() -> None:
    parts = [quantize(random(1, 3, 64), 4), quantize(random(2, 5, 64), 8)]

    whole = stack(parts)

    assert whole.bits == 8
    assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in parts]))


def half_codes(seed: int, *shape: int) -> QuantizedWeight:
    """4-bit codes kept as 8 bits, as one layer of both kinds has them: their minima follow from nothing else."""
    weight = quantize(random(seed, *shape), 4)
    return QuantizedWeight(bits=8, codes=weight.codes, scales=weight.scales, minima=weight.minima)


def a_weight(kind: Kind, *shape: int) -> QuantizedWeight:
    weight = half_codes(1, *shape) if kind.bits == 8 and kind.has_minima else quantize(random(1, *shape), kind.bits)
    assert weight.is_symmetric is not kind.has_minima
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 8, 21])
@pytest.mark.parametrize(("out_features", "in_features"), [(32, 32), (37, 96), (160, 1792)])
def test_a_linear_layer_is_its_rounded_operands_product(
    backend: NumbaBackend, kind: Kind, num_tokens: int, out_features: int, in_features: int
) -> None:
    """The widest is more than what of a tile is multiplied with all tokens before the rest is."""
    weight = a_weight(kind, out_features, in_features)
    bias = random(2, out_features)
    x = random(3, num_tokens, in_features) * 5

    out = backend.linear(x, backend.prepare_quantized_linear(weight, bias))

    expected = rounded(x).double() @ weight.dequantize().double().T + bias
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5 * in_features)
    exact = x @ weight.dequantize().T + bias
    assert float((out - exact).std() / exact.std()) < WITHIN_8_BITS


@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_codes_do_not_overflow(backend: NumbaBackend, bits: int) -> None:
    """All codes at their largest against activations of one sign: the largest sums that can occur."""
    largest = 2**bits - 1
    weight = QuantizedWeight(
        bits=bits,
        codes=torch.full((16, 64), largest, dtype=torch.uint8),
        scales=torch.ones(16, 2),
        minima=torch.zeros(16, 2),
    )
    x = torch.full((1, 64), -1.0)

    out = backend.linear(x, backend.prepare_quantized_linear(weight))

    torch.testing.assert_close(out, torch.full((1, 16), -64.0 * largest))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_in_any_batch(backend: NumbaBackend, kind: Kind) -> None:
    handle = backend.prepare_quantized_linear(a_weight(kind, 48, 1792))
    x = random(2, 83, 1792)
    alone = torch.cat([backend.linear(row[None], handle) for row in x])

    assert all(torch.equal(backend.linear(x[:count], handle), alone[:count]) for count in (2, 3, 4, 5, 9, 11, 72, 83))


def test_a_row_is_the_same_alone_and_in_any_batch_unquantised(backend: NumbaBackend) -> None:
    """As of a router, which must send a token to the same experts whatever stands beside it."""
    weight, bias = random(1, 130, 192), random(2, 130)
    handle = backend.prepare_linear(weight, bias)
    x = random(3, 67, 192)

    together = backend.linear(x, handle)

    assert all(torch.equal(backend.linear(x[row : row + 1], handle), together[row : row + 1]) for row in range(67))
    torch.testing.assert_close(together, x @ weight.T + bias, rtol=1e-5, atol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    packed, x = pack(quantize(random(1, 80, 64), 4), None, WeightMemory()), random(2, 5, 64)

    outs = [linear(x, packed, ThreadPool(count)) for count in (1, 2, 5)]

    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_work_is_whole_without_the_threads_that_do_not_come() -> None:
    """A busy machine may give a core to somebody else for as long as it likes."""
    pool, packed, x = ThreadPool(3), pack(quantize(random(1, 80, 64), 4), None, WeightMemory()), random(2, 5, 64)
    for jobs in pool._jobs:
        jobs.put(None)

    out = linear(x, packed, pool)

    assert torch.equal(out, linear(x, packed, ThreadPool(1)))


@numba.njit(nogil=True)
def _slow_pieces(threads, values, seen):  # type: ignore[no-untyped-def]
    """Each piece takes milliseconds; the caller's thread then looks at what all have written."""
    pieces = num_pieces(values.shape[0], threads)
    done, (start, end) = 0, claim(values.shape[0], pieces, 0, threads)
    while start < end:
        for i in range(start, end):
            total = 0.0
            for step in range(100_000):
                total += np.sin(step + i)
            values[i] = 1.0 if total != 0.0 else 2.0
        done, (start, end) = done + end - start, claim(values.shape[0], pieces, 0, threads)
    finish(done, values.shape[0], 0, threads)
    if threads[THREAD] == 0:
        seen[0] = values.sum()


def test_a_phase_ends_when_every_begun_piece_is_done() -> None:
    pool, seen = ThreadPool(4), np.zeros(1)

    for _ in range(10):
        pool.run(_slow_pieces, 1, np.zeros(16), seen)

        assert seen[0] == 16.0


@numba.njit(nogil=True)
def _stuck_piece(threads, values, signals):  # type: ignore[no-untyped-def]
    """The other thread begins a piece and gets no further until the second signal; the caller's waits for the first."""
    begun, goes_on, thread = signals.ctypes.data, signals.ctypes.data + 8, threads[THREAD]
    count = values.shape[0]
    pieces = num_pieces(count, threads)
    while thread == 0 and look_at(begun) == 0:
        pass
    piece, start, end = take(count, pieces, 0, threads)
    while start < end:
        if thread == 1:
            add_to(begun, 1)
            while look_at(goes_on) == 0:
                pass
        if begin_to_write(piece, 0, threads):
            for i in range(start, end):
                values[i] += 1
            end_writing(end - start, 0, threads)
        piece, start, end = take(count, pieces, 0, threads)
    if thread == 1:
        add_to(begun, 1)


def test_a_piece_whose_thread_has_lost_its_core_is_done_by_another_and_written_once() -> None:
    pool, values, signals = ThreadPool(2), np.zeros(8, np.int64), np.zeros(2, np.int64)

    pool.run(_stuck_piece, 1, values, signals, most_pieces=8)

    assert signals.tolist() == [1, 0], "the other thread is still where it was"
    assert values.tolist() == [1] * 8
    signals[1] = 1
    while signals[0] < 2:
        time.sleep(0.001)
    assert values.tolist() == [1] * 8


@numba.njit(nogil=True)
def _first_claims(threads, own, seen):  # type: ignore[no-untyped-def]
    """Each thread notes the first item that it gets; all wait until each has one, so that none is taken from another."""
    count = own.shape[0]
    pieces = num_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, 0, threads)
    own[threads[THREAD]] = start
    add_to(seen.ctypes.data, 1)
    wait_for(seen.ctypes.data, threads[NUM_THREADS])
    while start < end:
        done, (start, end) = done + end - start, claim(count, pieces, 0, threads)
    finish(done, count, 0, threads)


@pytest.mark.parametrize(("num_threads", "count"), [(2, 3), (2, 90), (3, 7), (4, 1000)])
def test_a_thread_begins_with_its_own_share(num_threads: int, count: int) -> None:
    """What comes first in the next phase is asked for before it begins, so a thread must know it."""
    own, seen = np.zeros(count, np.int64), np.zeros(1, np.int64)

    ThreadPool(num_threads).run(_first_claims, 1, own, seen)

    assert own[:num_threads].tolist() == [thread * count // num_threads for thread in range(num_threads)]


@numba.njit(nogil=True)
def _claims_in_turn(threads, done, starts):  # type: ignore[no-untyped-def]
    """The caller's thread notes where each of its pieces begins."""
    count = done.shape[0]
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, 0, threads)
    number = 0
    while start < end:
        done[start:end] += 1
        starts[number] = start
        number += 1
        start, end = claim(count, pieces, 0, threads)


@pytest.mark.parametrize(
    ("num_threads", "count", "expected"),
    [
        (2, 3, [0, 1, 2]),
        (3, 7, [0, 2, 1, 3, 4, 5, 6]),
        (3, 24, [0, 8, 5, 6, 7, 13, 14, 15, 16, 21, 22, 23]),
    ],
)
def test_a_neighbour_that_has_not_come_is_helped_after_the_first_piece(
    num_threads: int, count: int, expected: list[int]
) -> None:
    """And not only when all of the own share is done, for then its long first piece would be begun last."""
    pool, done, starts = ThreadPool(num_threads), np.zeros(count, np.int64), np.full(len(expected), -1)
    for jobs in pool._jobs:
        jobs.put(None)

    pool.run(_claims_in_turn, 1, done, starts)

    assert done.tolist() == [1] * count
    assert starts.tolist() == expected


@numba.njit(nogil=True)
def _first_tiles(threads, layers, codes, scales, seen):  # type: ignore[no-untyped-def]
    """Each thread notes the tile that it will read first, and the one that its first item then is of."""
    layer = described(layers, 0)
    count = num_items(layer[NUM_TILES], codes)
    seen[threads[THREAD], 0] = first_tile(layer, layer[NUM_TILES], codes.shape[0], threads)
    tile, _, _ = item_of(share_start(count, threads), codes, scales)
    seen[threads[THREAD], 1] = tile_at(layer, tile)
    add_to(seen.ctypes.data + 16 * threads[NUM_THREADS], 1)
    wait_for(seen.ctypes.data + 16 * threads[NUM_THREADS], threads[NUM_THREADS])


@pytest.mark.parametrize("num_tokens", [1, 73, 300])
def test_a_thread_knows_the_tile_that_its_next_phase_begins_with(num_tokens: int) -> None:
    packed, num_threads = pack(quantize(random(1, 352, 64), 8), None, WeightMemory()), 3
    codes, scales = activation_buffers(num_tokens, 64)
    seen = np.zeros((num_threads + 1, 2), np.int64)

    ThreadPool(num_threads).run(_first_tiles, 1, packed.describe()[None], codes, scales, seen)

    asked, read = seen[:num_threads].T.tolist()
    begin, size = packed.blocks.ctypes.data, packed.blocks[0].nbytes
    assert asked == read
    assert [(address - begin) // size for address in read] == [0, 11 // 3, 22 // 3]


@numba.njit(nogil=True)
def _claim_all(threads, pieces, times):  # type: ignore[no-untyped-def]
    count = times.shape[0]
    done, (start, end) = 0, claim(count, pieces, 0, threads)
    while start < end:
        for item in range(start, end):
            add_to(times.ctypes.data + 8 * item, 1)
        done, (start, end) = done + end - start, claim(count, pieces, 0, threads)
    finish(done, count, 0, threads)


@given(num_threads=st.integers(1, 9), count=st.integers(0, 300), pieces=st.integers(1, 20))
@settings(deadline=None)
def test_every_item_is_claimed_once_by_threads_that_come_and_that_do_not(
    num_threads: int, count: int, pieces: int
) -> None:
    pool, times = ThreadPool(num_threads), np.zeros(count, np.int64)
    for jobs in pool._jobs[::2]:
        jobs.put(None)

    pool.run(_claim_all, 1, pieces, times)

    assert times.tolist() == [1] * count


@numba.njit(nogil=True)
def _take_all(threads, item_bytes, times, most):  # type: ignore[no-untyped-def]
    count = times.shape[0]
    pieces = num_taken(count, item_bytes, threads)
    most[threads[THREAD]] = pieces * threads[NUM_THREADS]
    piece, start, end = take(count, pieces, 0, threads)
    while start < end:
        if begin_to_write(piece, 0, threads):
            for item in range(start, end):
                add_to(times.ctypes.data + 8 * item, 1)
            end_writing(end - start, 0, threads)
        piece, start, end = take(count, pieces, 0, threads)


@given(num_threads=st.integers(1, 9), count=st.integers(1, 300), item_bytes=st.integers(1, 100_000))
@settings(deadline=None)
def test_every_item_is_written_once_and_no_piece_lies_outside(num_threads: int, count: int, item_bytes: int) -> None:
    pool, times, most = ThreadPool(num_threads), np.zeros(count, np.int64), np.zeros(num_threads, np.int64)
    for jobs in pool._jobs[1::2]:
        jobs.put(None)

    pool.run(_take_all, 1, item_bytes, times, most, most_pieces=num_threads * (count + 20))

    assert times.tolist() == [1] * count
    assert most.max() <= most_taken(count * item_bytes, num_threads)


def test_a_forgotten_pool_ends_its_threads() -> None:
    before = set(threading.enumerate())
    pool = ThreadPool(3)
    own = [thread for thread in threading.enumerate() if thread not in before]

    del pool
    for thread in own:
        thread.join(timeout=10)

    assert len(own) == 2
    assert not any(thread.is_alive() for thread in own)


def test_what_is_not_a_number_stays_in_its_row(backend: NumbaBackend) -> None:
    """The runner tells a failed row by it."""
    handle = backend.prepare_quantized_linear(quantize(random(1, 16, 64), 4))
    x = random(2, 3, 64)
    x[1, 40] = torch.nan

    out = backend.linear(x, handle)

    assert out.isnan().any(dim=1).tolist() == [False, True, False]


def test_no_tokens_give_no_rows(backend: NumbaBackend) -> None:
    handle = backend.prepare_quantized_linear(quantize(random(1, 20, 64), 4))

    assert backend.linear(torch.zeros(0, 64), handle).shape == (0, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_the_portable_instructions_give_the_same(kind: Kind) -> None:
    """The path of processors without VNNI, whatever this one has; four tokens, one tile."""
    tile = tile_function(4, kind, vnni=False)

    @numba.njit
    def run(weight, bias, codes, pairs, out):  # type: ignore[no-untyped-def]
        tile(
            weight.ctypes.data,
            bias.ctypes.data,
            bias.ctypes.data + 32 * 4,
            codes.ctypes.data,
            pairs.ctypes.data,
            out.ctypes.data,
            weight.ctypes.data,
            pairs.shape[1],
            0,
            pairs.shape[1],
            out.shape[1] * 4,
            1,
        )

    packed = pack(a_weight(kind, 32, 96), random(2, 32), WeightMemory())
    x = random(3, 4, 96)
    codes, pairs = activation_buffers(4, 96)
    steps = x.unflatten(1, (-1, 32)).abs().amax(dim=-1) / 127
    codes[:] = torch.round(x / steps.repeat_interleave(32, dim=1)).to(torch.int8).numpy()
    sums = codes.reshape(4, 3, 32).sum(axis=-1, dtype=np.int32)
    pairs[..., 0] = steps.numpy()
    pairs[..., 1] = pairs[..., 0] * sums
    pairs[..., 2] = (-128 * sums).view(np.float32)
    out = np.full((4, 32), np.nan, np.float32)

    run(packed.blocks, packed.bias, codes, pairs, out)

    torch.testing.assert_close(torch.from_numpy(out), linear(x, packed, ThreadPool(1)), rtol=1e-5, atol=1e-5)


OTHER_PROCESSOR = """
import torch
from octavo_kernels.backend import select_quantized_backend
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.quantized_weight import quantize
backend = select_quantized_backend("cpu", 2)
print(backend.description)
x, weight = torch.arange(-480.0, 480.0).view(5, 192), quantize(torch.arange(24.0 * 192).view(24, 192).cos(), 4)
out = backend.linear(x, backend.prepare_quantized_linear(weight))
exact = x @ weight.dequantize().T
print(float((out - exact).std() / exact.std()))
spec = KVCacheSpec(num_layers=1, num_blocks=3, block_size=16, num_kv_heads=1, head_dim=16, dtype=torch.float16)
cache = backend.allocate_kv_cache(spec)
q, k, v = torch.arange(3 * 32 * 16.0).view(3, 32, 1, 16).cos().half().float()
backend.store_kv(k, v, cache, 0, torch.arange(16, 48))
batch = AttentionBatch(
    query_start_loc=torch.tensor([0, 32], dtype=torch.int32), seq_lens=torch.tensor([32], dtype=torch.int32),
    block_tables=torch.tensor([[1, 2]], dtype=torch.int32), slot_mapping=torch.arange(16, 48),
    max_query_len=32, max_seq_len=32)
out = backend.attention(q, cache, 0, backend.plan_attention(batch, cache, 1), 0.25)
scores = (q[:, 0] @ k[:, 0].T * 0.25).masked_fill(torch.ones(32, 32).triu(1).bool(), -torch.inf)
print(float((out[:, 0] - scores.softmax(-1) @ v[:, 0]).abs().max()))
"""


@pytest.mark.parametrize(
    ("processor", "features"),
    [
        ("haswell", "+sse4.2,+avx,+avx2,+fma,+f16c"),
        # the least that any x86-64 has; its vectors of four take long to compile
        pytest.param("x86-64", "+sse2", marks=pytest.mark.full),
    ],
)
def test_another_processor_is_compiled_for_and_its_code_is_kept(tmp_path: Path, processor: str, features: str) -> None:
    """As an image is built for processors older than the builder's; neither has an instruction for dots of bytes."""
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(sys.path),
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": features,
    }

    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESSOR],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )

    description, linear_error, attention_error = done.stdout.splitlines()
    assert description == "numba (portable vectors, 2 threads)"
    assert float(linear_error) < WITHIN_8_BITS
    assert float(attention_error) < 1e-5
    assert list(tmp_path.glob("numba-*/**/*.nbc"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "hip"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(KernelError, match=f"device is '{device}', but torch finds no GPU"):
        select_quantized_backend(device, 2)


@pytest.mark.parametrize("columns", [33, 16])
def test_a_width_of_broken_groups_is_refused(columns: int) -> None:
    with pytest.raises(KernelError, match="a multiple of 32"):
        QuantizedWeight(
            bits=4,
            codes=torch.zeros(2, columns, dtype=torch.uint8),
            scales=torch.zeros(2, 1),
            minima=torch.zeros(2, 1),
        )


def test_other_shapes_and_dtypes_are_refused(backend: NumbaBackend) -> None:
    handle = backend.prepare_quantized_linear(quantize(random(1, 16, 64), 4))

    with pytest.raises(KernelError, match="x has shape"):
        backend.linear(torch.zeros(1, 32), handle)
    with pytest.raises(KernelError, match=r"x is torch\.bfloat16"):
        backend.linear(torch.zeros(1, 64, dtype=torch.bfloat16), handle)
    with pytest.raises(KernelError, match="bias has shape"):
        backend.prepare_quantized_linear(quantize(random(1, 16, 64), 4), torch.zeros(15))
