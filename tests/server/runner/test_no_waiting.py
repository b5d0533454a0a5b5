"""Launching a step never waits for the device, whatever the step is made of and whatever its requests ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from octavo_kernels.handles import KVCacheSpec
from octavo_server.config import LogprobsMode
from octavo_server.engine import transfers
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import BlockId, ScheduledSequence, SchedulerOutput, SequenceId
from octavo_server.engine.request import POOLING, Request, SamplingParams
from octavo_server.engine.sequence import Sequence
from octavo_testing.fake_gpu import GPU, FakeJit, NoWaiting, ReadHostCopy, WaitedError, a_fake_decoder, fake_gpu

DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}
EXPERTS = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
MODELS = {"dense": DENSE, "experts": EXPERTS, "wide experts": {**EXPERTS, "moe_intermediate_size": 32}}


class AGrammar:
    error = ""

    def allowed_tokens(self) -> bytes | None:
        return bytes([255] * 8)

    def accept(self, _token_id: int) -> bool:
        return True


def an_item(
    number: int,
    *,
    known: int,
    computed: int,
    grammar: AGrammar | None = None,
    bad: tuple[tuple[int, ...], ...] = (),
    pools: bool = False,
    **params: Any,
) -> ScheduledSequence:
    """A sequence whose last token is computed in this step; its prompt has 3 tokens, or all where it pools."""
    values: Any = {"temperature": 0.0, "max_tokens": 200, **params}
    prompt = tuple(range(2, known + 2)) if pools or "prompt_logprobs" in params else (2, 3, 4)
    request = Request(
        request_id=str(number),
        prompt_token_ids=prompt,
        params=POOLING if pools else SamplingParams(**values),
        arrival_s=0.0,
        pools=pools,
        bad_token_ids=bad,
    )
    sequence = Sequence(sequence_id=SequenceId(number), request=request, grammar=grammar, seed=number)
    for token_id in range(known - len(prompt)):
        sequence.append(token_id)
    sequence.block_ids = [BlockId(1 + number * 4 + i) for i in range(-(-known // 16))]
    return ScheduledSequence(
        sequence=sequence, start=computed, num_tokens=known - computed, samples=not pools, pools=pools
    )


def decodes() -> list[ScheduledSequence]:
    return [an_item(n, known=5 + n, computed=4 + n) for n in range(5)]


STEPS: dict[str, Callable[[], list[ScheduledSequence]]] = {
    "prefill": lambda: [an_item(0, known=40, computed=0)],
    "decodes": decodes,
    "mixed": lambda: [*decodes(), an_item(9, known=40, computed=16)],
    "drawn": lambda: [an_item(0, known=9, computed=8, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1), *decodes()[1:]],
    "edited": lambda: [
        an_item(0, known=9, computed=8, presence_penalty=1.0, repetition_penalty=1.1),
        an_item(1, known=9, computed=8, logit_bias={3: 1.0, 5: -1.0}, min_tokens=20, stop_token_ids=(7,)),
        an_item(2, known=9, computed=8, allowed_token_ids=(1, 2), bad=((3,), (1, 2))),
        an_item(3, known=9, computed=8, grammar=AGrammar(), min_tokens=20),
        an_item(4, known=9, computed=8, logit_bias={640: 1.0}),
    ],
    "told": lambda: [*decodes()[:2], an_item(5, known=9, computed=8, logprobs=3), an_item(6, known=9, computed=0, prompt_logprobs=2, logprobs=0)],
    "pooled": lambda: [*decodes()[:2], an_item(7, known=12, computed=0, pools=True)],
}  # fmt: skip


@pytest.fixture
def on_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJit]:
    with fake_gpu(monkeypatch) as jit:
        yield jit


def a_runner(
    model: str = "dense",
    mode: LogprobsMode = "raw",
    kv_dtype: torch.dtype = torch.bfloat16,
    quantization: str = "none",
) -> DecoderRunner:
    decoder = a_fake_decoder(MODELS[model], quantization)
    spec = KVCacheSpec(num_layers=2, num_blocks=64, block_size=16, num_kv_heads=1, head_dim=16, dtype=kv_dtype)
    return DecoderRunner(decoder, spec, mode)


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("step", STEPS)
def test_launching_a_step_over_8_bits_waits_for_nothing(step: str) -> None:
    runner = a_runner(kv_dtype=torch.float8_e4m3fn)

    with NoWaiting():
        runner.launch(SchedulerOutput(scheduled=tuple(STEPS[step]())))


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("quantization", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("step", ["prefill", "decodes"])
def test_launching_a_step_through_experts_of_few_bits_waits_for_nothing(step: str, quantization: str) -> None:
    runner = a_runner("wide experts", quantization=quantization)

    with NoWaiting():
        runner.launch(SchedulerOutput(scheduled=tuple(STEPS[step]())))


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("model", ["dense", "experts"])
def test_launching_a_step_waits_for_nothing(model: str, step: str, mode: LogprobsMode) -> None:
    runner = a_runner(model, mode)
    output = SchedulerOutput(scheduled=tuple(STEPS[step]()))

    with NoWaiting():
        launched = runner.launch(output)

    with pytest.raises(WaitedError):
        launched.result()


@pytest.mark.parametrize(
    ("model", "kv_dtype", "quantization"),
    [
        ("dense", torch.bfloat16, "none"),
        ("experts", torch.bfloat16, "none"),
        ("dense", torch.float8_e4m3fn, "none"),
        ("wide experts", torch.bfloat16, "int4"),
        ("wide experts", torch.bfloat16, "int8"),
        ("wide experts", torch.bfloat16, "fp8"),
    ],
    ids=str,
)
def test_nothing_is_compiled_after_the_warm_up(
    model: str, kv_dtype: torch.dtype, quantization: str, on_fake_gpu: FakeJit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever steps consist of: numbers of sequences and tokens, contexts, and what is asked of sampling."""
    runner = a_runner(model, kv_dtype=kv_dtype, quantization=quantization)
    with monkeypatch.context() as reading:
        reading.setattr(transfers, "HostCopy", ReadHostCopy)
        runner.warm_up(max_num_tokens=256, max_num_seqs=32)
    compiled = set(on_fake_gpu.keys)
    steps = [make() for make in STEPS.values()]
    for count in (1, 2, 3, 5, 16, 17, 32):
        steps += [
            [an_item(n, known=5 + 30 * (n % 3), computed=4 + 30 * (n % 3), temperature=0.5) for n in range(count)]
        ]
        steps += [[an_item(n, known=6 + n, computed=n % 5, top_k=n, temperature=1.0) for n in range(count)]]
        steps += [[an_item(40, known=9 + 7 * count, computed=0), *steps[-2][1:]]]

    for step in steps:
        runner.launch(SchedulerOutput(scheduled=tuple(step)))

    assert on_fake_gpu.keys - compiled == set()


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.isfinite().all()),
    "list": lambda x: x.tolist(),
    "nonzero": torch.nonzero,
    "mask": lambda x: x[x > 0],
    "to the host": lambda x: x.cpu(),
    "copied to the host": lambda x: torch.empty(x.shape).copy_(x, non_blocking=True),
    "index from a list": lambda x: x[[0, 1]],
    "tensor from a list": lambda x: torch.tensor([1, 2], device=x.device),
    "from the host": lambda x: torch.zeros(3).to(x.device),
}


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("way", WAITS)
def test_the_guard_sees_each_way_of_waiting(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = a_runner()
    original = runner.decoder.logits

    def waits(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        logits = original(hidden, rows)
        WAITS[way](logits)
        return logits

    monkeypatch.setattr(runner.decoder, "logits", waits)
    seen = (WaitedError, DataDependentOutputException, DynamicOutputShapeException)

    with NoWaiting(), pytest.raises(seen):
        runner.launch(SchedulerOutput(scheduled=tuple(decodes())))


@pytest.mark.gpu
@pytest.mark.parametrize("step", STEPS)
def test_torch_sees_no_wait_on_a_gpu(step: str) -> None:
    """The same on a real one, by torch's own check."""
    from octavo_kernels.backend import select_backend
    from octavo_server.models.config import parse_model_config
    from octavo_server.models.decoder import Decoder
    from octavo_server.models.decoder_weights import load_decoder_weights
    from octavo_server.models.dummy_weights import DummyWeights

    config, backend = parse_model_config(DENSE, {}, source="test"), select_backend(GPU.type)
    weights = load_decoder_weights(config, DummyWeights(config), backend, torch.bfloat16, lambda *_: None, None)
    spec = KVCacheSpec(num_layers=2, num_blocks=64, block_size=16, num_kv_heads=1, head_dim=16, dtype=torch.bfloat16)
    runner = DecoderRunner(Decoder(config, weights, backend), spec)
    # kernels compile when they are first called
    runner.execute(SchedulerOutput(scheduled=tuple(STEPS[step]())))

    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = runner.launch(SchedulerOutput(scheduled=tuple(STEPS[step]())))
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert launched.result().sampled
