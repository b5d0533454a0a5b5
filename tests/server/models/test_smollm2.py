"""The real model: SmolLM2-135M-Instruct as a Q4_1 GGUF file, against transformers on the dequantised weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, greedy_mismatches, worst_logprob_error

pytestmark = pytest.mark.model

QUESTION = "What is Kubernetes? Answer in one sentence."
ANSWER = (
    "Kubernetes is a software platform that allows organizations to manage their virtual private clouds (VPCs) "
    "and other cloud-native services."
)
OTHERS = (
    "Write a haiku about the sea.",
    "Name three prime numbers above 100.",
    "def fibonacci(n):",
    "Why is the sky blue? Explain it to a child, and do not use more than three sentences for it.",
    "Übersetze ins Deutsche: good morning, my friend.",
    "List the planets.",
    "Hi",
)


@pytest.fixture(scope="module")
def loaded(smollm2_path: Path) -> LoadedModel:
    return load_model(smollm2_path)


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def oracle(smollm2_path: Path) -> Any:
    """Loaded by transformers itself, so that its own reading of the file is compared too."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


def chat(tokenizer: Tokenizer, question: str) -> list[int]:
    prompt = tokenizer.render_chat([{"role": "user", "content": question}])
    return tokenizer.encode(prompt, add_special_tokens=False)


def test_the_greedy_answer_is_transformers(loaded: LoadedModel, tokenizer: Tokenizer, oracle: Any) -> None:
    prompt = chat(tokenizer, QUESTION)

    (generated,) = Stepper(loaded).generate([prompt], max_tokens=64, ignore_eos=False)

    assert generated.token_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(generated.token_ids) == ANSWER
    # Each token is the oracle's argmax after the same tokens, without any margin: so the oracle would write the same.
    assert greedy_mismatches(generated, oracle, margin=0.0) == []


def test_logprobs_are_transformers_alone(loaded: LoadedModel, tokenizer: Tokenizer, oracle: Any) -> None:
    (generated,) = Stepper(loaded).generate([chat(tokenizer, QUESTION)], max_tokens=24, logprobs=5, prompt_logprobs=5)

    assert worst_logprob_error(generated, oracle) < LOGPROB_TOLERANCE
    assert greedy_mismatches(generated, oracle) == []


def test_logprobs_are_transformers_in_a_full_batch(loaded: LoadedModel, tokenizer: Tokenizer, oracle: Any) -> None:
    """Chunks of prompts, decodes and preemptions share steps."""
    stepper = Stepper(loaded, num_blocks=24, max_num_batched_tokens=64)
    prompts = [chat(tokenizer, question) for question in (QUESTION, *OTHERS)]

    results = stepper.generate(prompts, max_tokens=16, logprobs=5, prompt_logprobs=0)

    assert stepper.scheduler.stats().preemptions > 0
    assert max(worst_logprob_error(item, oracle) for item in results) < LOGPROB_TOLERANCE
    assert [greedy_mismatches(item, oracle) for item in results] == [[]] * 8
    assert ANSWER.startswith(tokenizer.decode(results[0].token_ids))


def test_it_loads_in_seconds(smollm2_path: Path) -> None:
    """A start must be ready within 5 s; on an idle machine the weights take about 1 s of them."""
    start = time.process_time()
    load_model(smollm2_path)

    assert time.process_time() - start < 10
