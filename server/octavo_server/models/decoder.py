"""The one decoder: pre-norm layers of rotary attention and gated SiLU MLPs, as a family's row and a config say.

A layer has one MLP, or a mixture of experts of which each token visits a few.

Holds weights and nothing of a request. K/V live in the cache that the caller passes; every tensor operation is the
backend's. Must never synchronise the host with the device.

Of several ranks each has some heads, a part of the MLP and some rows of the vocabulary: what the rank adds to the running
sum is added up over all ranks, and so the sum is the same on each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from octavo_kernels.backend import CompilingBackend
from octavo_kernels.decoder_spec import DecoderSpec
from octavo_kernels.handles import QKNorm
from octavo_server.distributed.communicator import SingleRank
from octavo_server.models.shard import Shard

if TYPE_CHECKING:
    import torch

    from octavo_kernels.backend import KernelBackend
    from octavo_kernels.batches import AttentionBatch
    from octavo_kernels.decoder_spec import DecoderStep
    from octavo_kernels.handles import AttentionPlan, KVCache, KVCacheSpec
    from octavo_server.distributed.communicator import Communicator
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.decoder_weights import DecoderWeights, LayerWeights


class Decoder:
    """From token ids to hidden states, and from those to logits."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        backend: KernelBackend,
        communicator: Communicator | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        """This rank's."""
        self.backend = backend
        self.communicator = communicator or SingleRank()
        shard = Shard(rank=self.communicator.rank, size=self.communicator.size)
        self.num_heads = shard.num_heads(config)
        self.num_kv_heads = shard.num_kv_heads(config)
        """Both this rank's."""
        self._scale = config.head_dim**-0.5
        self._q_size = self.num_heads * config.head_dim
        # A step in one call has no place where ranks could add up.
        self._step = _compile(config, weights, backend) if shard.size == 1 else None

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the step's tokens and writes their K/V into `cache`.

        Args:
            token_ids: [num_tokens] int64.
            positions: [num_tokens] int64, each token's position in its sequence.
            attention: which rows belong to which sequence.
            cache: written at `attention.slot_mapping`.
            rows: [num_rows] int64, the rows whose final hidden state is wanted; None: all, in order.

        Returns:
            [num_rows, hidden], after the final norm.
        """
        backend, weights, eps = self.backend, self.weights, self.config.rms_norm_eps
        if self._step is not None:
            return self._step(functional.embedding(token_ids, weights.embedding), positions, attention, cache, rows)
        windows = self.config.windows
        plans = {window: backend.plan_attention(attention, cache, self.num_heads, window) for window in set(windows)}
        # residual: [num_tokens, hidden], the running sum; add_rms_norm updates it in place
        residual = self._embed(token_ids)
        x = backend.rms_norm(residual, weights.layers[0].input_norm, eps)
        for index, layer in enumerate(weights.layers):
            if index:
                x = backend.add_rms_norm(x, residual, layer.input_norm, eps)
            x = self._attention(x, layer, index, positions, attention, cache, plans[windows[index]])
            x = backend.add_rms_norm(x, residual, layer.post_attention_norm, eps)
            x = self._mlp(x, layer)
            self.communicator.all_reduce(x)
        if rows is not None:
            x, residual = x[rows], residual[rows]
        return backend.add_rms_norm(x, residual, weights.final_norm, eps)

    def likeliest(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """As `forward`, and on to the token without keeping logits.

        Returns:
            [num_rows] int64, the lowest id of each row's largest logit, -1 where one is not finite; None, and nothing
            was computed, where the backend has no such step.
        """
        if self._step is None:
            return None
        embedded = functional.embedding(token_ids, self.weights.embedding)
        return self._step.likeliest(embedded, positions, attention, cache, rows)

    def logits(self, hidden: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """hidden: [num_rows, hidden], as the last forward returned -> [rows, vocab] float32; of several ranks, at rank 0."""
        logits = self.communicator.gather(self.backend.linear(hidden[rows], self.weights.head)).float()
        # Parts of a vocabulary that cannot be dealt out evenly are filled up.
        return logits if logits.shape[1] <= self.config.vocab_size else logits[:, : self.config.vocab_size].contiguous()

    def write_logits(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """As `logits` of all rows, into `out` [num_rows, vocab] float32. Of one rank."""
        out.copy_(self.backend.linear(hidden, self.weights.head)[:, : self.config.vocab_size])

    def allocate_kv_cache(self, spec: KVCacheSpec) -> KVCache:
        """The backend's; one of float8 with the checkpoint's scales, where it has them."""
        is_fp8 = spec.dtype.itemsize == 1
        return self.backend.allocate_kv_cache(spec, self.weights.kv_scales if is_fp8 else None)

    def check(self) -> None:
        """Raises EngineDeadError where a rank that it needs is gone."""

    def close(self) -> None:
        """Ends what it has started beside this process; nothing can be computed after it."""

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids: [num_tokens] int64 -> new [num_tokens, hidden]."""
        embedding, ranks = self.weights.embedding, self.communicator
        if ranks.size == 1:
            return functional.embedding(token_ids, embedding)
        local = token_ids - ranks.rank * embedding.shape[0]
        is_elsewhere = (local < 0) | (local >= embedding.shape[0])
        x = functional.embedding(local.masked_fill(is_elsewhere, 0), embedding)
        x.masked_fill_(is_elsewhere.unsqueeze(-1), 0)
        ranks.all_reduce(x)
        return x

    def _attention(
        self,
        x: torch.Tensor,
        layer: LayerWeights,
        index: int,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        backend, config, num_heads, num_kv_heads = self.backend, self.config, self.num_heads, self.num_kv_heads
        num_tokens = x.shape[0]
        # qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], model dtype
        qkv = backend.linear(x, layer.qkv)
        heads = qkv.view(num_tokens, num_heads + 2 * num_kv_heads, config.head_dim)
        norm = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norm = QKNorm(q=layer.q_norm, k=layer.k_norm, eps=config.rms_norm_eps)
        slots = attention.slot_mapping
        q = backend.attention_prologue(heads, norm, self.weights.cos_sin, positions, cache, index, slots)
        context = backend.attention(q, cache, index, plan, self._scale)
        x = backend.linear(context.view(num_tokens, self._q_size), layer.output)
        self.communicator.all_reduce(x)
        return x

    def _mlp(self, x: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """x: [num_tokens, hidden] -> like it: through the layer's MLP, or each token through its experts."""
        backend = self.backend
        if layer.experts is None:
            assert layer.gate_up is not None
            assert layer.down is not None
            return backend.linear(backend.silu_and_mul(backend.linear(x, layer.gate_up)), layer.down)
        sizes = self.config.experts
        assert sizes is not None
        logits = backend.linear(x, layer.experts.router).float()
        ids, shares = backend.route(logits, sizes.num_chosen, renormalizes=sizes.renormalizes)
        return backend.experts(x, layer.experts.experts, ids, shares)


def _compile(config: ModelConfig, weights: DecoderWeights, backend: KernelBackend) -> DecoderStep | None:
    """All layers as one function, where the backend has such."""
    if not isinstance(backend, CompilingBackend):
        return None
    return backend.compile_decoder(
        DecoderSpec(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            cos_sin=weights.cos_sin,
            layers=weights.layers,
            windows=config.windows,
            final_norm=weights.final_norm,
            head=weights.head,
        )
    )
