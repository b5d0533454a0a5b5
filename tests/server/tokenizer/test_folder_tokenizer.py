"""Tokenizers of Hugging Face folders, against transformers on the same folder."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo_server.errors import StartupError
from octavo_server.tokenizer.tokenizer import load_tokenizer

LINES = ("Hello, world!", "  spaced  out ", "naïve 日本語 👩‍👩‍👧", "<s>hi</s> <tool>x</tool>", "", "1234 567")


def a_backend(*, with_bos: bool = False) -> Tokenizer:
    """Byte-level BPE with <s> and </s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 3, trainer)
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def write_folder(folder: Path, backend: Tokenizer, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def added(content: str, **flags: bool) -> dict[str, Any]:
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
        **flags,
    }


@pytest.mark.parametrize(
    ("with_bos", "config"),
    [
        (False, {}),
        (True, {}),
        (True, {"add_bos_token": True, "add_eos_token": True}),
        (True, {"add_bos_token": False}),
        (False, {"added_tokens_decoder": {"300": added("<tool>"), "301": added("</tool>", special=True)}}),
        (False, {"pad_token": "<pad>", "unk_token": {"__type": "AddedToken", **added("<unk>", special=True)}}),
    ],
)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, with_bos: bool, config: dict[str, Any]) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_folder(tmp_path, a_backend(with_bos=with_bos), **config)

    ours, theirs = load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(str(folder))

    for line in LINES:
        for special in (True, False):
            ids = ours.encode(line, add_special_tokens=special)
            assert ids == list(theirs.encode(line, add_special_tokens=special)), line
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)
    assert ours.encode("a")[:1] == ([0] if with_bos else ours.encode("a", add_special_tokens=False)[:1])
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens == {key: str(value) for key, value in theirs.special_tokens_map.items()}
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert {n for n in range(ours.vocab_size) if ours.is_special(n)} == {
        token_id for token_id, token in theirs.added_tokens_decoder.items() if token.special
    }


def test_truncation_and_padding_of_the_training_script_are_off(tmp_path: Path) -> None:
    backend = a_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    tokenizer = load_tokenizer(write_folder(tmp_path, backend))

    assert tokenizer.decode(tokenizer.encode("one two three four five six")) == "one two three four five six"


def test_bytes_of_byte_level_tokens_join_to_the_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, a_backend()))

    for line in LINES:
        assert b"".join(tokenizer.token_bytes(item) for item in tokenizer.encode(line)) == line.encode()


def test_ids_without_a_token_are_nothing(tmp_path: Path) -> None:
    """Models pad their vocabulary, and clients send what they like."""
    tokenizer = load_tokenizer(write_folder(tmp_path, a_backend()))

    assert tokenizer.token_bytes(10**6) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.decode([10**6, *tokenizer.encode("Hello"), -1, 2**70]) == "Hello"


def test_bytes_of_sentencepiece_tokens_join_to_the_text(tmp_path: Path) -> None:
    """Llama 2's way: "▁" for a space and one token for each byte that has no other."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {piece: 300 + n for n, piece in enumerate(["▁", "a", "b", "▁a", "ab"])}
    backend = Tokenizer(
        models.BPE(vocabulary, [("▁", "a"), ("a", "b")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<unk>")])
    tokenizer = load_tokenizer(write_folder(tmp_path, backend))

    for line in ("ab ab", " a", "é\n日", "ba  b"):
        ids = tokenizer.encode(line)
        assert b"".join(tokenizer.token_bytes(item) for item in ids) == line.encode()
        assert tokenizer.decode(ids) == line


def test_a_disagreeing_id_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_backend(), added_tokens_decoder={"900": added("<tool>")})

    with pytest.raises(StartupError, match=r"'<tool>' has id 900 there, \d+ in tokenizer\.json") as caught:
        load_tokenizer(folder)

    assert caught.value.reason == "ModelInvalid"


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, a_backend())
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(StartupError, match=r"tokenizer\.json is damaged") as caught:
        load_tokenizer(folder)
    assert caught.value.reason == "ModelInvalid"

    (folder / "tokenizer.json").unlink()
    with pytest.raises(StartupError, match=r"neither tokenizer\.json nor") as caught:
        load_tokenizer(folder)
    assert caught.value.reason == "ModelNotFound"


def test_other_threads_go_on_while_a_long_text_is_encoded(tmp_path: Path) -> None:
    """Streams must not wait for somebody's long prompt: the thread that encodes it lets go of the interpreter."""
    tokenizer = load_tokenizer(write_folder(tmp_path / "m", a_backend()))
    text = LINES[0] * 30_000
    begins, ids = threading.Event(), []

    def encode() -> None:
        begins.set()
        ids.extend(tokenizer.encode(text))

    thread = threading.Thread(target=encode)
    thread.start()
    begins.wait()
    turns = 0
    while thread.is_alive():
        time.sleep(0)
        turns += 1

    assert turns > 100
    assert ids == tokenizer._backend.encode(text).ids
