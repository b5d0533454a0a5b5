"""Kernels at the sizes of an 8B model, as shares of what the device can do, beside torch's own where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.gpu_report.limits import copy_rate, product_rate
from benchmarks.gpu_report.timing import milliseconds
from octavo_kernels.attention_plan import plan_paged_attention
from octavo_kernels.backend import KernelBackend
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.handles import KVCacheSpec, QKNorm
from octavo_kernels.lora import add_lora, lora_rows
from octavo_kernels.lora_weights import lora_weights
from octavo_kernels.mla_decode_attention import mla_decode_attention
from octavo_kernels.packed_weight import pack
from octavo_kernels.quantized_weight import quantize
from octavo_kernels.skinny_linear import MAX_ROWS, default_tiling, skinny_linear
from octavo_kernels.w4a16_linear import w4a16_linear, w4a16_tiling
from octavo_testing.kernels import a_sampling_batch

if TYPE_CHECKING:
    from benchmarks.gpu_report.record import PartRecord

_BLOCK = 16


def run(record: PartRecord, device: torch.device) -> None:
    from benchmarks.gpu_report.parts import backend_on

    backend = backend_on(device)
    copy = copy_rate(device, is_tiny=record.is_tiny)
    product = product_rate(device, is_tiny=record.is_tiny)
    contexts = {"64 x 4k": [4096] * 64, "skewed": [65536] + [4096] * 15}
    if record.is_tiny:
        contexts = {"64 x 4k": [40, 40], "skewed": [90, 20]}
    for name, lens in contexts.items():
        _decode(record, backend, name, lens, copy)
    for count, length in ((2, 24),) if record.is_tiny else ((1, 8192), (4, 2048)):
        _prefill(record, backend, count, length, product)
    for rows in (1, 2) if record.is_tiny else (1, 16, 64, 256, 4096):
        _product(record, device, rows, copy, product)
    for rows in (1, 2) if record.is_tiny else (1, 16, 64):
        _few_bits(record, device, rows, copy)
    _rowwise(record, backend, copy)
    _prologue(record, backend, copy)
    _mla(record, device, copy)
    _lora(record, device, copy)


class Heads:
    """Attention of Llama 8B, or of a toy."""

    def __init__(self, *, is_tiny: bool) -> None:
        self.q, self.kv, self.dim = (4, 2, 16) if is_tiny else (32, 8, 128)


def a_batch(query_lens: list[int], seq_lens: list[int], device: torch.device) -> tuple[AttentionBatch, int]:
    """Sequences whose blocks lie scattered over the cache -> the batch, and the blocks that the cache must have."""
    counts = [-(-length // _BLOCK) for length in seq_lens]
    order = (torch.randperm(sum(counts), device=device) + 1).to(torch.int32)
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    for row, own in enumerate(torch.split(order, counts)):
        tables[row, : len(own)] = own
    slots = [
        tables[row, torch.arange(length - new, length, device=device) // _BLOCK].long() * _BLOCK
        + torch.arange(length - new, length, device=device) % _BLOCK
        for row, (new, length) in enumerate(zip(query_lens, seq_lens, strict=True))
    ]
    batch = AttentionBatch(
        query_start_loc=torch.tensor([0, *query_lens], device=device).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )
    return batch, sum(counts) + 1


def _attention_ms(
    backend: KernelBackend,
    heads: Heads,
    query_lens: list[int],
    seq_lens: list[int],
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[float, torch.Tensor]:
    """-> milliseconds of one layer's attention, planning not counted; and its q, for the peer."""
    batch, num_blocks = a_batch(query_lens, seq_lens, backend.device)
    cache = backend.allocate_kv_cache(
        KVCacheSpec(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=_BLOCK,
            num_kv_heads=heads.kv,
            head_dim=heads.dim,
            dtype=dtype,
        )
    )
    q = torch.randn(sum(query_lens), heads.q, heads.dim, device=backend.device).bfloat16()
    plan = backend.plan_attention(batch, cache, heads.q)
    return milliseconds(lambda: backend.attention(q, cache, 0, plan, heads.dim**-0.5), backend.device), q


