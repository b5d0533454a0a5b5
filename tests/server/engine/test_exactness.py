"""The whole engine against transformers: float32 log-probabilities of every prompt position and generated token.

Tiny random checkpoints of each variant of each family; alone, eight at once, in chunks, after a prefix hit, preempted,
in blocks of 16 and 32, and greedy in a full batch. `test_the_measure_sees_a_bug_in_one_field` shows that it would tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from octavo_server.layers.rope import rope_table
from octavo_server.models.decoder import Decoder
from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import prompt_tokens
from octavo_testing.engine_runs import EngineRuns
from octavo_testing.families import VARIANTS, WINDOW, a_variant
from octavo_testing.stepping import LOGPROB_TOLERANCE, greedy_mismatches, worst_logprob_error

# They cross the edges of blocks, of the windows and of the lengths that the rotary embeddings were trained on.
LENGTHS = (1, 7, 16, 17, 40, 100, 150, 300)


@dataclass(frozen=True)
class Pair:
    loaded: LoadedModel
    oracle: Any

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        return prompt_tokens(length, self.loaded.config.vocab_size, seed)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """Tiny matrices lose more to waking threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            checkpoint = a_variant(tmp_path_factory.mktemp(name), name)
            made[name] = Pair(load_model(checkpoint.path), checkpoint.model)
        return made[name]

    return make


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, pairs: Callable[[str], Pair]) -> Pair:
    return pairs(request.param)


WIDE = pytest.param(32, marks=pytest.mark.full)


@pytest.mark.parametrize("block_size", [16, WIDE])
def test_alone(pair: Pair, block_size: int, record_property: Callable[[str, object], None]) -> None:
    runs = EngineRuns(pair.loaded, block_size=block_size, enable_prefix_caching=False)

    answers = [runs.generate([pair.prompt(n)], max_tokens=4, prompt_logprobs=9, logprobs=9)[0] for n in LENGTHS]

    assert [len(answer.prompt_logprobs) for answer in answers] == [n - 1 for n in LENGTHS]
    worst = max(worst_logprob_error(answer, pair.oracle) for answer in answers)
    record_property("worst_logprob_error", worst)
    assert worst < LOGPROB_TOLERANCE


@pytest.mark.parametrize("block_size", [16, 32, pytest.param(5, marks=pytest.mark.full)])
def test_eight_at_once(pair: Pair, block_size: int) -> None:
    runs = EngineRuns(pair.loaded, block_size=block_size)

    answers = runs.generate([pair.prompt(n) for n in LENGTHS], max_tokens=12, prompt_logprobs=3, logprobs=3)

    assert max(worst_logprob_error(answer, pair.oracle) for answer in answers) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("block_size", [16, WIDE])
def test_in_chunks_of_16(pair: Pair, block_size: int) -> None:
    runs = EngineRuns(pair.loaded, block_size=block_size, max_num_batched_tokens=16)

    answers = runs.generate([pair.prompt(n) for n in LENGTHS], max_tokens=4, prompt_logprobs=3, logprobs=3)

    assert [len(answer.prompt_logprobs) for answer in answers] == [n - 1 for n in LENGTHS]
    assert max(worst_logprob_error(answer, pair.oracle) for answer in answers) < LOGPROB_TOLERANCE


@pytest.mark.parametrize(("block_size", "hits"), [(16, [96, 64, 144]), (32, [96, 64, 128])])
def test_after_a_prefix_hit(pair: Pair, block_size: int, hits: list[int]) -> None:
    runs = EngineRuns(pair.loaded, block_size=block_size)
    shared, longer = pair.prompt(100), pair.prompt(150)
    runs.generate([shared, longer], max_tokens=1)

    answers = runs.generate([shared, shared[:70] + pair.prompt(31, seed=2), longer], max_tokens=12, logprobs=5)

    assert [answer.num_cached_tokens for answer in answers] == hits
    assert max(worst_logprob_error(answer, pair.oracle) for answer in answers) < LOGPROB_TOLERANCE


