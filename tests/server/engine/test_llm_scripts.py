"""Scripts written for vLLM's offline API run with another import: its argument forms, defaults and result shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_server import LLM, CompletionOutput, RequestOutput, SamplingParams, TextPrompt, TokensPrompt
from octavo_server import llm as llm_module
from octavo_server.errors import ConfigError, InvalidRequestError
from octavo_server.llm_inputs import WITHOUT_MEANING, read_settings

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    import torch

    torch.set_num_threads(1)
    # As scripts write it
    return LLM(
        model=str(tiny_model),
        tensor_parallel_size=1,
        gpu_memory_utilization=0.9,
        max_model_len=256,
        enforce_eager=True,
        trust_remote_code=True,
        dtype="float",
        quantization=None,
        swap_space=4,
        scheduling_policy="priority",
        num_gpu_blocks_override=100,
    )


def test_outputs_have_vllms_fields(llm: LLM) -> None:
    (result,) = llm.generate("The quick", SamplingParams(n=2, temperature=0, max_tokens=3, ignore_eos=True))

    assert isinstance(result, RequestOutput)
    named = "request_id prompt prompt_token_ids prompt_logprobs outputs finished metrics num_cached_tokens"
    assert [hasattr(result, name) for name in named.split()] == [True] * 8
    named = "index text token_ids cumulative_logprob logprobs finish_reason stop_reason"
    assert [hasattr(result.outputs[0], name) for name in named.split()] == [True] * 7
    assert all(isinstance(output, CompletionOutput) and output.finished() for output in result.outputs)
    assert [output.index for output in result.outputs] == [0, 1]


def test_prompt_log_probabilities_are_a_list_of_dicts_that_begins_with_none(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("The quick brown")

    (result,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, prompt_logprobs=3))

    entries = result.prompt_logprobs
    assert entries is not None
    assert (entries[0], len(entries)) == (None, len(ids))
    for token_id, entry in zip(ids[1:], entries[1:], strict=True):
        assert entry is not None
        assert 3 <= len(entry) <= 4
        assert sorted(item.rank for item in entry.values())[:3] == [1, 2, 3]
        best = max(entry.values(), key=lambda item: item.logprob)
        assert (best.rank, best.logprob <= 0) == (1, True)
        assert entry[token_id].decoded_token == llm.tokenizer.token_text(token_id)


def test_vllms_argument_forms_are_understood(llm: LLM) -> None:
    """Lists where we hold tuples, None where we hold nothing, -1 for a top_k that is off."""
    forms: dict[str, Any] = {
        "stop": ["Z"],
        "stop_token_ids": [99],
        "top_k": -1,
        "logit_bias": {"50": -100},
        "seed": 7,
        "max_tokens": 6,
    }
    plain: dict[str, Any] = {"stop": (), "stop_token_ids": None, "top_k": 0, "logit_bias": None}

    given = llm.generate("The quick", SamplingParams(**forms))[0].outputs[0]
    optional = SamplingParams.from_optional(**forms, presence_penalty=None, n=None)
    again = llm.generate("The quick", optional.clone())[0].outputs[0]
    plainly = llm.generate("The quick", SamplingParams(**{**forms, **plain}))[0].outputs[0]

    assert given.token_ids == again.token_ids
    assert 50 not in given.token_ids
    assert len(plainly.token_ids) <= 6


def test_from_optional_keeps_an_unlimited_length() -> None:
    assert SamplingParams.from_optional(max_tokens=None, top_p=None) == SamplingParams(max_tokens=None)


def test_prompt_dictionaries_isolate_by_salt_and_refuse_what_they_do_not_know(llm: LLM) -> None:
    ids = list(range(20, 60))

    cached = [
        llm.generate(TokensPrompt(prompt_token_ids=ids, cache_salt=salt), GREEDY)[0].num_cached_tokens
        for salt in ("one", "one", "two")
    ]
    shown = llm.generate([TextPrompt(prompt="A pod"), TokensPrompt(prompt_token_ids=ids, prompt="Ids")], GREEDY)

    assert cached == [0, 32, 0]
    assert [result.prompt for result in shown] == ["A pod", "Ids"]
    with pytest.raises(InvalidRequestError, match="multi_modal_data"):
        llm.generate({"prompt": "A", "multi_modal_data": {"image": "x"}}, GREEDY)
    with pytest.raises(InvalidRequestError, match="prompt_token_ids"):
        llm.generate({}, GREEDY)


def test_ids_may_be_an_array_and_anything_else_is_refused(llm: LLM) -> None:
    import numpy as np

    ids = [20, 21, 22]
    expected = llm.generate(ids, GREEDY)[0].outputs[0].token_ids

    for form in (np.array(ids), [np.array(ids)], [np.int64(item) for item in ids], tuple(ids)):
        assert llm.generate(form, GREEDY)[0].outputs[0].token_ids == expected
    for form in ([None], [1.5], [[1.5]], [["a"]]):
        with pytest.raises(InvalidRequestError, match="a text, a list of token ids"):
            llm.generate(form, GREEDY)
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        llm.generate([[]], GREEDY)
    assert llm.generate([], GREEDY) == []


def test_what_is_raised_between_steps_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook keeps the exception, and with it every frame."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm_module, "take_delta", interrupt)

    with pytest.raises(KeyboardInterrupt) as kept:
        llm.generate(["a", "b"], GREEDY)

    assert kept.tb is not None
    assert not llm.engine.has_work


def test_a_bar_on_stderr_unless_it_is_turned_off(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    totals = []

    def bar(**options: Any) -> Any:
        totals.append(options["total"])
        return tqdm(**options, disable=True)

    llm.generate(["a", "b"], GREEDY)
    shown = capsys.readouterr()
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    hidden = capsys.readouterr()
    llm.generate(["a", "b"], GREEDY, use_tqdm=bar)

    assert "2/2" in shown.err
    assert (shown.out, hidden.err) == ("", "")
    assert totals == [2]


def test_chat_takes_parts_tools_and_another_template(llm: LLM) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]}]
    template = "{{ messages[0].content }}|{{ tools | length }}|{{ add_generation_prompt }}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}

    (plain,) = llm.chat(parts, GREEDY)
    (other,) = llm.chat(parts, GREEDY, chat_template=template, tools=[tool], use_tqdm=False)

    assert "Hi\nthere" in str(plain.prompt)
    assert other.prompt == "Hi\nthere|1|True"
    with pytest.raises(InvalidRequestError, match="other than text"):
        llm.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], GREEDY)


def test_an_unknown_way_of_rendering_is_a_type_error(llm: LLM) -> None:
    with pytest.raises(TypeError, match="add_generation_promt"):
        llm.chat([{"role": "user", "content": "Hi"}], GREEDY, add_generation_promt=True)  # type: ignore[call-arg]


def test_priorities_reach_the_scheduler(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    added = []
    add = llm.engine.add_request
    monkeypatch.setattr(llm.engine, "add_request", lambda request: (added.append(request.priority), add(request)))

    llm.generate(["a", "b"], GREEDY, priority=[3, -1])

    assert added == [3, -1]
    with pytest.raises(ConfigError, match="2 prompts came with 1"):
        llm.generate(["a", "b"], GREEDY, priority=[1])


def test_adapters_are_refused_by_name(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="lora_request"):
        llm.generate("a", GREEDY, lora_request=object())  # type: ignore[arg-type]  # what a script would give


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [("enable_lora", False, True), ("pipeline_parallel_size", 1, 2), ("task", "generate", "embed")],
)
def test_settings_without_meaning_are_taken_only_where_they_change_nothing(
    name: str, neutral: object, other: object
) -> None:
    assert read_settings({name: neutral}) == {}
    with pytest.raises(ConfigError, match=name):
        read_settings({name: other})


def test_a_dtype_may_be_torchs_own_and_none_is_the_default() -> None:
    import torch

    assert read_settings({"dtype": torch.float16, "quantization": None}) == {"dtype": "float16"}
    assert read_settings({"dtype": "half"}) == {"dtype": "float16"}
    assert read_settings(dict.fromkeys(WITHOUT_MEANING)) == {}
