"""Shapes of known models with random weights made on the device, and a loop that drives them through the real scheduler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence as Items
from pathlib import Path
from random import Random
from typing import Any

import torch

from octavo_kernels.backend import KernelBackend, TunableBackend
from octavo_server.engine.cuda_graphs import CudaGraphRecorder
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import Launched, SampledToken, SchedulerOutput, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.models.config import parse_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import load_decoder_weights
from octavo_server.models.dummy_weights import DummyWeights
from octavo_server.models.loader import LoadedModel, load_model

BLOCK_SIZE = 16


def _shape(architecture: str, model_type: str, sizes: Items[int], **others: Any) -> dict[str, Any]:
    """sizes: vocabulary, hidden, inner, layers, heads, key/value heads, head_dim."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **dict(zip(names + heads, sizes, strict=True)),
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 1,
        **others,
    }


_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": _shape("LlamaForCausalLM", "llama", (128256, 4096, 14336, 32, 32, 8, 128)),
    "qwen3-0.6b": _shape("Qwen3ForCausalLM", "qwen3", (151936, 1024, 3072, 28, 16, 8, 128), tie_word_embeddings=True),
    "qwen3-moe": _shape("Qwen3MoeForCausalLM", "qwen3_moe", (151936, 2048, 6144, 48, 32, 4, 128), **_EXPERTS),
}
_TINY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
_TINY_SIZES = (64, 32, 48, 2, 2, 1, 16)
TINY: dict[str, dict[str, Any]] = {
    "llama-8b": _shape("LlamaForCausalLM", "llama", _TINY_SIZES, max_position_embeddings=512),
    "qwen3-0.6b": _shape("Qwen3ForCausalLM", "qwen3", _TINY_SIZES, max_position_embeddings=512),
    "qwen3-moe": _shape("Qwen3MoeForCausalLM", "qwen3_moe", _TINY_SIZES, max_position_embeddings=512, **_TINY_EXPERTS),
}
SMALL: dict[str, dict[str, Any]] = {
    "llama": _shape("LlamaForCausalLM", "llama", (1000, 256, 512, 4, 8, 2, 64)),
    "qwen3": _shape("Qwen3ForCausalLM", "qwen3", (1000, 256, 512, 4, 8, 4, 64)),
    "qwen3-moe": _shape(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        (1000, 256, 512, 4, 8, 4, 64),
        **{**_EXPERTS, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    ),
}
"""For checks: a float32 twin on the host answers in a moment."""


class Model:
    """A decoder with random weights, its cache, and the scheduler in front of them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.config = loaded.config
        self.decoder = loaded.decoder

    @classmethod
    def of(cls, raw: dict[str, Any], source: str, backend: KernelBackend, dtype: torch.dtype) -> Model:
        """source: "device" makes weights there; "host" makes those that any backend's twin has too."""
        config = parse_model_config(raw, {}, source="gpu_report")
        weights = DummyWeights(config, backend.device if source == "device" else "cpu")
        loaded = load_decoder_weights(config, weights, backend, dtype, lambda _done, _total: None)
        if isinstance(backend, TunableBackend):
            backend.tune(loaded.linear_layers)
        return cls(
            LoadedModel(
                config=config,
                decoder=Decoder(config, loaded, backend),
                backend=backend,
                dtype=dtype,
                num_weight_bytes=loaded.num_bytes,
            )
        )

    @classmethod
    def quantized(cls, raw: dict[str, Any], device: torch.device, quantization: str) -> Model:
        """As `octavo serve --load-format dummy` loads it; StartupError where the device has no such kernels."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(raw), encoding="utf-8")
            return cls(load_model(folder, device=str(device), quantization=quantization, load_format="dummy"))

    def start(
        self,
        num_blocks: int,
        max_num_seqs: int,
        max_num_batched_tokens: int = 8192,
        *,
        has_fixed_pieces: bool = False,
    ) -> None:
        """A fresh cache and scheduler; pieces of prompts are a quarter of a step where they are fixed."""
        self.runner = DecoderRunner(self.decoder, self.loaded.kv_cache_spec(num_blocks, BLOCK_SIZE))
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_seqs=max_num_seqs,
                max_model_len=self.config.max_positions,
                long_prefill_token_threshold=max_num_batched_tokens // (4 if has_fixed_pieces else 1),
                has_fixed_pieces=has_fixed_pieces,
                overlaps=self.loaded.backend.device.type != "cpu",
            ),
            KVCacheManager(num_blocks=num_blocks, block_size=BLOCK_SIZE, enable_prefix_caching=False),
        )
        self._num_sequences = 0
        self._under_way: tuple[SchedulerOutput, Launched] | None = None
        self.sampled: dict[SequenceId, list[SampledToken]] = {}

    def record_graphs(self, max_num_seqs: int) -> bool:
        """Of decodes, as `octavo serve` does on a GPU; False on a CPU, which has none."""
        if self.loaded.backend.device.type == "cpu":
            return False
        self.runner.record_graphs(CudaGraphRecorder(), max_num_seqs)
        return True

    def add(self, prompt: Items[int], params: SamplingParams) -> Sequence:
        number = self._num_sequences
        self._num_sequences += 1
        request = Request(request_id=str(number), prompt_token_ids=tuple(prompt), params=params, arrival_s=0.0)
        sequence = Sequence(sequence_id=SequenceId(number), request=request, seed=number)
        self.scheduler.add(sequence)
        return sequence

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._under_way is not None

    def step(self) -> int:
        """One round, as the engine's -> tokens of output: on a GPU those of the step before, while the next one runs."""
        if not self.scheduler.config.overlaps:
            decision = self.scheduler.schedule(0.0)
            return self._take_in((decision, self.runner.launch(decision))) if decision.scheduled else 0
        num_tokens = 0
        if self.scheduler.needs_tokens:
            before, self._under_way = self._under_way, None
            num_tokens += self._take_in(before)
        decision = self.scheduler.schedule(0.0)
        before, self._under_way = self._under_way, None
        if decision.scheduled:
            self._under_way = (decision, self.runner.launch(decision))
            self.scheduler.launched(decision)
        return num_tokens + self._take_in(before)

    def _take_in(self, step: tuple[SchedulerOutput, Launched] | None) -> int:
        if step is None:
            return 0
        decision, launched = step
        result = launched.result()
        if result.failed:
            raise RuntimeError(next(iter(result.failed.values())))
        self.scheduler.update(decision, result)
        self.scheduler.pop_finished()
        for sequence_id, token in result.sampled.items():
            self.sampled.setdefault(sequence_id, []).append(token)
        return len(result.sampled)

    def stop(self, sequences: Items[Sequence]) -> None:
        """Ends what nobody waits for any more."""
        before, self._under_way = self._under_way, None
        self._take_in(before)
        for sequence in sequences:
            self.scheduler.abort(sequence.sequence_id)
        self.scheduler.pop_finished()

    def run(self) -> None:
        """Until all that was added has ended."""
        while self.has_work:
            self.step()


def prompts(count: int, num_tokens: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids above those that mean something."""
    rng = Random(seed)
    return [[rng.randrange(2, vocab_size) for _ in range(num_tokens)] for _ in range(count)]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
