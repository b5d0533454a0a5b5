"""store_kv and copy_blocks: the two operations that write into the paged cache."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import copy_blocks, copy_blocks_ref, store_kv, store_kv_ref
from octavo_kernels.batches import PAD_SLOT

STORES = pytest.mark.parametrize("store", [store_kv.store_kv, store_kv_ref.store_kv], ids=["triton", "reference"])
COPIES = pytest.mark.parametrize(
    "copy", [copy_blocks.copy_blocks, copy_blocks_ref.copy_blocks], ids=["triton", "reference"]
)


def some_rows(num_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(num_tokens, num_kv_heads, head_dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


@STORES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_kv_heads", "head_dim", "block_size"), [(3, 24, 5), (1, 80, 16), (4, 64, 32)])
def test_a_row_is_found_at_its_slot_and_nothing_else_changes(
    store: object, dtype: torch.dtype, num_kv_heads: int, head_dim: int, block_size: int, device: str
) -> None:
    slots = [2 * block_size - 1, 2 * block_size, 4, PAD_SLOT, 3 * block_size + 1]
    k = some_rows(5, num_kv_heads, head_dim, dtype, 1).to(device)
    v = some_rows(5, num_kv_heads, head_dim, dtype, 2).to(device)
    before = torch.randn(2, 4, num_kv_heads, block_size, head_dim, generator=torch.Generator().manual_seed(3))
    key_cache, value_cache = before.to(device, dtype).unbind(0)
    expected_keys, expected_values = key_cache.cpu().clone(), value_cache.cpu().clone()
    for row, slot in enumerate(slots):
        if slot != PAD_SLOT:
            expected_keys[slot // block_size, :, slot % block_size] = k[row].cpu()
            expected_values[slot // block_size, :, slot % block_size] = v[row].cpu()

    store(k, v, key_cache, value_cache, torch.tensor(slots, device=device))  # type: ignore[operator]

    assert torch.equal(key_cache.cpu(), expected_keys)
    assert torch.equal(value_cache.cpu(), expected_values)


@STORES
def test_rows_of_a_joint_projection_are_read_by_their_strides(store: object, device: str) -> None:
    joint = some_rows(3, 10, 24, torch.float32, 0).to(device)
    key_cache = torch.zeros(2, 2, 16, 24, device=device)
    value_cache = torch.zeros(2, 2, 16, 24, device=device)

    other = some_rows(3, 7, 48, torch.float32, 1).to(device)[..., :24]

    store(joint[:, 3:5], other[:, 4:6], key_cache, value_cache, torch.tensor([16, 0, 31], device=device))  # type: ignore[operator]

    assert torch.equal(key_cache[1, :, 15], joint[2, 3:5])
    assert torch.equal(value_cache[0, :, 0], other[1, 4:6])


@COPIES
def test_blocks_are_copied_in_every_layer_and_no_other_changes(copy: object, device: str) -> None:
    before = torch.randn(2, 3, 7, 3, 5, 24, generator=torch.Generator().manual_seed(0)).to(device)
    keys, values = before.clone().unbind(0)
    expected = before.clone()
    expected[:, :, [4, 6]] = before[:, :, [1, 3]]

    copy(keys, values, torch.tensor([1, 3], device=device), torch.tensor([4, 6], device=device))  # type: ignore[operator]

    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@COPIES
def test_no_blocks_to_copy_is_fine(copy: object, device: str) -> None:
    keys = torch.ones(1, 2, 1, 2, 4, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)

    copy(keys, keys.clone(), none, none)  # type: ignore[operator]

    assert torch.equal(keys, torch.ones_like(keys))


@pytest.mark.gpu
def test_a_cache_of_more_than_2_to_the_31_elements_on_a_gpu() -> None:
    cache = torch.zeros(140_000, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    k = some_rows(1, 8, 128, torch.bfloat16, 1).cuda()
    last = torch.tensor([140_000 * 16 - 1], device="cuda")

    store_kv.store_kv(k, k, cache, cache, last)

    assert torch.equal(cache[-1, :, -1], k[0])