@pytest.mark.parametrize(("block_size", "num_blocks"), [(16, 18), (32, 11)])
def test_preempted(pair: Pair, block_size: int, num_blocks: int) -> None:
    """The blocks hold the prompts, not what six sequences generate."""
    runs = EngineRuns(pair.loaded, block_size=block_size, num_blocks=num_blocks, enable_prefix_caching=False)
    lengths = (40, 33, 20, 47, 16, 31)

    answers = runs.generate([pair.prompt(n, seed=3) for n in lengths], max_tokens=30, logprobs=2, prompt_logprobs=0)

    assert runs.engine.snapshot().preemptions > 0
    assert [len(answer.tokens) for answer in answers] == [30] * 6
    assert [len(answer.prompt_logprobs) for answer in answers] == [n - 1 for n in lengths]
    assert max(worst_logprob_error(answer, pair.oracle) for answer in answers) < LOGPROB_TOLERANCE
    assert [greedy_mismatches(answer, pair.oracle) for answer in answers] == [[]] * 6


def test_greedy_text_is_the_same_alone_and_in_a_full_batch(pair: Pair) -> None:
    """Where the two part, the oracle must have the two tokens within 1e-3 of each other."""
    runs = EngineRuns(pair.loaded, num_blocks=600, enable_prefix_caching=False)
    prompts = [pair.prompt(3 + 5 * n, seed=4) for n in range(24)]

    together = runs.generate(prompts, max_tokens=16)

    alone = [runs.generate([prompt], max_tokens=16)[0] for prompt in prompts[::4]]
    assert [greedy_mismatches(answer, pair.oracle) for answer in together + alone] == [[]] * 30
    parted = sum(a.token_ids != b.token_ids for a, b in zip(alone, together[::4], strict=True))
    assert parted <= 1


Change = Callable[[LoadedModel], LoadedModel]


def _configured(**changes: Any) -> Change:
    """The decoder believes another value of a field than the checkpoint has; weights stay."""

    def change(loaded: LoadedModel) -> LoadedModel:
        config = replace(loaded.config, **changes)
        weights = loaded.decoder.weights
        weights = replace(weights, cos_sin=rope_table(config.rope, config.head_dim, config.max_positions))
        return replace(loaded, config=config, decoder=Decoder(config, weights, loaded.backend))

    return change


def _roped(**changes: Any) -> Change:
    def change(loaded: LoadedModel) -> LoadedModel:
        return _configured(rope=replace(loaded.config.rope, **changes))(loaded)

    return change


def _windowed(change_window: Callable[[int | None], int | None]) -> Change:
    def change(loaded: LoadedModel) -> LoadedModel:
        return _configured(windows=tuple(change_window(window) for window in loaded.config.windows))(loaded)

    return change


def _weighted(change_layer: Callable[[Any], Any]) -> Change:
    def change(loaded: LoadedModel) -> LoadedModel:
        weights = loaded.decoder.weights
        changed = replace(weights, layers=tuple(change_layer(layer) for layer in weights.layers))
        return replace(loaded, decoder=Decoder(loaded.config, changed, loaded.backend))

    return change


def _without_bias(name: str) -> Change:
    return _weighted(lambda layer: replace(layer, **{name: replace(getattr(layer, name), bias=None)}))


def _scaled_as_for(head_dim: int) -> Change:
    def change(loaded: LoadedModel) -> LoadedModel:
        decoder = Decoder(loaded.config, loaded.decoder.weights, loaded.backend)
        decoder._scale = head_dim**-0.5
        return replace(loaded, decoder=decoder)

    return change


def _gates_and_ups_swapped(layer: Any) -> Any:
    if layer.experts is None:
        return layer
    experts = layer.experts.experts
    swapped = replace(experts, gate_up=experts.gate_up.roll(experts.inner_size, 1))
    return replace(layer, experts=replace(layer.experts, experts=swapped))


def _experts_moved_on(layer: Any) -> Any:
    """Each expert's work is done by the one after it."""
    if layer.experts is None:
        return layer
    experts = layer.experts.experts
    moved = replace(experts, gate_up=experts.gate_up.roll(1, 0), down=experts.down.roll(1, 0))
    return replace(layer, experts=replace(layer.experts, experts=moved))


def _routed(**changes: Any) -> Change:
    def change(loaded: LoadedModel) -> LoadedModel:
        assert loaded.config.experts is not None
        return _configured(experts=replace(loaded.config.experts, **changes))(loaded)

    return change


def _untied(loaded: LoadedModel) -> LoadedModel:
    """The embedding's neighbour rows as the head."""
    weights = loaded.decoder.weights
    head = loaded.backend.prepare_linear(weights.embedding.roll(1, 0))
    return replace(loaded, decoder=Decoder(loaded.config, replace(weights, head=head), loaded.backend))


