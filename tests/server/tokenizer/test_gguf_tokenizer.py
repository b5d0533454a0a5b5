"""The tokenizer that we build from a GGUF file, against what transformers makes of the same file and vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from octavo_server.errors import StartupError
from octavo_server.tokenizer.token_bytes import byte_alphabet
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer

STRINGS = (
    "",
    " ",
    "Hello, world!",
    "  two leading, two trailing  ",
    "tabs\tand\nnewlines\n\n\nand \r\n carriage returns",
    "don't I'LL we've they'd 'S",
    "numbers 1 12 123 1234567890 ½ ² Ⅷ ٣",
    "naïve café Ångström — “quotes” … €",
    "日本語のテキスト、한국어 그리고 العربية",
    "👩‍👩‍👧 emoji 🇩🇪 and zero\u200bwidth",
    "def f(x):\n    return x ** 2  # comment\n",
    "{'a': [1, 2], \"b\": null}",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "broken <|im_start and |im_end|>",
    "a" * 300,
    "\x00\x01\x7f\x80\ufffd",
)
# Whitespace, digits and specials are where tokenizers differ; the rest is any text.
text = st.lists(
    st.one_of(
        st.text(max_size=8), st.sampled_from([" ", "  ", "\n", "\t", "1", "42", "'s", "<|im_end|>", "é", "日本"])
    ),
    max_size=12,
).map("".join)


def a_byte_level_backend(pattern: str, size: int = 600) -> Backend:
    """A tokenizer trained here on a few lines, cut by `pattern`."""
    from tokenizers import Regex, decoders

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([line for line in STRINGS if "<|" not in line] * 3, trainer)
    return backend


def write_tokenizer_gguf(path: Path, backend: Backend, pre: str | None, **keys: Any) -> None:
    """A GGUF file with `backend`'s vocabulary and no tensors."""
    import json

    state = json.loads(backend.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(keys.pop("model", "gpt2"))
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    # else transformers adds GPT-2's own, past the vocabulary
    writer.add_unk_token_id(3)
    for key, value in keys.items():
        getattr(writer, key)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Encode = Callable[[str], list[int]]


def encoders(path: Path, backend: Backend) -> tuple[Encode, Encode, Encode]:
    """Ours, transformers' of the same file, and the tokenizer that the file was made from."""
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return (
        lambda line: ours.encode(line, add_special_tokens=False),
        lambda line: list(theirs.encode(line, add_special_tokens=False)),
        lambda line: list(backend.encode(line, add_special_tokens=False).ids),
    )


@pytest.fixture(scope="module", params=[("llama-bpe", LLAMA3), ("qwen2", QWEN2), ("gpt-2", GPT2)], ids=lambda p: p[0])
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encode, Encode, Encode]:
    pre, pattern = request.param
    backend = a_byte_level_backend(pattern)
    path = tmp_path_factory.mktemp(pre) / "tokenizer.gguf"
    write_tokenizer_gguf(path, backend, pre)
    return encoders(path, backend)


def test_each_rule_of_cutting_is_transformers_and_the_originals(three: tuple[Encode, Encode, Encode]) -> None:
    ours, theirs, original = three

    for line in STRINGS:
        assert ours(line) == original(line), line
        assert ours(line) == theirs(line), line


@settings(max_examples=150, deadline=None)
@given(line=text)
def test_any_text_is_cut_as_by_the_original(three: tuple[Encode, Encode, Encode], line: str) -> None:
    ours, theirs, original = three

    assert ours(line) == original(line)
    assert ours(line) == theirs(line)


def test_a_missing_rule_is_llama_cpps_default(tmp_path: Path) -> None:
    """Punctuation first, then GPT-2's rule, then digits in threes from the left."""
    write_tokenizer_gguf(tmp_path / "t.gguf", a_byte_level_backend(r"[\s\S]", 260), None)
    tokenizer = load_tokenizer(tmp_path / "t.gguf")

    pieces = tokenizer._backend.pre_tokenizer.pre_tokenize_str("ab 12345!? it's")

    assert [piece for piece, _ in pieces] == ["ab", "Ġ", "123", "45", "!?", "Ġit", "'", "s"]


