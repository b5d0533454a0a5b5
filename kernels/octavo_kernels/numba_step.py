"""All layers of a decoder step as one compiled function: no Python between operations.

A layer is eight phases (see `numba_threads.py`): norm and quantise, qkv, rotate and store, attention, output
projection, norm and quantise, gate and up, down. What a piece of one writes, any piece of the next may read.
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
    NO_WINDOW,
    block_rows,
    plan_rows,
    running_buffers,
)
from octavo_kernels.numba_best import best_of, choose_best
from octavo_kernels.numba_cache import TransposedCache
from octavo_kernels.numba_compile import kernel
from octavo_kernels.numba_dot import TILE
from octavo_kernels.numba_linear import (
    NUM_TILES,
    PackedLinear,
    activation_buffers,
    aligned,
    described,
    first_tile,
    most_pieces,
    multiply,
    piece_memory,
)
from octavo_kernels.numba_phases import (
    FEW_ROWS,
    are_whole,
    attend_phase,
    final_rows,
    find_likeliest,
    gate_phase,
    multiply_and_add,
    norm_phase,
    rotate_and_store,
)
from octavo_kernels.numba_threads import NUM_THREADS, THREAD, ThreadPool, most_taken
from octavo_kernels.numba_vector import LOG2_E
from octavo_kernels.quantized_weight import GROUP
from octavo_kernels.require import require_own

_LAYER_PHASES = 8


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
        num_own = FEW_ROWS * self._pool.num_threads + num_tokens
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


@kernel
def _run(threads, hidden, step, plan, cache, weights, numbers, scratch, running, out, likeliest):  # type: ignore[no-untyped-def]
    """hidden: [num_tokens, hidden] float32, embedded, becomes the residual. The rest: see `CompiledDecoder.__call__`."""
    linears, norms, _, final_norm, _, vocab = weights
    count, eps, thread = hidden.shape[0], numbers.ctypes.data, threads[THREAD]
    # a thread's own rows, where it may still write when it comes late and the call is over; after them those of all
    first = FEW_ROWS * (thread if count <= FEW_ROWS else threads[NUM_THREADS])
    codes, scales = scratch[0][first : first + count], scratch[1][first : first + count]
    qkv, context = scratch[2][:count], scratch[3][:count]
    context_codes, context_scales = scratch[4][:count], scratch[5][:count]
    inner_codes, inner_scales = scratch[6][:count], scratch[7][:count]
    own = running.ctypes.data + thread * running.shape[1] * 4
    rows, (best, tokens) = step[2], likeliest
    phase = 0
    for layer in range(norms.shape[0]):
        qkv_layer, output = described(linears, 4 * layer), described(linears, 4 * layer + 1)
        gate_up_layer, down = described(linears, 4 * layer + 2), described(linears, 4 * layer + 3)
        following = described(linears, 4 * layer + 4)
        following_rows = rows.shape[0] if layer + 1 == norms.shape[0] else count
        norm = norms.ctypes.data + layer * 2 * hidden.shape[1] * 4
        norm_phase(hidden, norm, eps, codes, scales, phase, threads)
        then = first_tile(output, output[NUM_TILES], count, threads)
        multiply(qkv_layer, codes, scales, qkv, own, then, phase + 1, threads)
        if not are_whole(plan):
            rotate_and_store(qkv, layer, step, cache, weights, numbers, phase + 2, threads)
        attend_phase(
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
        then = first_tile(gate_up_layer, gate_up_layer[NUM_TILES] // 2, count, threads)
        multiply_and_add(output, context_codes, context_scales, hidden, own, then, phase + 4, threads)
        norm_phase(hidden, norm + hidden.shape[1] * 4, eps, codes, scales, phase + 5, threads)
        then = first_tile(down, down[NUM_TILES], count, threads)
        gate_phase(gate_up_layer, codes, scales, own, inner_codes, inner_scales, then, phase + 6, threads)
        then = first_tile(following, following[NUM_TILES], following_rows, threads)
        multiply_and_add(down, inner_codes, inner_scales, hidden, own, then, phase + 7, threads)
        phase += _LAYER_PHASES
    codes, scales = scratch[8][: rows.shape[0]], scratch[9][: rows.shape[0]]
    final_rows(rows, hidden, final_norm, eps, out, codes, scales, phase, threads)
    if tokens.shape[0]:
        head, begin = described(linears, 4 * norms.shape[0]), described(linears, 0)
        then = first_tile(begin, begin[NUM_TILES], rows.shape[0], threads)
        find_likeliest(head, codes, scales, vocab, best, own, then, phase + 1, threads)
        if thread == 0:
            choose_best(best, tokens)
