"""All backends through the Protocol: a whole decoder layer on a mixed batch, cache writes included."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from octavo_kernels.backend import CompilingBackend, KernelBackend, select_backend
from octavo_kernels.batches import PAD_SLOT
from octavo_kernels.errors import KernelError
from octavo_kernels.handles import KVCacheSpec, QKNorm
from octavo_kernels.numba_backend import NumbaBackend
from octavo_kernels.torch_backend import TorchBackend
from octavo_kernels.triton_backend import TritonBackend
from octavo_testing.kernels import a_paged_case, a_sampling_batch, assert_close

HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 48, 6, 3, 24


@pytest.fixture(params=["torch", "triton", "numba"])
def backend(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "torch":
        return TorchBackend(torch.device("cpu"))
    if request.param == "numba":
        return NumbaBackend(2)
    return TritonBackend(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def kv_dtype(backend: KernelBackend) -> torch.dtype:
    return backend.kv_dtype if isinstance(backend, CompilingBackend) else torch.float32


def a_spec(backend: KernelBackend, num_layers: int = 2) -> KVCacheSpec:
    return KVCacheSpec(
        num_layers=num_layers,
        num_blocks=12,
        block_size=16,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=kv_dtype(backend),
    )


def weights(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def layer(backend: KernelBackend, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm, projection, rotary, cache, attention, feed-forward and a greedy token of each row."""
    device = backend.device
    # the batch alone is used; its caches are not
    batch = a_paged_case([5, 1, 12], [5, 1, 12], device=str(device)).batch
    cache = backend.allocate_kv_cache(a_spec(backend))
    num_rows = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    angles = weights(0, 32, HEAD_DIM // 2) * 20
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(device)
    residual = hidden.to(device).clone()

    normed = backend.rms_norm(residual, weights(1, HIDDEN).to(device), 1e-5)
    projected = backend.linear(normed, backend.prepare_linear(weights(2, num_rows, HIDDEN).to(device)))
    heads = projected.view(-1, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM)
    norm = QKNorm(q=weights(9, HEAD_DIM).to(device), k=weights(10, HEAD_DIM).to(device), eps=1e-5)
    positions = torch.arange(len(hidden), device=device)
    q = backend.attention_prologue(heads, norm, table, positions, cache, 1, batch.slot_mapping)
    plan = backend.plan_attention(batch, cache, NUM_HEADS)
    attended = backend.attention(q, cache, 1, plan, HEAD_DIM**-0.5).view(len(hidden), -1)
    out = backend.linear(attended, backend.prepare_linear(weights(3, HIDDEN, NUM_HEADS * HEAD_DIM).to(device)))
    normed = backend.add_rms_norm(out, residual, weights(4, HIDDEN).to(device), 1e-5)
    gated = backend.linear(
        normed, backend.prepare_linear(weights(5, 128, HIDDEN).to(device), weights(6, 128).to(device))
    )
    down = backend.prepare_linear(weights(7, HIDDEN, 64).to(device))
    logits = backend.linear(backend.silu_and_mul(gated), down) + residual
    return logits, backend.sample(logits, a_sampling_batch(len(hidden), temperature=0, device=str(device)))


def test_a_layer_is_the_same_on_every_backend(backend: KernelBackend) -> None:
    hidden = weights(8, 18, HIDDEN) * 5

    logits, tokens = layer(backend, hidden)

    expected_logits, expected_tokens = layer(TorchBackend(torch.device("cpu")), hidden)
    assert_close(logits, expected_logits, 2e-5 if kv_dtype(backend) == torch.float32 else 2e-3)
    assert tokens.tolist() == expected_tokens.tolist()


def test_stored_rows_are_attended_to_and_padding_is_stored_nowhere(backend: KernelBackend) -> None:
    """With one key its value is the answer, whatever q says."""
    cache = backend.allocate_kv_cache(a_spec(backend, num_layers=1))
    batch = a_paged_case([1], [1], device=str(backend.device)).batch
    v = weights(1, 2, NUM_KV_HEADS, HEAD_DIM).to(backend.device)
    slots = torch.tensor([int(batch.slot_mapping[0]), PAD_SLOT], device=backend.device)
    backend.store_kv(v.clone(), v, cache, 0, slots)
    q = weights(2, 1, NUM_HEADS, HEAD_DIM).to(backend.device)

    out = backend.attention(q, cache, 0, backend.plan_attention(batch, cache, NUM_HEADS), 0.2)

    assert_close(out, v[:1].to(kv_dtype(backend)).float().repeat_interleave(2, dim=1))


def test_a_copied_block_is_attended_to_like_its_source(backend: KernelBackend) -> None:
    cache = backend.allocate_kv_cache(a_spec(backend))
    case = a_paged_case([3], [3], device=str(backend.device))
    k = weights(3, 3, NUM_KV_HEADS, HEAD_DIM).to(backend.device)
    backend.store_kv(k, k.clone(), cache, 1, case.batch.slot_mapping)
    before = backend.attention(case.q, cache, 1, backend.plan_attention(case.batch, cache, NUM_HEADS), 0.2)
    source = case.batch.block_tables[0, :1].long()
    destination = torch.tensor([9], device=backend.device)

    backend.copy_blocks(cache, source, destination)
    backend.store_kv(torch.zeros_like(k), torch.zeros_like(k), cache, 1, case.batch.slot_mapping)
    case.batch.block_tables[0, 0] = 9
    after = backend.attention(case.q, cache, 1, backend.plan_attention(case.batch, cache, NUM_HEADS), 0.2)

    assert_close(after, before)


def test_handles_tell_their_shape(backend: KernelBackend) -> None:
    handle = backend.prepare_linear(torch.zeros(5, 8))

    assert (handle.in_features, handle.out_features) == (8, 5)
    assert backend.allocate_kv_cache(a_spec(backend)).spec == a_spec(backend)
    assert a_spec(backend).num_bytes == 2 * 2 * 12 * 16 * 3 * 24 * kv_dtype(backend).itemsize


def test_each_backend_names_itself_and_its_device() -> None:
    chosen = select_backend("cpu")

    assert (chosen.name, chosen.device) == ("torch", torch.device("cpu"))


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "", "cpu:", "cuda:"])
def test_an_unknown_device_is_refused_with_the_known_ones(device: str) -> None:
    with pytest.raises(KernelError, match='must be "cpu", "cuda" or "hip"'):
        select_backend(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "hip", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(device: str) -> None:
    with pytest.raises(KernelError, match="torch finds no GPU; use cpu"):
        select_backend(device)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_is_triton(device: str) -> None:
    assert select_backend(device).name == "triton"


def test_the_torch_backend_stays_on_the_cpu() -> None:
    with pytest.raises(KernelError, match="runs on cpu, not on meta"):
        TorchBackend(torch.device("meta"))


def test_importing_the_package_and_its_contract_loads_neither_torch_nor_triton() -> None:
    code = "import sys, octavo_kernels.backend; print(sorted({'torch', 'triton', 'numpy'} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.strip() == "[]"


def test_the_cpu_backend_does_not_load_triton() -> None:
    code = "import sys, octavo_kernels.backend as b; b.select_backend('cpu'); print('triton' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.strip() == "False"