BUGS: dict[str, tuple[str, Change]] = {
    "eps ignored": ("llama-linear-eps", _configured(rms_norm_eps=1e-6)),
    "eps a tenth off": ("llama-linear-eps", _configured(rms_norm_eps=0.045)),
    "theta a hundredth off": ("llama2", _roped(theta=10_100.0)),
    "linear factor": ("llama-linear-eps", _roped(factor=4.1)),
    "dynamic stretched": ("llama-dynamic", _roped(kind="linear", factor=2.0)),
    "llama3 factor": ("llama3", _roped(factor=7.0)),
    "llama3 low band": ("llama3", _roped(low_freq_factor=1.2)),
    "llama3 high band": ("llama3", _roped(high_freq_factor=3.8)),
    "llama3 original length": ("llama3", _roped(original_max_positions=70)),
    "yarn factor": ("qwen2-yarn", _roped(factor=4.1)),
    "yarn attention factor ignored": ("qwen2-yarn", _roped(attention_factor=1.0)),
    "yarn original length": ("qwen3-yarn", _roped(original_max_positions=120)),
    "yarn beta_fast": ("qwen3-yarn", _roped(beta_fast=32.0)),
    "yarn beta_slow": ("qwen3-yarn", _roped(beta_slow=1.0)),
    "yarn truncate": ("qwen3-yarn", _roped(truncate=True)),
    "window + 1": ("mistral-window", _windowed(lambda window: window and window + 1)),
    "window - 1": ("mistral-window", _windowed(lambda window: window and window - 1)),
    "window ignored": ("mistral-window", _windowed(lambda _: None)),
    "window in all layers": ("qwen2-max-window-layers", _windowed(lambda _: WINDOW)),
    "layers of the window swapped": (
        "qwen3-layer-types",
        _windowed(lambda window: WINDOW if window is None else None),
    ),
    "scaled by hidden / heads": ("llama-odd-biased", _scaled_as_for(12)),
    "scaled by head_dim + 1": ("qwen3", _scaled_as_for(25)),
    "no q, k, v bias": ("llama-attention-bias", _without_bias("qkv")),
    "no o bias": ("llama-attention-bias", _without_bias("output")),
    "no gate and up bias": ("llama-mlp-bias", _without_bias("gate_up")),
    "no down bias": ("llama-mlp-bias", _without_bias("down")),
    "head of other rows": ("llama3-tied", _untied),
    "norms of a layer swapped": (
        "llama2",
        _weighted(
            lambda layer: replace(layer, input_norm=layer.post_attention_norm, post_attention_norm=layer.input_norm)
        ),
    ),
    "q and k norm swapped": (
        "qwen3",
        _weighted(lambda layer: replace(layer, q_norm=layer.k_norm, k_norm=layer.q_norm)),
    ),
    "shares of experts divided": ("qwen3-moe", _routed(renormalizes=True)),
    "shares of experts as they are": ("qwen3-moe-renormalised", _routed(renormalizes=False)),
    "shares of Mixtral's as they are": ("mixtral", _routed(renormalizes=False)),
    "an expert less": ("mixtral-window", _routed(num_chosen=2)),
    "gate and up swapped": ("mixtral", _weighted(_gates_and_ups_swapped)),
    "another expert": ("qwen3-moe", _weighted(_experts_moved_on)),
    "no q and k norm": ("qwen3", _weighted(lambda layer: replace(layer, q_norm=None, k_norm=None))),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_measure_sees_a_bug_in_one_field(
    pairs: Callable[[str], Pair], bug: str, record_property: Callable[[str, object], None]
) -> None:
    """Each of BUGS moves a log-probability of the prompts by more than the tolerance; sound, none does."""
    name, change = BUGS[bug]
    pair = pairs(name)
    prompts = [pair.prompt(n) for n in (40, 150, 300)]

    def error_of(loaded: LoadedModel) -> float:
        answers = EngineRuns(loaded).generate(prompts, max_tokens=1, prompt_logprobs=5)
        return max(worst_logprob_error(answer, pair.oracle) for answer in answers)

    seen = error_of(change(pair.loaded))

    record_property("error", seen)
    assert error_of(pair.loaded) < LOGPROB_TOLERANCE
    assert seen > LOGPROB_TOLERANCE
