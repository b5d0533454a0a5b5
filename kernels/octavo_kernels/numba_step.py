"""All layers of a decoder step as one compiled function: no Python between operations.

A layer is eight phases (see `numba_threads.py`): norm and quantise, qkv, rotate and store, attention, output
projection, norm and quantise, gate and up, down. What a piece of one writes, any piece of the next may read.
Of a few rows each thread norms all for itself, into memory of its own: that takes less time than to meet. What a late
thread norms while others change the rows it can use nowhere, for then no piece is left that reads it. And where a
sequence's rows are one block of attention, as in decodes, that block rotates and stores them itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.attention_checks import check_attention_batch, check_table_width
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.decoder_spec import DecoderSpec
from octavo_kernels.handles import KVCache
from octavo_kernels.numba_attention import (
    MAX_ROWS,
    NO_WINDOW,
    RUNNING_BYTES,
    attend,
    block_rows,
    plan_rows,
    running_buffers,
)
from octavo_kernels.numba_best import BEST_BYTES, best_of, choose_best, keep_best
from octavo_kernels.numba_cache import TransposedCache, cache_numbers, multiply_row, rotate_halves, store_row
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_dot import PAIR_BYTES, TILE
from octavo_kernels.numba_linear import (
    NEAR_ROWS,
    NUM_TILES,
    PackedLinear,
    activation_buffers,
    aligned,
    described,
    item_of,
    most_pieces,
    multiply,
    multiply_items,
    multiply_tile,
    num_item_bytes,
    num_items,
    piece_memory,
    quantize_part,
    quantize_row,
)
from octavo_kernels.numba_threads import (
    ThreadPool,
    begin_to_write,
    claim,
    end_writing,
    finish,
    is_open,
    most_taken,
    num_pieces,
    num_small_pieces,
    num_small_taken,
    num_taken,
    take,
)
from octavo_kernels.numba_vector import LOG2_E, add_row, copy_row, norm_and_quantize, norm_row, silu_and_quantize
from octavo_kernels.quantized_weight import GROUP
from octavo_kernels.require import require_own

_LAYER_PHASES = 8

_QUANTIZED_BYTES = 32 + PAIR_BYTES
"""Of 32 values: their codes, then their scale."""

_FEW_ROWS = 3
"""Rows that each thread norms for itself."""


class CompiledDecoder:
    """`DecoderStep` for one decoder. Owns scratch memory, which grows to the largest step seen."""

    def __init__(self, spec: DecoderSpec, pool: ThreadPool) -> None:
        self._pool = pool
        self._spec = spec
        # The descriptions hold addresses: the handles must stay.
        self._handles = [
            [_packed(handle) for handle in (layer.qkv, layer.output, layer.gate_up, layer.down)]
            for layer in spec.layers
        ]
        self._linears = np.array(
            [handle.describe() for handles in [*self._handles, [_packed(spec.head)]] for handle in handles], np.int64
        )
        self._vocab = spec.head.out_features
        norms: list[list[torch.Tensor | None]] = [
            [layer.input_norm, layer.post_attention_norm] for layer in spec.layers
        ]
        self._norms = _stacked(norms, spec.final_norm.shape[0])
        head_norms = [[layer.q_norm, layer.k_norm] for layer in spec.layers if layer.q_norm is not None]
        self._head_norms = _stacked(head_norms, spec.head_dim)
        self._windows = np.array([window or NO_WINDOW for window in spec.windows], np.int64)
        self._final_norm = spec.final_norm.float().numpy()
        self._cos_sin = spec.cos_sin.contiguous().numpy()
        group = spec.num_heads // spec.num_kv_heads
        # bytes of attention's result, of a block of rows and a kv head
        self._block_bytes = block_rows(group) * group * spec.head_dim * 4
        self._memory = running_buffers(pool.num_threads, more=piece_memory(1).nbytes + self._block_bytes)
        packed = [_packed(spec.head), *(handle for handles in self._handles for handle in handles)]
        self._widest = max(handle.num_tiles for handle in packed)
        self._scratch: tuple[Any, ...] = ()
        self._capacity = 0

    def __call__(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `DecoderStep`."""
        return self._compute((hidden, positions, attention, cache, rows), likeliest=False)[0]

    def likeliest(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `DecoderStep`."""
        return self._compute((hidden, positions, attention, cache, rows), likeliest=True)[1]

    def _compute(
        self,
        step: tuple[torch.Tensor, torch.Tensor, AttentionBatch, KVCache, torch.Tensor | None],
        *,
        likeliest: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> [num_rows, hidden] float32 and, where `likeliest`, [num_rows] int64."""
        hidden, positions, attention, cache, rows = step
        own, spec = require_own(cache, TransposedCache), self._spec
        check_attention_batch(attention)
        check_table_width(attention, own.spec.block_size)
        plan = plan_rows(attention, spec.num_heads, spec.num_kv_heads)
        wanted = np.arange(hidden.shape[0]) if rows is None else rows.numpy()
        # Numba compiles again for an array of another type or layout, so each argument has one.
        indices = (positions.numpy(), attention.slot_mapping.numpy(), wanted)
        out = torch.empty((len(wanted), hidden.shape[1]), dtype=torch.float32)
        tokens = np.zeros(len(wanted) if likeliest else 0, np.int64)
        num_rows, num_threads = max(hidden.shape[0], len(wanted)), self._pool.num_threads
        self._reserve(num_rows)
        attended = plan.blocks.shape[0] * spec.num_kv_heads * self._block_bytes
        self._pool.run(
            _run,
            _LAYER_PHASES * len(spec.layers) + 2,
            hidden.contiguous().numpy(),
            tuple(np.ascontiguousarray(values, np.int64) for values in indices),
            (plan.blocks, plan.block_tables, self._windows),
            (own.keys, own.values, own.spec.block_size, spec.num_heads),
            (self._linears, self._norms, self._head_norms, self._final_norm, self._cos_sin, self._vocab),
            np.array([spec.rms_norm_eps, spec.head_dim**-0.5 * LOG2_E, 1.0], np.float32),
            self._scratch,
            self._memory,
            out.numpy(),
            (best_of(self._pool.num_threads, len(tokens)), tokens),
            most_pieces=max(most_pieces(self._widest, num_rows, num_threads), most_taken(attended, num_threads)),
        )
        return out, torch.from_numpy(tokens)

    def _reserve(self, num_tokens: int) -> None:
        if num_tokens <= self._capacity:
            return
        self._capacity = max(2 * self._capacity, num_tokens)
        first, num_tokens = self._spec.layers[0], self._capacity
        num_heads_features, num_inner = first.output.in_features, _packed(first.down).in_features
        hidden = self._final_norm.shape[0]
        num_own = max(num_tokens, _FEW_ROWS * self._pool.num_threads)
        # the codes of what is normed; qkv; attention's result and its codes; the codes of gate times up, and of the head's rows
        self._scratch = (
            *activation_buffers(num_own, hidden),
            aligned((num_tokens, _packed(first.qkv).num_tiles * TILE), np.float32),
            aligned((num_tokens, num_heads_features), np.float32),
            *activation_buffers(num_tokens, num_heads_features),
            *activation_buffers(num_tokens, num_inner),
            *activation_buffers(num_tokens, hidden),
        )


def can_compile(spec: DecoderSpec) -> bool:
    """Whether all linear layers are quantised, their widths are whole groups, and no layer has experts."""
    handles = [h for layer in spec.layers for h in (layer.qkv, layer.output, layer.gate_up, layer.down)] + [spec.head]
    group_width = spec.num_heads // spec.num_kv_heads * spec.head_dim
    is_dense = not any(layer.has_experts for layer in spec.layers)
    return is_dense and all(isinstance(handle, PackedLinear) for handle in handles) and group_width % GROUP == 0


def _packed(handle: object) -> PackedLinear:
    return require_own(handle, PackedLinear)


def _stacked(norms: list[list[torch.Tensor | None]], width: int) -> NDArray[np.float32]:
    """-> [num_layers, 2, width] float32; no layers where the model has no such norms."""
    values = [[norm.float().numpy() for norm in pair if norm is not None] for pair in norms]
    return np.array(values, np.float32).reshape(len(norms), 2, width)


@part
def _norm(hidden, weight, eps, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase, but for few rows: the norm of hidden, quantised into codes and scales."""
    count = hidden.shape[0]
    if count <= _FEW_ROWS:
        for row in range(count):
            _norm_one(hidden, weight, eps, codes, scales, row)
        return
    pieces = num_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            _norm_one(hidden, weight, eps, codes, scales, row)
        done, (start, end) = done + 1, claim(count, pieces, phase, threads)
    finish(done, pieces, phase, threads)


@part
def _norm_one(hidden, weight, eps, codes, scales, row):  # type: ignore[no-untyped-def]
    num_groups = scales.shape[1]
    x, target = hidden.ctypes.data + row * num_groups * 128, codes.ctypes.data + row * num_groups * 32
    norm_and_quantize(x, weight, target, scales.ctypes.data + row * num_groups * PAIR_BYTES, eps, num_groups)


@part
def _multiply_and_add(layer, codes, scales, hidden, memory, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: hidden += the product."""
    items, width, size = num_items(layer[NUM_TILES], codes), hidden.shape[1] * 4, num_item_bytes(codes)
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        multiply_items(layer, codes, scales, start, end, memory, piece, phase, threads)
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                tile, first, x = item_of(item, codes, scales)
                target, source = hidden.ctypes.data + first * width + tile * 128, memory + (item - start) * size
                for row in range(x[2]):
                    add_row(target + row * width, source + row * 128, 32)
            end_writing(phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@part
def _rotate_and_store(qkv, layer, step, cache, weights, numbers, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: head norms and rotation in place in qkv, and the cache write; an item is one (row, kv head)."""
    places, shape = cache_numbers(cache)
    how = _rotation(layer, shape[3], weights, numbers)
    count = qkv.shape[0] * shape[1]
    pieces = num_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, phase, threads)
    while start < end:
        for item in range(start, end):
            row = item // shape[1]
            _rotate_and_store_item(qkv, row, item - row * shape[1], layer, step, places, shape, how)
        done, (start, end) = done + 1, claim(count, pieces, phase, threads)
    finish(done, pieces, phase, threads)


@part
def _rotation(layer, head_dim, weights, numbers):  # type: ignore[no-untyped-def]
    """Addresses of the layer's two norms (0: it has none), cosines and sines, (eps, scale, 1); head_dim, rotary_dim."""
    _, _, head_norms, _, cos_sin, _ = weights
    norms = head_norms.ctypes.data + layer * 2 * head_dim * 4 if head_norms.shape[0] else 0
    return norms, cos_sin.ctypes.data, numbers.ctypes.data, head_dim, cos_sin.shape[1]


@part
def _rotate_and_store_item(qkv, row, kv_head, layer, step, places, shape, how):  # type: ignore[no-untyped-def]
    """One kv head of a row, and its query heads; how: `_rotation`."""
    positions, slots, _ = step
    num_kv_heads, size, num_heads = shape[1], shape[3] * 4, shape[6]
    group = num_heads // num_kv_heads
    heads, turn = qkv.ctypes.data + row * qkv.shape[1] * 4, how[1] + positions[row] * how[4] * 4
    k = heads + (num_heads + kv_head) * size
    _norm_and_rotate(k, False, turn, how)
    store_row(k, k + num_kv_heads * size, places, shape, layer, slots[row], kv_head)
    for head in range(kv_head * group, kv_head * group + group):
        _norm_and_rotate(heads + head * size, True, turn, how)


@part
def _norm_and_rotate(x, is_query, turn, how):  # type: ignore[no-untyped-def]
    """A head at address x: its norm where the model has one, its rotation, and for a query the scale of scores."""
    norms, _, numbers, head_dim, rotary_dim = how
    if norms:
        norm_row(x, norms if is_query else norms + head_dim * 4, x, numbers, head_dim)
    factor = numbers + (4 if is_query else 8)
    rotate_halves(x, turn, factor, rotary_dim // 2)
    multiply_row(x + rotary_dim * 4, factor, head_dim - rotary_dim)


@part
def _attend(qkv, step, plan, cache, layer, weights, numbers, context, codes, scales, memory, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: attention, its result quantised; before it the rotation where a block has all rows of its sequence."""
    blocks, tables, windows = plan
    if not _are_whole(plan):
        _attend_again(qkv, plan, cache, layer, codes, scales, memory, phase, threads)
        return
    places, shape = cache_numbers(cache)
    num_kv_heads = shape[1]
    num_groups = scales.shape[1] // num_kv_heads
    how = _rotation(layer, shape[3], weights, numbers)
    q, out = (qkv.ctypes.data, qkv.shape[1] * 4), (context.ctypes.data, context.shape[1] * 4)
    count = blocks.shape[0] * num_kv_heads
    pieces = num_small_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, phase, threads)
    while start < end:
        for item in range(start, end):
            index = item // num_kv_heads
            kv_head, first, num_rows = item - index * num_kv_heads, blocks[index, 0], blocks[index, 1]
            for row in range(first, first + num_rows):
                _rotate_and_store_item(qkv, row, kv_head, layer, step, places, shape, how)
            table = tables.ctypes.data + blocks[index, 2] * tables.shape[1] * 4
            block = (first, num_rows, blocks[index, 3], windows[layer], table)
            attend(q, block, places, shape, layer, kv_head, out, memory)
            for row in range(first, first + num_rows):
                x = out[0] + row * out[1] + kv_head * num_groups * 128
                quantize_part(x, row, kv_head * num_groups, num_groups, codes, scales)
        done, (start, end) = done + 1, claim(count, pieces, phase, threads)
    finish(done, pieces, phase, threads)


@part
def _attend_again(qkv, plan, cache, layer, codes, scales, memory, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: attention, its result quantised, of rows that are rotated and stored, so that a piece may be done again."""
    places, shape = cache_numbers(cache)
    num_kv_heads, group = shape[1], shape[6] // shape[1]
    num_groups = scales.shape[1] // num_kv_heads
    blocks, tables, windows = plan
    q, width = (qkv.ctypes.data, qkv.shape[1] * 4), num_groups * 128
    count, size = blocks.shape[0] * num_kv_heads, max(1, MAX_ROWS // group) * width
    pieces = num_small_taken(count, size, threads)
    own = memory + RUNNING_BYTES
    piece, start, end = take(count, pieces, phase, threads)
    while start < end:
        # later rows of a prompt read more keys, and the longest work should not begin last
        for item in range(count - end, count - start):
            if not is_open(piece, phase, threads):
                break
            index = item // num_kv_heads
            kv_head, first = item - index * num_kv_heads, blocks[index, 0]
            table = tables.ctypes.data + blocks[index, 2] * tables.shape[1] * 4
            block = (first, blocks[index, 1], blocks[index, 3], windows[layer], table)
            # where row 0 and kv head 0 would lie
            place = own + (item - count + end) * size - (first + kv_head) * width
            attend(q, block, places, shape, layer, kv_head, (place, width), memory)
        if begin_to_write(piece, phase, threads):
            for item in range(count - end, count - start):
                index = item // num_kv_heads
                kv_head, first = item - index * num_kv_heads, blocks[index, 0]
                for row in range(blocks[index, 1]):
                    x = own + (item - count + end) * size + row * width
                    quantize_part(x, first + row, kv_head * num_groups, num_groups, codes, scales)
            end_writing(phase, threads)
        piece, start, end = take(count, pieces, phase, threads)


@part
def _are_whole(plan):  # type: ignore[no-untyped-def]
    """Whether each block of attention has all rows of its sequence."""
    return plan[0].shape[0] == plan[1].shape[0]


@part
def _gate(layer, codes, scales, memory, out_codes, out_scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: gate and up, silu(gate) * up, quantised; in groups of 32 columns.

    memory: the address of this thread's; an item's product comes first, then of each item of a piece its codes and scales.
    """
    num_groups, num_rows = layer[NUM_TILES] // 2, min(NEAR_ROWS, codes.shape[0])
    items, size = num_items(num_groups, codes), num_rows * _QUANTIZED_BYTES
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        place = memory + NEAR_ROWS * 256
        for item in range(start, end):
            if not is_open(piece, phase, threads):
                break
            group, _, x = item_of(item, codes, scales)
            multiply_tile(layer, group, x, (memory, 256))
            multiply_tile(layer, num_groups + group, x, (memory + 128, 256))
            for row in range(x[2]):
                own = place + row * _QUANTIZED_BYTES
                silu_and_quantize(memory + row * 256, memory + row * 256 + 128, own, own + 32)
            place += size
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                group, first, x = item_of(item, codes, scales)
                for row in range(x[2]):
                    own = memory + NEAR_ROWS * 256 + (item - start) * size + row * _QUANTIZED_BYTES
                    at = (first + row) * num_groups + group
                    copy_row(out_codes.ctypes.data + at * 32, own, 8)
                    copy_row(out_scales.ctypes.data + at * PAIR_BYTES, own + 32, PAIR_BYTES // 4)
            end_writing(phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@part
def _final_rows(rows, hidden, weight, eps, out, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: the wanted rows of hidden, normed, quantised into codes and scales."""
    pieces, width = num_pieces(rows.shape[0], threads), out.shape[1]
    done, (start, end) = 0, claim(rows.shape[0], pieces, phase, threads)
    while start < end:
        for i in range(start, end):
            row, own = hidden.ctypes.data + rows[i] * width * 4, out.ctypes.data + i * width * 4
            norm_row(row, weight.ctypes.data, own, eps, width)
            quantize_row(own, i, codes, scales)
        done, (start, end) = done + 1, claim(rows.shape[0], pieces, phase, threads)
    finish(done, pieces, phase, threads)


@part
def _find_likeliest(head, codes, scales, vocab, best, memory, phase, thread, threads):  # type: ignore[no-untyped-def]
    """A phase: the head's product with all rows; of it this thread keeps what it has to know of the largest."""
    items, num_rows, size = num_items(head[NUM_TILES], codes), best.shape[1], num_item_bytes(codes)
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        multiply_items(head, codes, scales, start, end, memory, piece, phase, threads)
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                tile, first, x = item_of(item, codes, scales)
                for row in range(x[2]):
                    place = best.ctypes.data + (thread * num_rows + first + row) * BEST_BYTES
                    source = memory + (item - start) * size + row * 128
                    for column in range(0, 32, 16):
                        first_id = tile * 32 + column
                        keep_best(source + column * 4, first_id, vocab - first_id, place)
            end_writing(phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@kernel
def _run(thread, threads, hidden, step, plan, cache, weights, numbers, scratch, running, out, likeliest):  # type: ignore[no-untyped-def]
    """hidden: [num_tokens, hidden] float32, embedded, becomes the residual. The rest: see `CompiledDecoder.__call__`."""
    linears, norms, _, final_norm, _, vocab = weights
    count, eps = hidden.shape[0], numbers.ctypes.data
    first = thread * count if count <= _FEW_ROWS else 0
    codes, scales = scratch[0][first : first + count], scratch[1][first : first + count]
    qkv, context = scratch[2][:count], scratch[3][:count]
    context_codes, context_scales = scratch[4][:count], scratch[5][:count]
    inner_codes, inner_scales = scratch[6][:count], scratch[7][:count]
    own = running.ctypes.data + thread * running.shape[1] * 4
    phase = 0
    for layer in range(norms.shape[0]):
        qkv_layer, output = described(linears, 4 * layer), described(linears, 4 * layer + 1)
        gate_up_layer, down = described(linears, 4 * layer + 2), described(linears, 4 * layer + 3)
        norm = norms.ctypes.data + layer * 2 * hidden.shape[1] * 4
        _norm(hidden, norm, eps, codes, scales, phase, threads)
        multiply(qkv_layer, codes, scales, qkv, own, phase + 1, threads)
        if not _are_whole(plan):
            _rotate_and_store(qkv, layer, step, cache, weights, numbers, phase + 2, threads)
        _attend(
            qkv,
            step,
            plan,
            cache,
            layer,
            weights,
            numbers,
            context,
            context_codes,
            context_scales,
            own,
            phase + 3,
            threads,
        )
        _multiply_and_add(output, context_codes, context_scales, hidden, own, phase + 4, threads)
        _norm(hidden, norm + hidden.shape[1] * 4, eps, codes, scales, phase + 5, threads)
        _gate(gate_up_layer, codes, scales, own, inner_codes, inner_scales, phase + 6, threads)
        _multiply_and_add(down, inner_codes, inner_scales, hidden, own, phase + 7, threads)
        phase += _LAYER_PHASES
    rows, (best, tokens) = step[2], likeliest
    codes, scales = scratch[8][: rows.shape[0]], scratch[9][: rows.shape[0]]
    _final_rows(rows, hidden, final_norm, eps, out, codes, scales, phase, threads)
    if tokens.shape[0]:
        head = described(linears, 4 * norms.shape[0])
        _find_likeliest(head, codes, scales, vocab, best, own, phase + 1, thread, threads)
        if thread == 0:
            choose_best(best, tokens)
