"""Kernels run on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    # Triton reads this when it is imported
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported before tests/kernels could set TRITON_INTERPRET=1; export it")
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> str:
    """Where Triton kernels run in this session."""
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture(autouse=True)
def _poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.empty returns is NaN (or -7): an element that a kernel forgets to write shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", poisoned)
