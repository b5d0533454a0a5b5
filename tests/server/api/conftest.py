"""The tiny model, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_testing.server import a_tiny_model, write_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_tiny_model(tmp_path_factory.getbasetemp() / "tiny-model")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "tiny-tokenizer"
    return folder if folder.exists() else write_tokenizer(folder)
