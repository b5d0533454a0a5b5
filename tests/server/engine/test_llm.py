"""The offline API has vLLM's names and shapes, and gives what the server gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_server import LLM, SamplingParams
from octavo_server.errors import ConfigError, InvalidRequestError

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    import torch

    torch.set_num_threads(1)
    return LLM(str(tiny_model), num_gpu_blocks_override=100, max_model_len="256")


def test_settings_are_the_flags_names_and_texts_are_read_as_flags(llm: LLM) -> None:
    assert (llm.config.max_model_len, llm.engine.limits.max_sequence_tokens) == (256, 256)


def test_the_memory_table_is_that_of_the_start(llm: LLM) -> None:
    lines = llm.get_memory_table().splitlines()

    assert lines[0].startswith("LlamaForCausalLM, ")
    assert any(line.startswith("KV cache ") for line in lines)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown setting max_modl_len; did you mean max_model_len"):
        LLM("m", max_modl_len=5)


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["The quick brown", "A pod", "Größe"]
    alone = [llm.generate(prompt, GREEDY)[0].outputs[0].text for prompt in prompts]

    together = llm.generate(prompts, GREEDY)

    assert [output.outputs[0].text for output in together] == alone
    assert [output.prompt for output in together] == prompts
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in together)


def test_token_ids_dicts_and_texts_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The quick")

    outputs = [
        llm.generate(p, GREEDY)[0]
        for p in ("The quick", ids, [ids], {"prompt_token_ids": ids}, {"prompt": "The quick"})
    ]

    assert {output.outputs[0].text for output in outputs} == {outputs[0].outputs[0].text}
    assert [output.prompt_token_ids for output in outputs] == [ids] * 5


def test_log_probabilities_have_vllms_shape(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=2, prompt_logprobs=1)

    result = llm.generate("The quick", params)[0]

    output = result.outputs[0]
    assert output.logprobs is not None
    assert result.prompt_logprobs is not None
    assert [token_id in entry for token_id, entry in zip(output.token_ids, output.logprobs, strict=True)] == [True] * 4
    chosen = [entry[token_id].logprob for token_id, entry in zip(output.token_ids, output.logprobs, strict=True)]
    assert output.cumulative_logprob == pytest.approx(sum(chosen))
    assert (result.prompt_logprobs[0], len(result.prompt_logprobs)) == (None, len(result.prompt_token_ids))
    assert output.logprobs[0][output.token_ids[0]].rank == 1


def test_a_stop_string_may_be_given_as_a_string_and_n_gives_n_outputs(llm: LLM) -> None:
    text = llm.generate("The quick", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))[0].outputs[0].text
    stop = text[5:7]

    result = llm.generate("The quick", SamplingParams(n=2, temperature=0, max_tokens=30, ignore_eos=True, stop=stop))[0]  # type: ignore[arg-type]  # as vLLM's scripts write it

    assert [output.text for output in result.outputs] == [text[: text.index(stop)]] * 2
    assert [output.stop_reason for output in result.outputs] == [stop] * 2


def test_one_set_of_parameters_a_prompt(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5)]

    lengths = [len(output.outputs[0].token_ids) for output in llm.generate(["a", "b"], params)]

    assert lengths == [1, 5]
    with pytest.raises(ConfigError, match="3 prompts came with 2"):
        llm.generate(["a", "b", "c"], params)


def test_chat_takes_one_conversation_or_several(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hi"}]

    one = llm.chat(conversation, GREEDY)
    two = llm.chat([conversation, [{"role": "user", "content": "Bye"}]], GREEDY, use_tqdm=True)

    assert (len(one), len(two)) == (1, 2)
    assert one[0].outputs[0].text == two[0].outputs[0].text
    assert str(two[0].prompt).startswith("<|im_start|>user\nHi<|im_end|>")


def test_one_bad_prompt_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="300 tokens"):
        llm.generate([[5], [5] * 300], GREEDY)

    assert not llm.engine.has_work


def test_an_interrupt_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt))

    with pytest.raises(KeyboardInterrupt):
        llm.generate("The quick", GREEDY)

    assert not llm.engine.has_work


def test_prefix_hits_are_reported(llm: LLM) -> None:
    prompt = list(range(40, 90))

    cached = [llm.generate(prompt, GREEDY)[0].num_cached_tokens for _ in range(2)]

    assert cached == [0, 48]
