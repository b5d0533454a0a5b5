"""A GPU that computes nothing: tensors have shapes, dtypes and its device's name, and waiting for it is an error.

Torch's fake tensors refuse whatever needs a value on the host (item, nonzero, a mask as an index) and whatever mixes
devices; `NoWaiting` refuses the copies that wait. Triton's kernels are not launched; all that launches them runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from octavo_kernels.triton_backend import TritonBackend
from octavo_server.engine import transfers
from octavo_server.models.config import parse_model_config
from octavo_server.models.decoder import Decoder
from octavo_server.models.decoder_weights import load_decoder_weights
from octavo_server.models.dummy_weights import DummyWeights

GPU = torch.device("cuda", 0)


class WaitedError(AssertionError):
    """The host would have waited for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses copies from the device, and copies to it that the host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            if source.device != found.device:
                _check_copy(source.device, found.device, func, args, kwargs or {})
        return found


def _check_copy(source: torch.device, target: torch.device, func: Any, args: Any, kwargs: Any) -> None:
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if source.type != "cpu" or not given.get("non_blocking"):
        raise WaitedError(f"a copy from {source} to {target} for which the host waits")


class FakeHostCopy:
    """A copy to the host that has been asked for and never comes."""

    def __init__(self, words: torch.Tensor) -> None:
        assert words.device.type == GPU.type
        assert words.dtype == torch.int32

    def wait(self) -> torch.Tensor:
        raise WaitedError("the step's result")


class ReadHostCopy(FakeHostCopy):
    """One that has come, with zeros in it."""

    def __init__(self, words: torch.Tensor) -> None:
        super().__init__(words)
        self._num_words = words.shape[0]

    def wait(self) -> torch.Tensor:
        return torch.zeros(self._num_words, dtype=torch.int32)


class FakeJit:
    """Launches nothing, and notes what Triton would have compiled for."""

    def __init__(self) -> None:
        self.keys: set[tuple[str, tuple[tuple[str, object], ...]]] = set()

    def run(self, kernel: Any, *args: Any, **given: Any) -> None:
        assert not args, "kernels are launched with named arguments"
        alike = _not_looked_at(kernel)
        named = sorted(
            (name, "any number" if name in alike else _specialised(name, value))
            for name, value in given.items()
            if name not in _LAUNCH
        )
        self.keys.add((kernel.fn.__name__, tuple(named)))


_LAUNCH = ("grid", "warmup")


def _not_looked_at(kernel: Any) -> Collection[str]:
    """Numbers of which a kernel says that they choose none."""
    options = kernel.kwargs if isinstance(kernel, InterpretedFunction) else vars(kernel)
    return options.get("do_not_specialize") or ()


def _specialised(name: str, value: Any) -> str:
    """What of an argument is part of a kernel's key: of a number whether it is 1 or a multiple of 16, of a constant all."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}, {'' if value.storage_offset() * value.itemsize % 16 == 0 else 'not '}aligned"
    if isinstance(value, float) and not name.isupper():
        return "float"
    if isinstance(value, bool) or not isinstance(value, int) or name.isupper() or name.startswith("num_warps"):
        return repr(value)
    return "1" if value == 1 else "a multiple of 16" if value % 16 == 0 else "a number"


def _to_device(array: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(array.shape, dtype=array.dtype, device=device)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJit]:
    """While it lasts, every tensor is a fake one."""
    monkeypatch.setattr(transfers, "to_device", _to_device)
    monkeypatch.setattr(transfers, "HostCopy", FakeHostCopy)
    if not torch.cuda.is_available():
        # Some operations want a driver before they are asked for a fake tensor.
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    jit = FakeJit()
    for kind in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kind, "run", lambda kernel, *args, **given: jit.run(kernel, *args, **given))
    with FakeTensorMode(), torch.inference_mode():
        yield jit


def a_fake_decoder(raw: dict[str, Any], quantization: str = "none") -> Decoder:
    """Of random weights; raw: the content of a config.json."""
    config = parse_model_config(raw, {}, source="test")
    backend = TritonBackend(torch.device("cpu"))
    # Weights are read by threads, and fake tensors are made by the thread that asked for them alone.
    with unset_fake_temporarily():
        weights = load_decoder_weights(
            config, DummyWeights(config), backend, torch.bfloat16, lambda *_: None, quantization
        )
    backend._device = GPU
    return Decoder(config, _on_gpu(weights), backend)


def _on_gpu(value: Any) -> Any:
    """The same tree of dataclasses and tuples with each tensor on the GPU that is none."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)
    if isinstance(value, tuple):
        return tuple(_on_gpu(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _on_gpu(getattr(value, item.name)) for item in fields(value) if item.init})
    return value
