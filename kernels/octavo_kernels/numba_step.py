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
from octavo_kernels.numba_attention import attend, plan_rows, running_buffers
from octavo_kernels.numba_cache import TransposedCache, multiply_row, rotate_halves, store_row
from octavo_kernels.numba_compile import kernel, part
from octavo_kernels.numba_linear import (
    NUM_TILES,
    PackedLinear,
    activation_buffers,
    aligned,
    multiply,
    multiply_tile,
    quantize_part,
    quantize_row,
)
from octavo_kernels.numba_threads import ThreadPool, claim, finish, num_pieces, num_small_pieces, wait
from octavo_kernels.numba_vector import LANES, LOG2_E, add_row, norm_row, quantize_group, silu_and_mul_lanes
from octavo_kernels.quantized_weight import GROUP

_LAYER_PHASES = 8


class CompiledDecoder:
    """`DecoderStep` for one decoder. Owns scratch memory, which grows to the largest step seen."""

    def __init__(self, spec: DecoderSpec, pool: ThreadPool) -> None:
        self._pool = pool
        self._spec = spec
        # The descriptions hold addresses: the handles must stay.
        self._handles = [[layer.qkv, layer.output, layer.gate_up, layer.down] for layer in spec.layers]
        self._linears = np.array(
            [[_packed(handle).describe() for handle in handles] for handles in self._handles], np.int64
        )
        norms: list[list[torch.Tensor | None]] = [
            [layer.input_norm, layer.post_attention_norm] for layer in spec.layers
        ]
        self._norms = _stacked(norms, spec.final_norm.shape[0])
        head_norms = [[layer.q_norm, layer.k_norm] for layer in spec.layers if layer.q_norm is not None]
        self._head_norms = _stacked(head_norms, spec.head_dim)
        self._final_norm = spec.final_norm.float().numpy()
        self._cos_sin = spec.cos_sin.contiguous().numpy()
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
            (plan.blocks, plan.block_tables),
            (own.keys, own.values, own.spec.block_size, spec.num_heads),
            (self._linears, self._norms, self._head_norms, self._final_norm, self._cos_sin),
            np.array([spec.rms_norm_eps, spec.head_dim**-0.5 * LOG2_E, 1.0], np.float32),
            self._scratch,
            running_buffers(self._pool.num_threads),
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
        # normed and its codes; qkv; attention's result and its codes; a projection's result; gate beside up,
        # and the codes of their product
        self._scratch = (
            aligned((num_tokens, hidden), np.float32),
            *activation_buffers(num_tokens, hidden),
            aligned((num_tokens, _packed(first.qkv).num_tiles * LANES), np.float32),
            aligned((num_tokens, num_heads_features), np.float32),
            *activation_buffers(num_tokens, num_heads_features),
            aligned((num_tokens, _packed(first.output).num_tiles * LANES), np.float32),
            aligned((num_tokens, _packed(first.gate_up).num_tiles * LANES), np.float32),
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
    """A phase: head norms and rotation in place in qkv, and the cache write."""
    count = qkv.shape[0] * cache[0].shape[2]
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        for item in range(start, end):
            _rotate_and_store_item(qkv, item, layer, step, cache, weights, numbers)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _rotate_and_store_item(qkv, item, layer, step, cache, weights, numbers):  # type: ignore[no-untyped-def]
    """One (row, kv head) and its query heads."""
    positions, slots, _ = step
    keys, values, _, num_heads = cache
    num_kv_heads, size = keys.shape[2], keys.shape[4] * 4
    row, kv_head = item // num_kv_heads, item % num_kv_heads
    group = num_heads // num_kv_heads
    heads = qkv.ctypes.data + row * qkv.shape[1] * 4
    k = heads + (num_heads + kv_head) * size
    _norm_and_rotate(k, keys.shape[4], layer, positions[row], False, weights, numbers)
    store_row(k, k + num_kv_heads * size, keys, values, layer, slots[row], kv_head)
    for head in range(kv_head * group, kv_head * group + group):
        _norm_and_rotate(heads + head * size, keys.shape[4], layer, positions[row], True, weights, numbers)


@part
def _norm_and_rotate(x, head_dim, layer, position, is_query, weights, numbers):  # type: ignore[no-untyped-def]
    """A head at address x: its norm where the model has one, its rotation, and for a query the scale of scores."""
    _, _, head_norms, _, cos_sin = weights
    rotary_dim = cos_sin.shape[1]
    if head_norms.shape[0]:
        norm = head_norms.ctypes.data + (2 * layer + (0 if is_query else 1)) * head_dim * 4
        norm_row(x, norm, x, numbers.ctypes.data, head_dim)
    factor = numbers.ctypes.data + (4 if is_query else 8)
    rotate_halves(x, cos_sin.ctypes.data + position * rotary_dim * 4, factor, rotary_dim // 2)
    multiply_row(x + rotary_dim * 4, factor, head_dim - rotary_dim)


@part
def _attend(qkv, plan, cache, layer, context, codes, scales, running, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: attention, its result quantised."""
    num_kv_heads = cache[0].shape[2]
    num_groups = scales.shape[1] // num_kv_heads
    count = plan[0].shape[0] * num_kv_heads
    pieces = num_small_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        # later rows of a prompt read more keys, and the longest work should not begin last
        for item in range(count - end, count - start):
            attend(qkv, plan, cache, layer, item, context, running)
            block, first_group = item // num_kv_heads, item % num_kv_heads * num_groups
            for row in range(plan[0][block, 0], plan[0][block, 0] + plan[0][block, 1]):
                x = context.ctypes.data + (row * context.shape[1] + first_group * 32) * 4
                quantize_part(x, row, first_group, first_group + num_groups, codes, scales)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _gate(layer, codes, scales, gate_up, out_codes, out_scales, phase, threads):  # type: ignore[no-untyped-def]
    """A phase: gate and up, silu(gate) * up, quantised; in groups of 32 columns of all rows."""
    count = layer[NUM_TILES] // 4
    pieces = num_pieces(count, threads)
    start, end = claim(count, pieces, phase, threads)
    while start < end:
        for index in range(start, end):
            _gate_group(layer, index, codes, scales, gate_up, out_codes, out_scales)
        finish(phase, threads)
        start, end = claim(count, pieces, phase, threads)
    wait(pieces, phase, threads)


@part
def _gate_group(layer, index, codes, scales, gate_up, out_codes, out_scales):  # type: ignore[no-untyped-def]
    num_tiles = layer[NUM_TILES] // 2
    for tile in range(2 * index, 2 * index + 2):
        multiply_tile(layer, tile, codes, scales, gate_up)
        multiply_tile(layer, num_tiles + tile, codes, scales, gate_up)
    for row in range(codes.shape[0]):
        gate = gate_up.ctypes.data + (row * gate_up.shape[1] + 32 * index) * 4
        up = gate + num_tiles * 64
        silu_and_mul_lanes(gate, up, gate)
        silu_and_mul_lanes(gate + 64, up + 64, gate + 64)
        pair = out_scales.ctypes.data + (row * out_scales.shape[1] + index) * 8
        quantize_group(gate, out_codes.ctypes.data + row * out_codes.shape[1] + 32 * index, pair)


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
    y, gate_up = scratch[7][:count], scratch[8][:count]
    inner_codes, inner_scales = scratch[9][:count], scratch[10][:count]
    hidden, own = embedded, running.ctypes.data + thread * running.shape[1] * 4
    phase = 0
    for layer in range(linears.shape[0]):
        qkv_layer, output, gate_up_layer, down = (
            linears[layer, 0],
            linears[layer, 1],
            linears[layer, 2],
            linears[layer, 3],
        )
        norm = norms.ctypes.data + layer * 2 * hidden.shape[1] * 4
        _norm(layer > 0, y, hidden, norm, eps, normed, codes, scales, phase, threads)
        multiply(qkv_layer, codes, scales, qkv, phase + 1, threads)
        _rotate_and_store(qkv, layer, step, cache, weights, numbers, phase + 2, threads)
        _attend(qkv, plan, cache, layer, context, context_codes, context_scales, own, phase + 3, threads)
        multiply(output, context_codes, context_scales, y, phase + 4, threads)
        _norm(True, y, hidden, norm + hidden.shape[1] * 4, eps, normed, codes, scales, phase + 5, threads)
        _gate(gate_up_layer, codes, scales, gate_up, inner_codes, inner_scales, phase + 6, threads)
        multiply(down, inner_codes, inner_scales, y, phase + 7, threads)
        phase += _LAYER_PHASES
    _final_rows(step[2], y, hidden, final_norm, eps, out, phase, threads)
