"""Recorded steps against eager ones, to the last bit; the recorder is a tape of operations, as a graph is of launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.engine.request import FinishReason
from octavo_server.graph_sizes import graph_sizes
from octavo_server.models.decoder import Decoder
from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import ODD, a_checkpoint, prompt_tokens
from octavo_testing.op_tape import DeviceLikeBackend, TapeRecorder
from octavo_testing.stepping import Generated, Stepper

MAX_SEQS, MAX_BLOCKS = 6, 8
MIXTURE: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.5, "top_k": 20, "min_p": 0.01, "seed": 4},
    {"temperature": 1.0, "seed": 5},
]
ASKING: list[dict[str, Any]] = [
    *MIXTURE,
    {"logprobs": 3, "presence_penalty": 2.0},
    {"logprobs": 1, "temperature": 1.2, "logit_bias": {7: 3.0}, "prompt_logprobs": 1},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return a_small_model(tmp_path_factory.mktemp("checkpoint"))


def a_small_model(folder: Path) -> LoadedModel:
    sizes = {**ODD, "num_hidden_layers": 2, "max_position_embeddings": MAX_BLOCKS * 16}
    model = load_model(a_checkpoint(folder, "LlamaForCausalLM", sizes).path)
    backend = DeviceLikeBackend(MAX_BLOCKS)
    return replace(model, backend=backend, decoder=Decoder(model.config, model.decoder.weights, backend))


def a_stepper(loaded: LoadedModel, recorder: TapeRecorder | None, **limits: Any) -> Stepper:
    stepper = Stepper(loaded, max_num_seqs=MAX_SEQS, is_resident=True, **limits)
    if recorder is not None:
        stepper.runner.record_graphs(recorder, MAX_SEQS)
    return stepper


def generate(stepper: Stepper, asked: list[dict[str, Any]]) -> list[Generated]:
    prompts = [prompt_tokens(4 + 9 * n, ODD["vocab_size"], seed=n) for n in range(len(asked))]
    return stepper.run(
        [stepper.add(prompt, max_tokens=5 + 4 * n, **params) for n, (prompt, params) in enumerate(zip(prompts, asked, strict=True))]
    )  # fmt: skip


def said(results: list[Generated]) -> list[Any]:
    return [(item.tokens, item.prompt_logprobs, item.sequence.finish_reason) for item in results]


def test_sizes_are_doubled_then_16_apart_and_end_with_the_limit() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(6) == (1, 2, 4, 6)
    assert graph_sizes(256) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert graph_sizes(300)[-4:] == (256, 272, 288, 300)
    assert len(graph_sizes(1024)) == 9 + 48


@pytest.mark.parametrize("asked", [MIXTURE, ASKING], ids=["plain", "edits and log-probabilities"])
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 12}, {"max_num_batched_tokens": 16}], ids=str)
def test_replayed_steps_give_what_eager_ones_give(
    loaded: LoadedModel, asked: list[dict[str, Any]], limits: dict[str, Any]
) -> None:
    """While others come in chunks, are preempted, and end one after another, so that every size is filled up."""
    recorder = TapeRecorder()
    eager = said(generate(a_stepper(loaded, None, **limits), asked))

    replayed = said(generate(a_stepper(loaded, recorder, **limits), asked))

    assert replayed == eager
    # the largest is recorded first
    assert sum(tape.num_replays for tape in recorder.tapes) > 10
    assert [tape.num_replays > 0 for tape in recorder.tapes][1:] == [True] * 3


def test_a_step_takes_the_smallest_size_that_holds_it(loaded: LoadedModel) -> None:
    recorder = TapeRecorder()
    stepper = a_stepper(loaded, recorder)
    for n in range(3):
        stepper.add([3 + n, 4], max_tokens=3)
    stepper.step()
    assert [tape.num_replays for tape in recorder.tapes] == [0, 0, 0, 0]

    stepper.step()

    assert [tape.num_replays for tape in recorder.tapes] == [0, 1, 0, 0]


def test_prefills_and_what_pools_are_eager(loaded: LoadedModel) -> None:
    recorder = TapeRecorder()
    stepper = a_stepper(loaded, recorder)

    stepper.run([stepper.add([3, 4, 5], pools=True), stepper.add([3], pools=True), stepper.add([3, 4], max_tokens=1)])

    assert sum(tape.num_replays for tape in recorder.tapes) == 0


def test_rows_that_fill_a_size_up_write_to_no_block(loaded: LoadedModel) -> None:
    """Recording every size and replaying one for fewer sequences leaves all blocks but the sequences' own as they were."""
    recorder = TapeRecorder()
    stepper = a_stepper(loaded, recorder)
    cache: Any = stepper.runner.kv_cache
    assert all(not layer[:-1].any() for layer in cache.slots)
    sequences = [stepper.add([3 + n, 4], max_tokens=4) for n in range(3)]
    stepper.step()
    stepper.step()
    own = {block for sequence in sequences for block in sequence.block_ids}

    written = {block for layer in cache.keys for block in layer.flatten(1).any(1).nonzero().flatten().tolist()}

    assert written == own


def test_a_row_that_is_not_finite_fails_alone(loaded: LoadedModel) -> None:
    recorder = TapeRecorder()
    stepper = a_stepper(loaded, recorder)
    good, bad = stepper.add([3, 4], max_tokens=4), stepper.add([5, 6], max_tokens=4)
    stepper.step()
    cache: Any = stepper.runner.kv_cache
    for layer in cache.slots:
        layer[bad.block_ids[0] * 16] = torch.nan

    stepper.run([good, bad])

    assert (good.finish_reason, bad.finish_reason) == (FinishReason.LENGTH, FinishReason.ERROR)
    assert "not a number" in str(bad.error)
    assert sum(tape.num_replays for tape in recorder.tapes) == 3


def test_a_recorded_step_does_not_see_what_the_host_says_later(loaded: LoadedModel) -> None:
    """The tape is as deaf as a graph: a number that the step takes from the host is the one of the recording."""
    now = [1.0]
    out = torch.zeros(2)

    def run() -> None:
        out.fill_(now[0])

    tape = TapeRecorder().record(run)
    now[0] = 2.0

    tape.replay()

    assert out.tolist() == [1.0, 1.0]
