"""The contract between the engine and whatever computes: one method per operation of a decoder step.

The engine never sees a layout. `allocate_kv_cache` and `prepare_linear` return handles that only the backend that
made them can read, so a GPU may keep blocks head-major and a CPU may keep K transposed. Everything else is plain
torch tensors on the backend's device.

Invariants:
- A backend holds no state between calls except what is inside the handles that it gave out.
- No method synchronises the host with the device.
- Every result of a row depends on that row alone (its sequence's cache included), never on its batch mates; bit for bit
  only where the backend was made batch-invariant, else up to the order in which sums are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.errors import KernelError

if TYPE_CHECKING:
    import torch

    from octavo_kernels.batches import AttentionBatch, SamplingBatch
    from octavo_kernels.decoder_spec import DecoderSpec, DecoderStep
    from octavo_kernels.fp8_weight import Fp8Weight
    from octavo_kernels.handles import (
        AttentionPlan,
        ExpertsHandle,
        KVCache,
        KVCacheSpec,
        KVScales,
        LinearHandle,
        QKNorm,
        QuantizedHandle,
    )
    from octavo_kernels.quantized_weight import QuantizedWeight


class KernelBackend(Protocol):
    """One method per operation. Floating tensors are float32, bfloat16 or float16; accumulation is in float32.

    All methods raise `KernelError` for a shape, dtype, device or stride that they cannot take.
    """

    @property
    def name(self) -> str:
        """One of "torch", "triton" and "numba"."""

    @property
    def device(self) -> torch.device: ...

    def allocate_kv_cache(self, spec: KVCacheSpec, scales: KVScales | None = None) -> KVCache:
        """Zeroed memory for `spec` on this device.

        scales: of a cache in float8_e4m3fn, [num_layers, num_kv_heads] each; None: 1. A backend that has no such cache
        refuses it.
        """

    def prepare_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearHandle:
        """Takes weight [out, in] and bias [out] (any floating dtype) and repacks them as this backend likes."""

    def linear(self, x: torch.Tensor, handle: LinearHandle) -> torch.Tensor:
        """X @ W.T + b. x: [num_tokens, in] of the weight's dtype -> new [num_tokens, out], dtype of x."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x: [..., hidden], weight: [hidden] -> new tensor like x: x / sqrt(mean(x^2) + eps) * weight."""

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Adds x to residual in place, rounded to its dtype, then rms_norm of it as a new tensor.

        x, residual: [num_tokens, hidden].
        """

    def rotary(self, q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> None:
        """Rotates q and k in place, halves layout (pair i, i + rotary_dim/2), the first rotary_dim of each head.

        q: [num_tokens, num_heads, head_dim], k: [num_tokens, num_kv_heads, head_dim]; last dimension contiguous,
        others any stride; cos_sin: [max_positions, rotary_dim] float32, cosines then sines; positions: [num_tokens] int64.
        """

    def store_kv(
        self, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, slot_mapping: torch.Tensor
    ) -> None:
        """Writes k, v [num_tokens, num_kv_heads, head_dim] into their slots of `layer`; PAD_SLOT rows go nowhere."""

    def attention_prologue(
        self,
        qkv: torch.Tensor,
        norm: QKNorm | None,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        layer: int,
        slot_mapping: torch.Tensor,
    ) -> torch.Tensor:
        """All between the projection and attention: rms_norm of q and k if there is one, rotary, store_kv.

        qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim], q's heads, then k's, then v's; may be overwritten.
        -> q for `attention`: [num_tokens, num_heads, head_dim], dtype of qkv.
        """

    def plan_attention(
        self, batch: AttentionBatch, cache: KVCache, num_heads: int, window: int | None = None
    ) -> AttentionPlan:
        """What all layers of one step that slide the same window share (work lists, scratch). Valid until the next step.

        window: tokens that a row sees, its own among them: the row at position p reads the keys of positions
        max(0, p - window + 1) .. p and no others, which may be freed. None: all up to its own.
        """

    def attention(
        self,
        q: torch.Tensor,
        cache: KVCache,
        layer: int,
        plan: AttentionPlan,
        scale: float,
        variant: AttentionVariant = PLAIN,
    ) -> torch.Tensor:
        """Causal attention of each row over its sequence's cached K/V, this step's included (store_kv came before).

        A row sees as far back as the plan's window; what else its scores may be, see `AttentionVariant`. A backend that
        lacks a variant refuses it.

        q: [num_tokens, num_heads, head_dim], num_heads a multiple of num_kv_heads; head h reads kv head
        h // (num_heads // num_kv_heads). -> new [num_tokens, num_heads, head_dim], dtype of q.
        """

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """x: [num_tokens, 2 * d] -> new [num_tokens, d]: silu(x[:, :d]) * x[:, d:]."""

    def route(self, logits: torch.Tensor, num_chosen: int, *, renormalizes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts of each token: those of the largest softmax, largest first, ties to the lowest id.

        logits: [num_tokens, num_experts] float32 -> ids [num_tokens, num_chosen] int64 and their shares [num_tokens,
        num_chosen] float32: probabilities among all experts, or with `renormalizes` divided by their sum. A row that
        holds a NaN gets some ids of experts and shares of NaN.
        """

    def prepare_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> ExpertsHandle:
        """Takes the MLPs of all experts, any one floating dtype, and repacks them as this backend likes.

        gate_up: [num_experts, 2 * inner, hidden], gate before up; down: [num_experts, hidden, inner].
        """

    def experts(
        self, x: torch.Tensor, handle: ExpertsHandle, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each token through its experts: the sum over its slots of weight * down(silu(gate) * up).

        x: [num_tokens, hidden] of the weights' dtype; expert_ids: [num_tokens, num_chosen] int64, below num_experts;
        expert_weights: like it, float32 -> new [num_tokens, hidden], dtype of x.
        """

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        """logits: [num_rows, vocab] float32, not written -> [num_rows] int64: token ids, NOT_FINITE or NOTHING_LEFT.

        Where temperature > 0: argmax over the kept tokens of logits / temperature + Gumbel(seed, position, token id),
        the noise of a token being -log(-log(u)), u = ((word >> 9) + 0.5) / 2^23 from word 0 of Philox with key
        (seed low, seed high) and counter (position low, position high, token id, 0). So a result depends on its row
        alone.
        """

    def copy_blocks(self, cache: KVCache, source: torch.Tensor, destination: torch.Tensor) -> None:
        """Copies whole blocks in all layers; source, destination: [n] int64, disjoint."""


@runtime_checkable
class TunableBackend(KernelBackend, Protocol):
    """A backend that has several ways to compute one thing, and finds out which is fastest."""

    def tune(self, handles: Sequence[LinearHandle]) -> None:
        """Measures linear layers of few rows, each shape once; what was measured before is read from disk.

        To be called when weights are loaded and nothing else runs.
        """


@runtime_checkable
class QuantizedBackend(KernelBackend, Protocol):
    """A backend that keeps weights in few bits."""

    def prepare_quantized_linear(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> QuantizedHandle:
        """Takes a weight [out, in] of few bits and bias [out] and repacks them; on a CPU `linear` rounds activations to int8."""

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> ExpertsHandle:
        """Experts whose matrices this backend has prepared, one linear layer an expert each; shapes as in `prepare_experts`.

        Raises `KernelError` where those of one layer are not alike.
        """


@runtime_checkable
class Fp8Backend(KernelBackend, Protocol):
    """A backend that multiplies in float8 (e4m3), where the device has it."""

    def check_fp8(self) -> None:
        """Raises `KernelError` where the device has no float8 of this format."""

    def prepare_fp8_linear(self, weight: torch.Tensor | Fp8Weight, bias: torch.Tensor | None = None) -> QuantizedHandle:
        """Rounds weight [out, in] to float8 with a scale for each output, or takes what is; `linear` rounds activations likewise.

        Activations are bfloat16.

        Raises `KernelError` where `out` or `in` is no multiple of 16.
        """

    def prepare_quantized_experts(self, gate_up: Sequence[LinearHandle], down: Sequence[LinearHandle]) -> ExpertsHandle:
        """As `QuantizedBackend.prepare_quantized_experts`."""


@runtime_checkable
class CompilingBackend(QuantizedBackend, Protocol):
    """A backend that may run a decoder's layers as one."""

    @property
    def description(self) -> str:
        """What the kernels run on, for the start's log line."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """What its KV caches hold, whatever dtype it computes in."""

    def compile_decoder(self, spec: DecoderSpec) -> DecoderStep | None:
        """None: this decoder runs operation by operation."""


def select_quantized_backend(device: str, num_threads: int) -> QuantizedBackend:
    """The compiled CPU kernels on "cpu", Triton elsewhere, see `select_backend`.

    Raises:
        KernelError: `device` is not there, or Numba is not installed.
    """
    if device != "cpu":
        backend = select_backend(device)
        assert isinstance(backend, QuantizedBackend)
        return backend
    try:
        from octavo_kernels.numba_backend import NumbaBackend
    except ImportError as error:
        raise KernelError(f"quantised linear layers need Numba, which cannot be imported: {error}") from error
    return NumbaBackend(num_threads)


def select_backend(device: str, *, is_batch_invariant: bool = False) -> KernelBackend:
    """Torch on "cpu", Triton on "cuda" or "hip" ("cuda:1" for the second GPU); imports no other than the chosen one.

    is_batch_invariant: a row has the same bits whatever stands beside it, at the price of speed.
    """
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda", "hip") or (colon and (kind == "cpu" or not index.isdecimal())):
        raise KernelError(f'device is {device!r}, must be "cpu", "cuda" or "hip", or a GPU by number as in "cuda:1"')
    import torch

    if kind == "cpu":
        from octavo_kernels.torch_backend import TorchBackend

        return TorchBackend(torch.device("cpu"), is_batch_invariant=is_batch_invariant)
    if not torch.cuda.is_available():
        raise KernelError(f"device is {device!r}, but torch finds no GPU; use cpu, or install a torch build for it")
    from octavo_kernels.triton_backend import TritonBackend

    # torch calls AMD's GPUs cuda too
    return TritonBackend(torch.device("cuda", int(index or 0)), is_batch_invariant=is_batch_invariant)