def test_an_unknown_rule_is_refused_by_name(tmp_path: Path) -> None:
    write_tokenizer_gguf(tmp_path / "t.gguf", a_byte_level_backend(GPT2), "strange-bpe")

    with pytest.raises(StartupError, match=r"'strange-bpe'; supported are command-r, deepseek") as caught:
        load_tokenizer(tmp_path / "t.gguf")

    assert caught.value.reason == "UnsupportedArchitecture"


@pytest.mark.parametrize(
    ("pre", "keys", "expected"),
    [
        ("gpt-2", {}, ["x"]),
        ("gpt-2", {"add_add_bos_token": True}, ["<s>", "x"]),
        ("gpt-2", {"add_add_bos_token": True, "add_add_eos_token": True}, ["<s>", "x", "</s>"]),
        ("llama-bpe", {}, ["<s>", "x"]),
        ("llama-bpe", {"add_add_bos_token": False}, ["x"]),
    ],
)
def test_ends_are_added_as_the_file_says(tmp_path: Path, pre: str, keys: dict[str, Any], expected: list[str]) -> None:
    write_tokenizer_gguf(tmp_path / "t.gguf", a_byte_level_backend(GPT2), pre, **keys)
    tokenizer = load_tokenizer(tmp_path / "t.gguf")

    assert [tokenizer.token_text(item) for item in tokenizer.encode("x")] == expected
    assert [tokenizer.token_text(item) for item in tokenizer.encode("x", add_special_tokens=False)] == ["x"]


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with pytest.raises(StartupError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "t.gguf")


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def transformers_real(smollm2_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)


@pytest.fixture(scope="module")
def digits_apart(transformers_real: Any) -> Encode:
    """transformers' tokenizer with the model's own rule for digits.

    transformers does not know `smollm` and leaves digits to GPT-2's rule; the model's tokenizer.json (and llama.cpp)
    cut every digit off first. The two differ only where spaces stand before a digit: "a  1".
    """
    backend = Backend.from_str(transformers_real.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return lambda line: list(backend.encode(line, add_special_tokens=False).ids)


@pytest.mark.model
def test_the_real_vocabulary_is_cut_as_its_own_tokenizer_does(
    real: Tokenizer, transformers_real: Any, digits_apart: Encode
) -> None:
    for line in STRINGS:
        assert real.encode(line) == digits_apart(line), line
        if not any(character.isnumeric() for character in line):
            assert real.encode(line) == transformers_real.encode(line), line


@pytest.mark.model
@settings(max_examples=400, deadline=None)
@given(line=text)
def test_any_text_is_cut_as_the_real_tokenizer_does(
    real: Tokenizer, transformers_real: Any, digits_apart: Encode, line: str
) -> None:
    ids = real.encode(line)

    assert ids == digits_apart(line)
    if not any(character.isnumeric() for character in line):
        assert ids == list(transformers_real.encode(line))
    # The vocabulary has no token for some bytes that no valid or hardly any text has.
    missing = {byte for character, byte in byte_alphabet().items() if real.token_id(character) is None}
    if not missing & set(line.encode()):
        assert real.decode(ids, skip_special_tokens=False) == line
        assert b"".join(real.token_bytes(item) for item in ids) == line.encode()


@pytest.mark.model
def test_what_the_file_says_beside_the_vocabulary_is_read(real: Tokenizer, transformers_real: Any) -> None:
    chat = [{"role": "user", "content": "What is Kubernetes?"}]

    assert real.vocab_size == len(transformers_real) == 49152
    assert (real.bos_token_id, real.eos_token_id) == (1, 2)
    assert real.special_tokens == {key: str(value) for key, value in transformers_real.special_tokens_map.items()}
    assert real.special_token_ids == {
        token_id for token_id, token in transformers_real.added_tokens_decoder.items() if token.special
    }
    assert real.render_chat(chat) == transformers_real.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.model
def test_the_real_tokenizer_needs_neither_transformers_nor_seconds(smollm2_path: Path) -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from octavo_server.tokenizer.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(smollm2_path)!r}).encode('hello')\n"
        "print(time.process_time() - start, 'transformers' in sys.modules, 'torch' in sys.modules)"
    )

    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=_env())

    seconds, has_transformers, has_torch = answer.stdout.split()
    assert float(seconds) < 3
    assert (has_transformers, has_torch) == ("False", "False")


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