def _decode(record: PartRecord, backend: KernelBackend, name: str, lens: list[int], copy: float) -> None:
    heads = Heads(is_tiny=record.is_tiny)
    ms, q = _attention_ms(backend, heads, [1] * len(lens), lens)
    rate = sum(lens) * heads.kv * heads.dim * 4 / ms / 1e6
    # A multiplication and an addition with each key and value that was read, for each query head that shares it.
    intensity = heads.q / heads.kv
    record.figure(
        f"decode attention, {name}",
        100 * rate / copy,
        "% of copy",
        f"{rate:.0f} GB/s, {ms:.3f} ms",
        roof=(intensity, intensity * rate / 1000),
    )
    if backend.name == "triton":
        coded_ms, _ = _attention_ms(backend, heads, [1] * len(lens), lens, torch.float8_e4m3fn)
        record.figure(f"decode attention over 8 bits, {name}", ms / coded_ms, "x", f"{coded_ms:.3f} ms against 16 bits")
    if len(set(lens)) == 1:
        k, v = (
            torch.randn(len(lens), heads.kv, lens[0], heads.dim, device=backend.device).bfloat16() for _ in range(2)
        )
        mine = q.unsqueeze(2)
        peer = milliseconds(lambda: scaled_dot_product_attention(mine, k, v, enable_gqa=True), backend.device)
        record.figure(
            f"decode attention, {name}, against SDPA", peer / ms, "x", f"SDPA on contiguous K/V {peer:.3f} ms"
        )


def _prefill(record: PartRecord, backend: KernelBackend, count: int, length: int, product: float) -> None:
    heads = Heads(is_tiny=record.is_tiny)
    ms, q = _attention_ms(backend, heads, [length] * count, [length] * count)
    # Half of the square of positions, a multiplication and an addition, for QK and for PV.
    rate = 2 * count * length**2 * heads.q * heads.dim / ms / 1e9
    name = f"prefill attention, {count} x {length}"
    intensity = length * heads.q / (2 * (heads.q + heads.kv))
    record.figure(
        name,
        rate,
        "TFLOP/s",
        f"{100 * rate / product:.0f} % of the product's, {ms:.3f} ms",
        roof=(intensity, rate),
    )
    mine = q.view(count, length, heads.q, heads.dim).transpose(1, 2)
    k, v = (torch.randn(count, heads.kv, length, heads.dim, device=backend.device).bfloat16() for _ in range(2))
    peer = milliseconds(
        lambda: scaled_dot_product_attention(mine, k, v, is_causal=True, enable_gqa=True), backend.device
    )
    record.figure(f"{name}, against SDPA", peer / ms, "x", f"SDPA {peer:.3f} ms")


def _product(record: PartRecord, device: torch.device, rows: int, copy: float, product: float) -> None:
    """What linear layers are: the vendor's product, at the largest matrix of a layer."""
    outputs, inputs = (96, 32) if record.is_tiny else (28672, 4096)
    weight = torch.randn(outputs, inputs, device=device).bfloat16()
    x = torch.randn(rows, inputs, device=device).bfloat16()
    ms = milliseconds(lambda: linear(x, weight), device)
    read, rate = 2 * outputs * inputs / ms / 1e6, 2 * rows * outputs * inputs / ms / 1e9
    note = f"{read:.0f} GB/s of weights, {rate:.0f} TFLOP/s, {ms:.3f} ms"
    intensity = rows * outputs * inputs / (outputs * inputs + rows * (inputs + outputs))
    limit = 100 * max(read / copy, rate / product)
    record.figure(f"cuBLAS linear, {rows} rows", limit, "% of limit", note, roof=(intensity, rate))
    if rows <= MAX_ROWS:
        tiling = default_tiling(outputs, inputs, x.dtype, 132)
        own = milliseconds(lambda: skinny_linear(x, weight, None, tiling), device)
        read = 2 * outputs * inputs / own / 1e6
        note = f"{read:.0f} GB/s of weights, {own:.3f} ms; cuBLAS {ms:.3f} ms"
        record.figure(f"own linear, {rows} rows", 100 * read / copy, "% of copy", note)
        record.figure(f"own linear, {rows} rows, against cuBLAS", ms / own, "x")


def _few_bits(record: PartRecord, device: torch.device, rows: int, copy: float) -> None:
    """The same matrix in 4 and 8 bits, which is read in so much less time at best."""
    outputs, inputs = (96, 32) if record.is_tiny else (28672, 4096)
    x = torch.randn(rows, inputs, device=device).bfloat16()
    for bits in (4, 8):
        weight = pack(quantize(torch.randn(outputs, inputs, device=device), bits), device)
        tiling = w4a16_tiling(outputs, inputs, bits, x.dtype, 132)
        ms = milliseconds(lambda weight=weight, tiling=tiling: w4a16_linear(x, weight, None, tiling), device)  # type: ignore[misc] # bound now
        read = weight.num_bytes / ms / 1e6
        record.figure(
            f"linear of {bits} bits, {rows} rows", 100 * read / copy, "% of copy", f"{read:.0f} GB/s, {ms:.3f} ms"
        )


