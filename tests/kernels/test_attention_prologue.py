"""One launch for norm, rotary and cache writes: against the three operations, and those against transformers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding, apply_rotary_pos_emb

from octavo_kernels import attention_prologue, attention_prologue_ref, rms_norm, rotary, store_kv
from octavo_kernels.batches import PAD_SLOT
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import QKNorm
from octavo_testing.kernels import Shape, assert_close

SHAPES = [
    Shape(num_heads=6, num_kv_heads=3, head_dim=24, block_size=16),
    Shape(num_heads=4, num_kv_heads=4, head_dim=80, block_size=5),
    Shape(num_heads=71, num_kv_heads=1, head_dim=64, block_size=32),
    Shape(num_heads=18, num_kv_heads=9, head_dim=8, block_size=1),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    qkv: torch.Tensor
    norm: QKNorm
    cos_sin: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    caches: torch.Tensor
    """[2, num_blocks, num_kv_heads, block_size, head_dim], NaN."""

    def run(self, module: object, norm: QKNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
        """-> q, and the caches, the inputs' own left alone."""
        caches = self.caches.clone()
        q = module.attention_prologue(  # type: ignore[attr-defined]
            self.qkv, norm, self.cos_sin, self.positions, caches[0], caches[1], self.slots
        )
        return q, caches


def some_inputs(shape: Shape, dtype: torch.dtype, device: str, rotary_dim: int | None = None) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype).to(device)

    num_blocks = 60 // shape.block_size + 2
    angles = torch.rand(100, (rotary_dim or shape.head_dim) // 2, generator=generator) * 6
    # heads of a wider projection, so that strides are not those of a tensor of its own
    joint = numbers(5, shape.num_heads + 2 * shape.num_kv_heads + 1, shape.head_dim)
    return Inputs(
        qkv=joint[:, 1:],
        norm=QKNorm(q=numbers(shape.head_dim), k=numbers(shape.head_dim), eps=1e-5),
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=1).to(device),
        positions=torch.tensor([0, 99, 7, 7, 50], device=device),
        slots=torch.tensor([41, 3, PAD_SLOT, 40, 57], device=device),
        caches=torch.full(
            (2, num_blocks, shape.num_kv_heads, shape.block_size, shape.head_dim), torch.nan, dtype=dtype, device=device
        ),
    )


