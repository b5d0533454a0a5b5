"""The tokenizer that scripts get, against transformers on the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_server.tokenizer.script_tokenizer import ScriptTokenizer
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.server import write_tokenizer

TEXTS = ["The quick brown fox", "Größe 東京 🙂", "<|im_start|>user\nHi<|im_end|>", ""]
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a pod?"}]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScriptTokenizer, Any]:
    from transformers import PreTrainedTokenizerFast

    folder: Path = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return ScriptTokenizer(load_tokenizer(folder)), PreTrainedTokenizerFast.from_pretrained(str(folder))


def test_texts_are_encoded_and_decoded_alike(both: tuple[ScriptTokenizer, Any]) -> None:
    ours, theirs = both

    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(40) == theirs.decode(40)
    assert ours.batch_decode([[40, 41], [42]]) == theirs.batch_decode([[40, 41], [42]])
    assert ours("The quick") == {name: theirs("The quick")[name] for name in ("input_ids", "attention_mask")}
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]


def test_names_and_ids_are_alike(both: tuple[ScriptTokenizer, Any]) -> None:
    ours, theirs = both

    for name in ("bos_token", "bos_token_id", "eos_token", "eos_token_id", "pad_token", "pad_token_id", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.all_special_ids == sorted(theirs.all_special_ids)
    assert ours.chat_template == theirs.chat_template
    assert ours.convert_tokens_to_ids("<|im_end|>") == theirs.convert_tokens_to_ids("<|im_end|>")
    assert ours.convert_tokens_to_ids(["<|im_end|>", "a"]) == theirs.convert_tokens_to_ids(["<|im_end|>", "a"])


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}, {"return_dict": False}])
def test_chats_are_rendered_alike(both: tuple[ScriptTokenizer, Any], options: dict[str, Any]) -> None:
    ours, theirs = both
    several = [CONVERSATION, CONVERSATION[1:]]

    text = {name: value for name, value in options.items() if name != "return_dict"}
    assert ours.apply_chat_template(CONVERSATION, tokenize=False, **text) == theirs.apply_chat_template(
        CONVERSATION, tokenize=False, **text
    )
    assert ours.apply_chat_template(several, tokenize=False, **text) == theirs.apply_chat_template(
        several, tokenize=False, **text
    )
    found, expected = (item.apply_chat_template(CONVERSATION, **options) for item in both)
    assert (found["input_ids"] if options.get("return_dict", True) else found) == (
        expected["input_ids"] if options.get("return_dict", True) else expected
    )


def test_another_template_and_its_variables(both: tuple[ScriptTokenizer, Any]) -> None:
    template = "{{ mood }}:{{ messages[0]['content'] }}"

    rendered = [
        item.apply_chat_template(CONVERSATION, chat_template=template, tokenize=False, mood="calm") for item in both
    ]

    assert rendered == ["calm:Be brief."] * 2