def _rowwise(record: PartRecord, backend: KernelBackend, copy: float) -> None:
    device, (rows, hidden) = backend.device, (4, 32) if record.is_tiny else (8192, 4096)
    x, weight = torch.randn(rows, hidden, device=device).bfloat16(), torch.ones(hidden, device=device).bfloat16()
    residual, wide = x.clone(), torch.randn(rows, 2 * hidden, device=device).bfloat16()
    for name, passes, ms in (
        ("rms_norm", 2, milliseconds(lambda: backend.rms_norm(x, weight, 1e-5), device)),
        ("add_rms_norm", 4, milliseconds(lambda: backend.add_rms_norm(x, residual, weight, 1e-5), device)),
        ("silu_and_mul", 3, milliseconds(lambda: backend.silu_and_mul(wide), device)),
    ):
        rate = passes * rows * hidden * 2 / ms / 1e6
        record.figure(name, 100 * rate / copy, "% of copy", f"{rate:.0f} GB/s, {ms:.3f} ms")
    count, vocab = (2, 100) if record.is_tiny else (256, 128256)
    logits = torch.randn(count, vocab, device=device)
    for name, params in (
        ("sample, greedy", a_sampling_batch(count, temperature=0.0, device=str(device))),
        ("sample, top-p 0.95", a_sampling_batch(count, temperature=0.8, top_p=0.95, device=str(device))),
    ):
        ms = milliseconds(lambda params=params: backend.sample(logits, params), device)  # type: ignore[misc] # bound now
        record.figure(name, ms, "ms", f"{count} rows of {vocab}")


def _prologue(record: PartRecord, backend: KernelBackend, copy: float) -> None:
    """Of Qwen3's kind, norms and all."""
    heads, device, tokens = Heads(is_tiny=record.is_tiny), backend.device, 4 if record.is_tiny else 8192
    cache = backend.allocate_kv_cache(
        KVCacheSpec(
            num_layers=1,
            num_blocks=tokens // _BLOCK + 2,
            block_size=_BLOCK,
            num_kv_heads=heads.kv,
            head_dim=heads.dim,
            dtype=torch.bfloat16,
        )
    )
    qkv = torch.randn(tokens, heads.q + 2 * heads.kv, heads.dim, device=device).bfloat16()
    weight = torch.ones(heads.dim, device=device).bfloat16()
    norm, rows = QKNorm(q=weight, k=weight, eps=1e-6), torch.arange(tokens, device=device)
    cos_sin = torch.randn(tokens, heads.dim, device=device)
    ms = milliseconds(lambda: backend.attention_prologue(qkv, norm, cos_sin, rows, cache, 0, rows), device)
    rate = 2 * qkv.numel() * 2 / ms / 1e6
    record.figure("attention_prologue", 100 * rate / copy, "% of copy", f"{rate:.0f} GB/s, {ms:.3f} ms")


def _mla(record: PartRecord, device: torch.device, copy: float) -> None:
    """DeepSeek-V3's heads and latents."""
    heads, latent, rope, lens = (4, 24, 8, [40, 40]) if record.is_tiny else (128, 512, 64, [4096] * 64)
    batch, num_blocks = a_batch([1] * len(lens), lens, device)
    plan = plan_paged_attention(
        batch, num_heads=heads, num_kv_heads=1, head_dim=latent, query_tile=1, target_items=4 if record.is_tiny else 264
    )
    cache = torch.zeros(num_blocks, _BLOCK, latent + rope, device=device).bfloat16()
    q = torch.randn(len(lens), heads, latent + rope, device=device).bfloat16()
    out = torch.empty(len(lens), heads, latent, device=device, dtype=torch.bfloat16)
    ms = milliseconds(lambda: mla_decode_attention(q, cache, plan, 0.1, out), device)
    read, rate = sum(lens) * (latent + rope) * 2 / ms / 1e6, 2 * sum(lens) * heads * (2 * latent + rope) / ms / 1e9
    note = f"{read:.0f} GB/s, {rate:.0f} TFLOP/s, {ms:.3f} ms"
    record.figure("MLA decode attention, 64 x 4k", 100 * read / copy, "% of copy", note)


def _lora(record: PartRecord, device: torch.device, copy: float) -> None:
    """Each row with an adapter of its own, on the joint projection of q, k and v."""
    rows, features, slices, rank = (4, 24, (16, 8, 8), 8) if record.is_tiny else (64, 4096, (4096, 1024, 1024), 16)
    a = torch.randn(rows, len(slices), rank, features, device=device).bfloat16()
    b = torch.randn(rows, sum(slices), rank, device=device).bfloat16()
    weights = lora_weights(a, b, torch.ones(rows, device=device), slices)
    x, out = torch.randn(rows, features, device=device).bfloat16(), torch.zeros(rows, sum(slices), device=device)
    sorted_rows, out = lora_rows(torch.arange(rows, device=device), rows), out.bfloat16()
    ms = milliseconds(lambda: add_lora(out, x, weights, sorted_rows), device)
    rate = (a.numel() + b.numel()) * 2 / ms / 1e6
    record.figure("LoRA, 64 rows of 64 adapters", 100 * rate / copy, "% of copy", f"{rate:.0f} GB/s, {ms:.3f} ms")
