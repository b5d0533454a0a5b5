"""All layers of a decoder step as one compiled function: no Python between operations.

A layer is eight phases (see `numba_threads.py`): norm and quantise, qkv, rotate and store, attention, output
projection, norm and quantise, gate and up, down. What a piece of one writes, any piece of the next may read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo_kernels.backend import AttentionBatch, DecoderSpec, KVCache
from octavo_kernels.checks import check_attention_batch, check_table_width, require_own
from octavo_kernels.numba_attention import NO_WINDOW, attend, plan_rows, running_buffers
from octavo_kernels.numba_cache import TransposedCache, cache_numbers, multiply_row, rotate_halves, store_row
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_linear import (
    NUM_GROUPS,
    NUM_TILES,
    PackedLinear,
    activation_buffers,
    aligned,
    described,
    multiply,
    multiply_tile,
    quantize_part,
    quantize_row,
)
from octavo_kernels.numba_threads import ThreadPool, claim, finish, num_pieces, num_small_pieces, wait
from octavo_kernels.numba_vector import LANES, LOG2_E, add_row, norm_row, quantize_group, silu_and_mul_lanes
from octavo_kernels.quantized_weight import GROUP

_LAYER_PHASES = 8

_GATE_ROWS = 32
"""Rows whose gate and up are computed before their product is: 8 KiB, which stay in the first cache."""


class CompiledDecoder:
    """`DecoderStep` for one decoder. Owns scratch memory, which grows to the largest step seen."""

    def __init__(self, spec: DecoderSpec, pool: ThreadPool) -> None:
        self._pool = pool
        self._spec = spec
        # The descriptions hold addresses: the handles must stay.
        self._handles = [[layer.qkv, layer.output, layer.gate_up, layer.down] for layer in spec.layers]
        self._linears = np.array(
            [_packed(handle).describe() for handles in self._handles for handle in handles], np.int64
        )
        norms: list[list[torch.Tensor | None]] = [
            [layer.input_norm, layer.post_attention_norm] for layer in spec.layers
        ]
        self._norms = _stacked(norms, spec.final_norm.shape[0])
        head_norms = [[layer.q_norm, layer.k_norm] for layer in spec.layers if layer.q_norm is not None]
        self._head_norms = _stacked(head_norms, spec.head_dim)
        self._windows = np.array([window or NO_WINDOW for window in spec.windows], np.int64)
        self._final_norm = spec.final_norm.float().numpy()
        self._cos_sin = spec.cos_sin.contiguous().numpy()
        self._memory = running_buffers(pool.num_threads, at_least=_GATE_ROWS * 256)
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
        own, spec = require_own(cache, TransposedCache), self._spec
        check_attention_batch(attention)
        check_table_width(attention, own.spec.block_size)
        plan = plan_rows(attention, spec.num_heads, spec.num_kv_heads)
        wanted = np.arange(hidden.shape[0]) if rows is None else rows.numpy()
        # Numba compiles again for an array of another type or layout, so each argument has one.
        indices = (positions.numpy(), attention.slot_mapping.numpy(), wanted)
        out = torch.empty((len(wanted), hidden.shape[1]), dtype=torch.float32)
        self._reserve(hidden.shape[0])
        self._pool.run(
            _run,
            _LAYER_PHASES * len(spec.layers) + 1,
            hidden.contiguous().numpy(),
            tuple(np.ascontiguousarray(values, np.int64) for values in indices),
            (plan.blocks, plan.block_tables, self._windows),
            (own.keys, own.values, own.spec.block_size, spec.num_heads),
            (self._linears, self._norms, self._head_norms, self._final_norm, self._cos_sin),
            np.array([spec.rms_norm_eps, spec.head_dim**-0.5 * LOG2_E, 1.0], np.float32),
            self._scratch,
            self._memory,
            out.numpy(),
        )
        return out

    def _reserve(self, num_tokens: int) -> None:
        if num_tokens <= self._capacity:
            return
        self._capacity = max(2 * self._capacity, num_tokens)
        first, num_tokens = self._spec.layers[0], self._capacity
        num_heads_features, num_inner = first.output.in_features, first.down.in_features
        hidden = self._final_norm.shape[0]
        # normed and its codes; qkv; attention's result and its codes; a projection's result;
        # the codes of gate times up
        self._scratch = (
            aligned((num_tokens, hidden), np.float32),
            *activation_buffers(num_tokens, hidden),
            aligned((num_tokens, _packed(first.qkv).num_tiles * LANES), np.float32),
            aligned((num_tokens, num_heads_features), np.float32),
            *activation_buffers(num_tokens, num_heads_features),
            aligned((num_tokens, _packed(first.output).num_tiles * LANES), np.float32),
            *activation_buffers(num_tokens, num_inner),
        )


def can_compile(spec: DecoderSpec) -> bool:
    """Whether all linear layers are quantised and their widths are whole groups."""
    handles = [h for layer in spec.layers for h in (layer.qkv, layer.output, layer.gate_up, layer.down)]
    group_width = spec.num_heads // spec.num_kv_heads * spec.head_dim
    return all(isinstance(handle, PackedLinear) for handle in handles) and group_width % GROUP == 0


def _packed(handle: object) -> PackedLinear:
    return require_own(handle, PackedLinear)


def _stacked(norms: list[list[torch.Tensor | None]], width: int) -> NDArray[np.float32]:
    """-> [num_layers, 2, width] float32; no layers where the model has no such norms."""
    values = [[norm.float().numpy() for norm in pair if norm is not None] for pair in norms]
    return np.array(values, np.float32).reshape(len(norms), 2, width)


@part
def _norm(add, y, hidden, weight, eps, normed, codes, scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: hidden += y where `add`, then its norm, quantised into codes and scales."""
    count, width = hidden.shape[0], hidden.shape[1]
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        for row in range(start, end):
            own, out = hidden.ctypes.data + row * width * 4, normed.ctypes.data + row * width * 4
            if add:
                add_row(own, y.ctypes.data + row * y.shape[1] * 4, width)
            norm_row(own, weight, out, eps, width)
            quantize_row(out, row, codes, scales)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _rotate_and_store(qkv, layer, step, cache, weights, numbers, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: head norms and rotation in place in qkv, and the cache write; an item is one (row, kv head)."""
    positions, slots, _ = step
    places, shape = cache_numbers(cache)
    num_kv_heads, head_dim = shape[1], shape[3]
    _, _, head_norms, _, cos_sin = weights
    norms = head_norms.ctypes.data + layer * 2 * head_dim * 4 if head_norms.shape[0] else 0
    numbers_at, table, rotary_dim = numbers.ctypes.data, cos_sin.ctypes.data, cos_sin.shape[1]
    count = qkv.shape[0] * num_kv_heads
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        for item in range(start, end):
            row = item // num_kv_heads
            heads, rotation = qkv.ctypes.data + row * qkv.shape[1] * 4, table + positions[row] * rotary_dim * 4
            how = (norms, rotation, numbers_at, head_dim, rotary_dim)
            _rotate_and_store_item(heads, item - row * num_kv_heads, layer, slots[row], places, shape, how)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _rotate_and_store_item(heads, kv_head, layer, slot, places, shape, how):  # type: ignore[no-untyped-def]
    """One kv head of the row at address `heads`, and its query heads."""
    num_kv_heads, size, num_heads = shape[1], shape[3] * 4, shape[6]
    group = num_heads // num_kv_heads
    k = heads + (num_heads + kv_head) * size
    _norm_and_rotate(k, False, how)
    store_row(k, k + num_kv_heads * size, places, shape, layer, slot, kv_head)
    for head in range(kv_head * group, kv_head * group + group):
        _norm_and_rotate(heads + head * size, True, how)


@part
def _norm_and_rotate(x, is_query, how):  # type: ignore[no-untyped-def]
    """A head at address x: its norm where the model has one, its rotation, and for a query the scale of scores.

    how: addresses of the layer's two norms (0 where there are none), of the position's row of cosines and sines and of
    the numbers (eps, scale, 1); head_dim, rotary_dim.
    """
    norms, table, numbers, head_dim, rotary_dim = how
    if norms:
        norm_row(x, norms if is_query else norms + head_dim * 4, x, numbers, head_dim)
    factor = numbers + (4 if is_query else 8)
    rotate_halves(x, table, factor, rotary_dim // 2)
    multiply_row(x + rotary_dim * 4, factor, head_dim - rotary_dim)


@part
def _attend(qkv, plan, cache, layer, context, codes, scales, memory, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: attention, its result quantised."""
    places, shape = cache_numbers(cache)
    num_kv_heads = shape[1]
    num_groups = scales.shape[1] // num_kv_heads
    blocks, tables, windows = plan
    q, out = (qkv.ctypes.data, qkv.shape[1] * 4), (context.ctypes.data, context.shape[1] * 4)
    count = blocks.shape[0] * num_kv_heads
    pieces = num_small_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        # later rows of a prompt read more keys, and the longest work should not begin last
        for item in range(count - end, count - start):
            index = item // num_kv_heads
            kv_head, first, num_rows = item - index * num_kv_heads, blocks[index, 0], blocks[index, 1]
            table = tables.ctypes.data + blocks[index, 2] * tables.shape[1] * 4
            block = (first, num_rows, blocks[index, 3], windows[layer], table)
            attend(q, block, places, shape, layer, kv_head, out, memory)
            for row in range(first, first + num_rows):
                x = out[0] + row * out[1] + kv_head * num_groups * 128
                quantize_part(x, row, kv_head * num_groups, num_groups, codes, scales)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _gate(layer, codes, scales, memory, out_codes, out_scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: gate and up, silu(gate) * up, quantised; in groups of 32 columns of all rows."""
    count = layer[NUM_TILES] // 4
    x = (codes.ctypes.data, scales.ctypes.data, codes.shape[0])
    out = (out_codes.ctypes.data, out_codes.shape[1], out_scales.ctypes.data, out_scales.shape[1] * 8)
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        for index in range(start, end):
            for row in range(0, x[2], _GATE_ROWS):
                _gate_group(layer, index, x, row, memory, out)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _gate_group(layer, index, x, first_row, memory, out):  # type: ignore[no-untyped-def]
    """Some rows, whose gate and up stay near; out: address and row bytes of the codes, then of their scales."""
    num_groups, num_up = layer[NUM_GROUPS], layer[NUM_TILES] // 2
    count = min(_GATE_ROWS, x[2] - first_row)
    rows = (x[0] + first_row * num_groups * 32, x[1] + first_row * num_groups * 8, count)
    for half in range(2):
        multiply_tile(layer, 2 * index + half, rows, (memory + half * 64, 256))
        multiply_tile(layer, num_up + 2 * index + half, rows, (memory + 128 + half * 64, 256))
    for row in range(count):
        gate = memory + row * 256
        silu_and_mul_lanes(gate, gate + 128, gate)
        silu_and_mul_lanes(gate + 64, gate + 192, gate + 64)
        codes, pairs = out[0] + (first_row + row) * out[1], out[2] + (first_row + row) * out[3]
        quantize_group(gate, codes + 32 * index, pairs + 8 * index)


@part
def _final_rows(rows, y, hidden, weight, eps, out, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: the wanted rows of hidden + y, normed. A row may be wanted twice, so hidden is not written."""
    pieces = num_pieces(rows.shape[0], threads)
    start, end = claim(rows.shape[0], pieces, phase, threads)
    while start < end:
        for i in range(start, end):
            for j in range(out.shape[1]):
                out[i, j] = hidden[rows[i], j] + y[rows[i], j]
            own = out.ctypes.data + i * out.shape[1] * 4
            norm_row(own, weight.ctypes.data, own, eps, out.shape[1])
        finish(phase, threads)
        start, end = claim(rows.shape[0], pieces, phase, threads)
    wait(pieces, phase, threads)


@kernel
def _run(thread, threads, embedded, step, plan, cache, weights, numbers, scratch, running, out):  # type: ignore[no-untyped-def]
    """embedded: [num_tokens, hidden] float32, becomes the residual. The rest: see `CompiledDecoder.__call__`."""
    linears, norms, _, final_norm, _ = weights
    count, eps = embedded.shape[0], numbers.ctypes.data
    normed, codes, scales = scratch[0][:count], scratch[1][:count], scratch[2][:count]
    qkv, context = scratch[3][:count], scratch[4][:count]
    context_codes, context_scales = scratch[5][:count], scratch[6][:count]
    y, inner_codes, inner_scales = scratch[7][:count], scratch[8][:count], scratch[9][:count]
    hidden, own = embedded, running.ctypes.data + thread * running.shape[1] * 4
    phase = 0
    for layer in range(linears.shape[0] // 4):
        qkv_layer, output = described(linears, 4 * layer), described(linears, 4 * layer + 1)
        gate_up_layer, down = described(linears, 4 * layer + 2), described(linears, 4 * layer + 3)
        norm = norms.ctypes.data + layer * 2 * hidden.shape[1] * 4
        _norm(layer > 0, y, hidden, norm, eps, normed, codes, scales, phase, threads)
        multiply(qkv_layer, codes, scales, qkv, phase + 1, threads)
        _rotate_and_store(qkv, layer, step, cache, weights, numbers, phase + 2, threads)
        _attend(qkv, plan, cache, layer, context, context_codes, context_scales, own, phase + 3, threads)
        multiply(output, context_codes, context_scales, y, phase + 4, threads)
        _norm(True, y, hidden, norm + hidden.shape[1] * 4, eps, normed, codes, scales, phase + 5, threads)
        _gate(gate_up_layer, codes, scales, own, inner_codes, inner_scales, phase + 6, threads)
        multiply(down, inner_codes, inner_scales, y, phase + 7, threads)
        phase += _LAYER_PHASES
    _final_rows(step[2], y, hidden, final_norm, eps, out, phase, threads)