def by_operations(inputs: Inputs, norm: QKNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The three kernels that it stands for."""
    caches = inputs.caches.clone()
    num_kv_heads = caches.shape[2]
    q, k, v = inputs.qkv.clone().split((inputs.qkv.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
    if norm is not None:
        q, k = rms_norm.rms_norm(q, norm.q, norm.eps), rms_norm.rms_norm(k, norm.k, norm.eps)
    rotary.rotary(q, k, inputs.cos_sin, inputs.positions)
    store_kv.store_kv(k, v, caches[0], caches[1], inputs.slots)
    return q, caches


def test_reference_equals_transformers() -> None:
    inputs = some_inputs(SHAPES[0], torch.float32, "cpu")
    config = Qwen3Config(hidden_size=6 * 24, num_attention_heads=6, head_dim=24)
    cos, sin = Qwen3RotaryEmbedding(config)(inputs.qkv, inputs.positions[None])
    cos_sin = torch.cat((cos[0, :, :12], sin[0, :, :12]), dim=1)
    q_norm, k_norm = Qwen3RMSNorm(24, 1e-5), Qwen3RMSNorm(24, 1e-5)
    q_norm.weight.data, k_norm.weight.data = inputs.norm.q, inputs.norm.k
    q, k, v = inputs.qkv.split((6, 3, 3), dim=1)
    with torch.no_grad():
        wanted_q, wanted_k = apply_rotary_pos_emb(q_norm(q)[None], k_norm(k)[None], cos, sin, unsqueeze_dim=2)
    caches = inputs.caches.clone()

    actual = attention_prologue_ref.attention_prologue(
        inputs.qkv, inputs.norm, cos_sin, torch.arange(5), caches[0], caches[1], inputs.slots
    )

    assert_close(actual, wanted_q[0])
    stored = [0, 1, 3, 4]
    slots = inputs.slots[stored]
    assert_close(caches[0][slots // 16, :, slots % 16], wanted_k[0, stored])
    assert torch.equal(caches[1][slots // 16, :, slots % 16], v[stored])
    assert int((~caches.isnan()).sum()) == 2 * 4 * 3 * 24


@pytest.mark.parametrize("is_normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_equals_the_reference(shape: Shape, dtype: torch.dtype, is_normed: bool, device: str) -> None:
    """NaN stands where nothing is to be written, and stays."""
    inputs = some_inputs(shape, dtype, device)
    norm = inputs.norm if is_normed else None
    before = inputs.qkv.clone()
    wanted_q, wanted_caches = inputs.run(attention_prologue_ref, norm)

    q, caches = inputs.run(attention_prologue, norm)

    assert_close(q, wanted_q)
    assert torch.equal(caches.isnan(), wanted_caches.isnan())
    assert_close(caches.nan_to_num(), wanted_caches.nan_to_num())
    assert torch.equal(inputs.qkv, before)


@pytest.mark.parametrize("rotary_dim", [16, 80])
@pytest.mark.parametrize("is_normed", [False, True], ids=["plain", "normed"])
def test_in_float32_it_is_the_three_kernels_bit_for_bit(is_normed: bool, rotary_dim: int) -> None:
    inputs = some_inputs(SHAPES[1], torch.float32, "cpu", rotary_dim)
    norm = inputs.norm if is_normed else None

    q, caches = inputs.run(attention_prologue, norm)

    wanted_q, wanted_caches = by_operations(inputs, norm)
    assert torch.equal(q, wanted_q)
    assert torch.equal(caches.nan_to_num(7), wanted_caches.nan_to_num(7))


def test_no_tokens_write_nothing(device: str) -> None:
    inputs = some_inputs(SHAPES[0], torch.float32, device)
    caches = inputs.caches

    q = attention_prologue.attention_prologue(
        inputs.qkv[:0], None, inputs.cos_sin, inputs.positions[:0], caches[0], caches[1], inputs.slots[:0]
    )

    assert q.shape == (0, 6, 24)
    assert bool(caches.isnan().all())


@pytest.mark.parametrize("module", [attention_prologue, attention_prologue_ref], ids=["triton", "reference"])
@pytest.mark.parametrize(
    ("heads", "norm_dim", "message"),
    [
        (slice(0, 5), 24, "-1 query heads are no multiple of 3 key/value heads"),
        (slice(0, 10), 24, "4 query heads are no multiple of 3 key/value heads"),
        (slice(0, 12), 20, r"weight has shape \[20\], must be \[24\]"),
    ],
)
def test_refuses(module: object, heads: slice, norm_dim: int, message: str) -> None:
    inputs = some_inputs(SHAPES[0], torch.float32, "cpu")
    weight = torch.ones(norm_dim)

    with pytest.raises(KernelError, match=message):
        module.attention_prologue(  # type: ignore[attr-defined]
            inputs.qkv[:, heads],
            QKNorm(q=weight, k=weight, eps=1e-5),
            inputs.cos_sin,
            inputs.positions,
            inputs.caches[0],
            inputs.caches[1],
            inputs.slots,
        )


@pytest.mark.gpu
def test_real_sizes_on_a_gpu() -> None:
    inputs = some_inputs(Shape(num_heads=32, num_kv_heads=8, head_dim=128), torch.bfloat16, "cuda")
    wanted_q, wanted_caches = inputs.run(attention_prologue_ref, inputs.norm)

    q, caches = inputs.run(attention_prologue, inputs.norm)

    assert_close(q, wanted_q)
    assert_close(caches.nan_to_num(), wanted_caches.nan_to_num())
