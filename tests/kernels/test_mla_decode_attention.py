"""Latent attention of decodes: the reference against transformers' DeepSeek-V3, the kernel against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.cache_utils import DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)

from octavo_kernels import mla_decode_attention, mla_decode_attention_ref
from octavo_kernels.attention_plan import PagedAttentionPlan, plan_paged_attention
from octavo_kernels.errors import KernelError
from octavo_testing.kernels import Shape, a_paged_case, assert_close
from octavo_testing.paged_attention import TOLERANCE

LATENT, ROPE = 40, 8
MIXED = ([1, 7, 1, 1], [33, 9, 190, 64])
"""Decodes of one tile and of several, around an extend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCase:
    q: torch.Tensor
    cache: torch.Tensor
    plan: PagedAttentionPlan
    scale: float = 0.2

    def run(self, module: object, latent: int = LATENT) -> torch.Tensor:
        out = torch.full((*self.q.shape[:2], latent), torch.nan, dtype=self.q.dtype, device=self.q.device)
        module.mla_decode_attention(self.q, self.cache, self.plan, self.scale, out)  # type: ignore[attr-defined]
        return out


def a_case(
    num_heads: int,
    *,
    lengths: tuple[list[int], list[int]] = MIXED,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    block_size: int = 16,
    target_items: int = 16,
    latent: int = LATENT,
    rope: int = ROPE,
) -> LatentCase:
    """NaN behind every sequence's end."""
    shape = Shape(num_heads=num_heads, num_kv_heads=1, head_dim=latent + rope, block_size=block_size)
    case = a_paged_case(*lengths, shape=shape, dtype=dtype, device=device)
    plan = plan_paged_attention(
        case.batch, num_heads=num_heads, num_kv_heads=1, head_dim=latent, query_tile=1, target_items=target_items
    )
    return LatentCase(q=case.q, cache=case.key_cache[:, 0], plan=plan)


def test_reference_equals_transformers() -> None:
    """The keys' projection moved into q, the values' behind the kernel; latents as transformers' own cache has them."""
    config = DeepseekV3Config(
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=6,
        q_lora_rank=20,
        kv_lora_rank=LATENT,
        qk_rope_head_dim=ROPE,
        qk_nope_head_dim=16,
        v_head_dim=12,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    attention, hidden = DeepseekV3Attention(config, 0).eval(), torch.randn(1, 33, 48)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    cos, sin = DeepseekV3RotaryEmbedding(config)(hidden, torch.arange(33)[None])
    mask = torch.full((33, 33), -torch.inf).triu(1)
    latents = DynamicCache()
    case = a_case(6, lengths=([1], [33]))
    with torch.no_grad():
        wanted, _ = attention(hidden, (cos, sin), mask, latents)
        q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden[:, -1:]))).view(1, 1, 6, 24)
        q_nope, q_rope = q.transpose(1, 2).split((16, ROPE), dim=-1)
        q_rope, _ = apply_rotary_pos_emb_interleave(q_rope, q_rope, cos[:, -1:], sin[:, -1:])
    # up: [num_heads, nope + v, latent] fp32
    up = attention.kv_b_proj.weight.detach().view(6, 28, LATENT)
    absorbed = torch.einsum("hn,hnl->hl", q_nope[0, :, 0], up[:, :16])
    case.q[0] = torch.cat((absorbed, q_rope[0, :, 0]), dim=-1)
    rows = torch.cat((latents.layers[0].keys[0, 0], latents.layers[0].values[0, 0]), dim=-1)
    for position, row in enumerate(rows):
        case.cache[case.plan.batch.block_tables[0, position // 16].long(), position % 16] = row
    out = torch.empty(1, 6, LATENT)

    mla_decode_attention_ref.mla_decode_attention(case.q, case.cache, case.plan, attention.scaling, out)

    actual = attention.o_proj(torch.einsum("hl,hvl->hv", out[0], up[:, 16:]).flatten()).detach()
    assert_close(actual, wanted[0, -1], 2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("num_heads", "block_size"), [(6, 16), (16, 5), (37, 32)])
def test_kernel_equals_the_reference(num_heads: int, block_size: int, dtype: torch.dtype, device: str) -> None:
    """Rows of the extend are left alone by both."""
    case = a_case(num_heads, block_size=block_size, dtype=dtype, device=device)

    mine, theirs = case.run(mla_decode_attention), case.run(mla_decode_attention_ref)

    is_decode = torch.tensor([True] + [False] * 7 + [True, True])
    assert bool(theirs[is_decode].isfinite().all())
    assert bool(mine[~is_decode].isnan().all())
    assert_close(mine[is_decode], theirs[is_decode], TOLERANCE[dtype])


@pytest.mark.parametrize("target_items", [1, 5, 64])
def test_splits_of_a_context_join_to_the_same_result(target_items: int, device: str) -> None:
    case = a_case(4, lengths=([1, 1], [20, 400]), target_items=target_items, device=device)

    assert_close(case.run(mla_decode_attention), case.run(mla_decode_attention_ref), 5e-6)


def test_a_wide_latent_in_larger_steps(device: str) -> None:
    """The tiling that 512 latents get."""
    case = a_case(20, lengths=([1], [70]), dtype=torch.float16, latent=132, rope=20, device=device)

    assert mla_decode_attention.mla_tiling(20, 132, torch.float16).step == 32
    assert_close(case.run(mla_decode_attention, 132), case.run(mla_decode_attention_ref, 132), 2e-3)


@pytest.mark.parametrize("module", [mla_decode_attention, mla_decode_attention_ref], ids=["triton", "reference"])
@pytest.mark.parametrize(
    ("latent", "message"),
    [(48, "out has 48 latent dimensions, must be 1 to 47"), (0, "out has 0 latent dimensions, must be 1 to 47")],
)
def test_refuses_an_output_of_no_latent_width(module: object, latent: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        a_case(4).run(module, latent)


def test_refuses_the_plan_of_another_width() -> None:
    with pytest.raises(KernelError, match=r"partial_out has shape \[.*, 4, 40\], must be \[any, 4, 32\]"):
        a_case(4).run(mla_decode_attention, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("num_heads", [16, 128])
def test_real_sizes_on_a_gpu(num_heads: int) -> None:
    lengths = ([1] * 5, [33, 4000, 190, 1, 1025])
    case = a_case(
        num_heads, lengths=lengths, dtype=torch.bfloat16, device="cuda", latent=512, rope=64, target_items=528
    )

    assert_close(case.run(mla_decode_attention, 512), case.run(mla_decode_attention_ref, 512), 1.6e-2)
