"""The phases of a decoder's layer, and those after the last one; `numba_step.py` strings them together.

Of a few rows each thread norms all for itself, into memory of its own: that takes less time than to meet. What a late
thread norms while others change the rows it can use nowhere, for then no piece is left that reads it. And where a
sequence's rows are one block of attention, as in decodes, that block rotates and stores them itself.
"""

from __future__ import annotations

from octavo_kernels.numba_attention import (
    MAX_ROWS,
    RUNNING_BYTES,
    attend,
)
from octavo_kernels.numba_best import BEST_BYTES, keep_best
from octavo_kernels.numba_cache import cache_numbers, multiply_row, rotate_halves, store_row
from octavo_kernels.numba_compile import part
from octavo_kernels.numba_dot import PAIR_BYTES
from octavo_kernels.numba_linear import (
    NEAR_ROWS,
    NUM_TILES,
    item_of,
    multiply_items,
    multiply_tile,
    num_bytes_asked,
    num_item_bytes,
    num_items,
    quantize_part,
    quantize_row,
    tile_at,
)
from octavo_kernels.numba_threads import (
    THREAD,
    begin_to_write,
    claim,
    end_writing,
    finish,
    is_open,
    num_pieces,
    num_small_pieces,
    num_small_taken,
    num_taken,
    share_end,
    take,
)
from octavo_kernels.numba_vector import add_row, copy_quantized, norm_and_quantize, norm_row, silu_and_quantize

_QUANTIZED_BYTES = 32 + PAIR_BYTES
"""Of 32 values: their codes, then their scale."""

FEW_ROWS = 3
"""Rows that each thread norms for itself."""


@part
def norm_phase(hidden, weight, eps, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase, but for few rows: the norm of hidden, quantised into codes and scales."""
    count = hidden.shape[0]
    if count <= FEW_ROWS:
        for row in range(count):
            _norm_one(hidden, weight, eps, codes, scales, row)
        return
    pieces = num_pieces(count, threads)
    done, (start, end) = 0, claim(count, pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            _norm_one(hidden, weight, eps, codes, scales, row)
        done, (start, end) = done + end - start, claim(count, pieces, phase, threads)
    finish(done, count, phase, threads)


@part
def _norm_one(hidden, weight, eps, codes, scales, row):  # type: ignore[no-untyped-def]
    num_groups = scales.shape[1]
    x, target = hidden.ctypes.data + row * num_groups * 128, codes.ctypes.data + row * num_groups * 32
    norm_and_quantize(x, weight, target, scales.ctypes.data + row * num_groups * PAIR_BYTES, eps, num_groups)


@part
def multiply_and_add(layer, codes, scales, hidden, memory, then, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: hidden += the product. memory, then: as in `multiply`."""
    items, width, size = num_items(layer[NUM_TILES], codes), hidden.shape[1] * 4, num_item_bytes(codes)
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        multiply_items(layer, codes, scales, (start, end), memory, then, piece, phase, threads)
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                tile, first, x = item_of(item, codes, scales)
                target, source = hidden.ctypes.data + first * width + tile * 128, memory + (item - start) * size
                for row in range(x[2]):
                    add_row(target + row * width, source + row * 128, 32)
            end_writing(end - start, phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@part
def rotate_and_store(qkv, layer, step, cache, weights, numbers, phase, threads):  # type: ignore[no-untyped-def]
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
        done, (start, end) = done + end - start, claim(count, pieces, phase, threads)
    finish(done, count, phase, threads)


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
def attend_phase(qkv, step, plan, cache, layer, weights, numbers, context, codes, scales, memory, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: attention, its result quantised; before it the rotation where a block has all rows of its sequence."""
    blocks, tables, windows = plan
    if not are_whole(plan):
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
        done, (start, end) = done + end - start, claim(count, pieces, phase, threads)
    finish(done, count, phase, threads)


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
            end_writing(end - start, phase, threads)
        piece, start, end = take(count, pieces, phase, threads)


@part
def are_whole(plan):  # type: ignore[no-untyped-def]
    """Whether each block of attention has all rows of its sequence."""
    return plan[0].shape[0] == plan[1].shape[0]


@part
def gate_phase(layer, codes, scales, memory, out_codes, out_scales, then, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: gate and up, silu(gate) * up, quantised; in groups of 32 columns.

    memory: the address of this thread's; an item's product comes first, then of each item of a piece its codes and scales.
    then: of what this thread will read after the phase.
    """
    num_groups, num_rows = layer[NUM_TILES] // 2, min(NEAR_ROWS, codes.shape[0])
    items, size = num_items(num_groups, codes), num_rows * _QUANTIZED_BYTES
    pieces, last = num_taken(items, size, threads), share_end(items, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        place = memory + NEAR_ROWS * 256
        for item in range(start, end):
            if not is_open(piece, phase, threads):
                break
            group, _, x = item_of(item, codes, scales)
            next_group, _, _ = item_of(item + 1, codes, scales)
            gate_after, up_after = tile_at(layer, next_group), tile_at(layer, num_groups + next_group)
            if item + 1 == last:
                gate_after, up_after = then, then + num_bytes_asked(layer)
            multiply_tile(layer, group, x, (memory, 256), gate_after)
            multiply_tile(layer, num_groups + group, x, (memory + 128, 256), up_after)
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
                    copy_quantized(out_codes.ctypes.data + at * 32, out_scales.ctypes.data + at * PAIR_BYTES, own)
            end_writing(end - start, phase, threads)
        piece, start, end = take(items, pieces, phase, threads)


@part
def final_rows(rows, hidden, weight, eps, out, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: the wanted rows of hidden, normed, quantised into codes and scales."""
    pieces, width = num_pieces(rows.shape[0], threads), out.shape[1]
    done, (start, end) = 0, claim(rows.shape[0], pieces, phase, threads)
    while start < end:
        for i in range(start, end):
            row, own = hidden.ctypes.data + rows[i] * width * 4, out.ctypes.data + i * width * 4
            norm_row(row, weight.ctypes.data, own, eps, width)
            quantize_row(own, i, codes, scales)
        done, (start, end) = done + end - start, claim(rows.shape[0], pieces, phase, threads)
    finish(done, rows.shape[0], phase, threads)


@part
def find_likeliest(head, codes, scales, vocab, best, memory, then, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: the head's product with all rows; of it this thread keeps what it has to know of the largest."""
    items, num_rows, size = num_items(head[NUM_TILES], codes), best.shape[1], num_item_bytes(codes)
    pieces = num_taken(items, size, threads)
    piece, start, end = take(items, pieces, phase, threads)
    while start < end:
        multiply_items(head, codes, scales, (start, end), memory, then, piece, phase, threads)
        if begin_to_write(piece, phase, threads):
            for item in range(start, end):
                tile, first, x = item_of(item, codes, scales)
                for row in range(x[2]):
                    place = best.ctypes.data + (threads[THREAD] * num_rows + first + row) * BEST_BYTES
                    source = memory + (item - start) * size + row * 128
                    for column in range(0, 32, 16):
                        first_id = tile * 32 + column
                        keep_best(source + column * 4, first_id, vocab - first_id, place)
            end_writing(end - start, phase, threads)
        piece, start, end = take(items, pieces, phase, threads)
