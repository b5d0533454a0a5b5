"""`LLM.embed` and `LLM.score` have vLLM's names, and give what the server gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from octavo_server import LLM, PoolingParams, SamplingParams
from octavo_server.errors import InvalidRequestError, OctavoError

TEXTS = ["The quick brown fox", "A pod holds containers.", "Größe"]


@pytest.fixture(scope="module")
def llm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """One whose config names shorter vectors."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("matryoshka") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [16, 64]}))
    return LLM(str(folder), num_gpu_blocks_override=100)


def test_vectors_come_in_the_order_of_the_prompts_and_have_length_one(llm: LLM) -> None:
    alone = [llm.embed(text)[0].outputs.embedding for text in TEXTS]

    together = llm.embed(TEXTS)

    assert np.allclose([item.outputs.embedding for item in together], alone, atol=1e-6)
    assert np.linalg.norm(alone, axis=1) == pytest.approx(1)
    assert [item.prompt for item in together] == TEXTS
    assert together[1].prompt_token_ids == llm.get_tokenizer().encode(TEXTS[1])
    assert (together[0].outputs.hidden_size, together[0].finished) == (64, True)


def test_pooling_params_shape_the_vector(llm: LLM) -> None:
    (whole,), (short,) = llm.embed(TEXTS[0]), llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=16))
    (raw,) = llm.embed(TEXTS[0], pooling_params=PoolingParams(normalize=False))
    (cut,) = llm.embed([[7] * 40], pooling_params=PoolingParams(truncate_prompt_tokens=3))

    assert np.linalg.norm(short.outputs.embedding) == pytest.approx(1)
    assert np.allclose(np.array(raw.outputs.embedding) / np.linalg.norm(raw.outputs.embedding), whole.outputs.embedding)
    assert cut.prompt_token_ids == [7, 7, 7]
    with pytest.raises(InvalidRequestError, match="16, 64"):
        llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=17))


def test_scores_are_cosines_of_one_against_many_or_of_pairs(llm: LLM) -> None:
    vectors = np.array([item.outputs.embedding for item in llm.embed(TEXTS)])
    expected = vectors @ vectors.T

    one = [item.outputs.score for item in llm.score(TEXTS[0], TEXTS)]
    pairs = [item.outputs.score for item in llm.score(TEXTS[:2], TEXTS[1:])]

    assert one == pytest.approx(expected[0], abs=1e-6)
    assert pairs == pytest.approx([expected[0, 1], expected[1, 2]], abs=1e-6)
    with pytest.raises(InvalidRequestError, match="data_1 has 2 texts and data_2 3"):
        llm.score(TEXTS[:2], TEXTS)


def test_a_prompt_that_cannot_run_is_refused_before_any_does(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="600 tokens"):
        llm.embed([[5], [5] * 600])

    assert not llm.engine.has_work


def test_a_state_that_is_no_number_names_the_prompt_and_leaves_nothing_running(llm: LLM) -> None:
    embedding = llm.engine._runner.decoder.weights.embedding  # type: ignore[attr-defined]  # the real runner
    before = embedding[400].clone()
    embedding[400] = float("nan")
    try:
        with pytest.raises(OctavoError, match="prompt 1: the model computed a hidden state that is not a number"):
            llm.embed([[5] * 200, [400], [6] * 200])
    finally:
        embedding[400] = before

    assert not llm.engine.has_work
    assert llm.generate([[5]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))[0].finished


@pytest.mark.model
def test_a_real_model_finds_each_text_nearest_to_its_paraphrase(smollm2_path: Path) -> None:
    llm = LLM(str(smollm2_path), num_gpu_blocks_override=50, quantization="int4")
    texts = [
        "The cat sat on the mat.",
        "A cat is sitting on a mat.",
        "The stock market fell sharply on Monday.",
        "Shares dropped a lot at the start of the week.",
        "Kubernetes schedules pods.",
        "Pods are placed on nodes by Kubernetes.",
    ]
    vectors = np.array([item.outputs.embedding for item in llm.embed(texts)])

    likeness = vectors @ vectors.T - 2 * np.eye(len(texts))

    assert likeness.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]
