"""The process that tries grammars comes and goes without its callers' noticing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_server.structured_output.compiler import GrammarCompiler
from octavo_server.structured_output.params import StructuredOutputsParams
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.server import VOCABULARY, write_tokenizer


@pytest.fixture
def compiler(tmp_path: Path) -> GrammarCompiler:
    return GrammarCompiler(load_tokenizer(write_tokenizer(tmp_path)), vocab_size=VOCABULARY, eos_token_ids=(1,))


def pid_of(compiler: GrammarCompiler) -> int:
    child = compiler._trial._child
    assert child is not None
    return child.pid


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_serves_one_grammar_after_the_other(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputsParams(regex="a"))
    first = pid_of(compiler)

    compiler.compile(StructuredOutputsParams(regex="b"))

    assert pid_of(compiler) == first


def test_one_that_was_killed_is_replaced(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputsParams(regex="a"))
    first = pid_of(compiler)
    os.kill(first, signal.SIGKILL)

    assert compiler.compile(StructuredOutputsParams(regex="b"))

    assert pid_of(compiler) != first
    assert not is_there(first)


def test_it_leaves_signals_to_its_parent(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputsParams(regex="a"))
    first = pid_of(compiler)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, number)

    assert compiler.compile(StructuredOutputsParams(regex="b"))

    assert pid_of(compiler) == first


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(1,))
    compiler.compile(StructuredOutputsParams(regex="a"))
    child = pid_of(compiler)
    assert is_there(child)

    del compiler
    gc.collect()

    assert not is_there(child)


def test_what_is_known_to_compile_is_not_tried_again(compiler: GrammarCompiler) -> None:
    text = compiler.compile(StructuredOutputsParams(regex="a"))
    compiler._trial.close()

    assert compiler.compile(StructuredOutputsParams(regex="a")) == text

    assert compiler._trial._child is None


def test_it_imports_neither_torch_nor_a_tokenizer() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import octavo_server.structured_output.trial, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert not {"torch", "tokenizers", "numpy", "aiohttp"} & {*listed.stdout.split()}
