from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from octavo_kernels import rotary, rotary_ref, torch_elementwise
from octavo_testing.kernels import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [rotary, torch_elementwise], ids=["triton", "torch"])


def a_table(rotary_dim: int, max_positions: int = 200, theta: float = 10_000.0) -> torch.Tensor:
    frequencies = theta ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(max_positions)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def some_heads(num_tokens: int, num_heads: int, head_dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, num_heads, head_dim, generator=torch.Generator().manual_seed(seed))


def test_reference_equals_transformers() -> None:
    config = LlamaConfig(hidden_size=6 * 24, num_attention_heads=6, head_dim=24)
    q, k = some_heads(9, 6, 24), some_heads(9, 3, 24, seed=1)
    positions = torch.arange(40, 49)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected_q, expected_k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)

    rotary_ref.rotary(q, k, a_table(24), positions)

    # the table's angles and transformers' differ in their last bit, which position 48 enlarges
    assert_close(q, expected_q[0].transpose(0, 1), 2e-5)
    assert_close(k, expected_k[0].transpose(0, 1), 2e-5)


def test_position_zero_turns_nothing() -> None:
    q, k = some_heads(2, 2, 8), some_heads(2, 1, 8)
    before = q.clone()

    rotary_ref.rotary(q, k, a_table(8), torch.zeros(2, dtype=torch.int64))

    assert torch.equal(q, before)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(1, 6, 3, 24, 24), (7, 4, 4, 80, 32), (5, 71, 1, 64, 64), (3, 9, 3, 64, 64)],
)
def test_rotary_equals_the_reference(
    implementation: object,
    dtype: torch.dtype,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    device: str,
) -> None:
    q = some_heads(num_tokens, num_heads, head_dim).to(device, dtype)
    k = some_heads(num_tokens, num_kv_heads, head_dim, seed=1).to(device, dtype)
    positions = (torch.arange(num_tokens) * 37 % 200).to(device)
    table = a_table(rotary_dim).to(device)
    expected_q, expected_k = q.clone(), k.clone()
    rotary_ref.rotary(expected_q, expected_k, table, positions)

    implementation.rotary(q, k, table, positions)  # type: ignore[attr-defined]

    assert_close(q, expected_q)
    assert_close(k, expected_k)


@IMPLEMENTATIONS
def test_views_of_one_projection_are_turned_in_place_and_v_is_left_alone(implementation: object, device: str) -> None:
    joint = torch.randn(7, 12, 24, generator=torch.Generator().manual_seed(0)).to(device)
    before = joint.clone()
    expected_q, expected_k = before[:, :6].clone(), before[:, 6:9].clone()
    positions = torch.arange(7, device=device)
    rotary_ref.rotary(expected_q, expected_k, a_table(24).to(device), positions)

    implementation.rotary(joint[:, :6], joint[:, 6:9], a_table(24).to(device), positions)  # type: ignore[attr-defined]

    assert_close(joint, torch.cat((expected_q, expected_k, before[:, 9:]), dim=1))


@IMPLEMENTATIONS
def test_neighbours_that_do_not_touch_are_not_taken_for_one(implementation: object, device: str) -> None:
    joint = torch.randn(3, 12, 24, generator=torch.Generator().manual_seed(0)).to(device)
    before = joint.clone()
    expected_q, expected_k = before[:, :6].clone(), before[:, 8:11].clone()
    positions = torch.arange(3, device=device) + 5
    rotary_ref.rotary(expected_q, expected_k, a_table(24).to(device), positions)

    implementation.rotary(joint[:, :6], joint[:, 8:11], a_table(24).to(device), positions)  # type: ignore[attr-defined]

    assert_close(joint, torch.cat((expected_q, before[:, 6:8], expected_k, before[:, 11:]), dim=1))


@pytest.mark.gpu
def test_real_sizes_on_a_gpu() -> None:
    q, k = some_heads(4096, 32, 128).cuda(), some_heads(4096, 8, 128, seed=1).cuda()
    positions = torch.arange(4096, device="cuda") % 200
    expected_q, expected_k = q.clone(), k.clone()
    rotary_ref.rotary(expected_q, expected_k, a_table(128).cuda(), positions)

    rotary.rotary(q, k, a_table(128).cuda(), positions)

    assert_close(q, expected_q)
    assert_close(k, expected_k)
