from __future__ import annotations

import torch

from octavo_server.engine.transfers import Download, pack, unpack


def test_tensors_of_4_and_8_bytes_come_back_as_they_were_in_their_order() -> None:
    tensors = [
        torch.tensor([[1.5, -2.0, 3.0]]),
        torch.tensor([2**40, -1]),
        torch.zeros(0, 4),
        torch.tensor([7, 8, 9], dtype=torch.int32),
        torch.tensor([[2**33], [5]]),
    ]

    words = pack(tensors)
    found = unpack(words, [(tensor.shape, tensor.dtype) for tensor in tensors])

    assert words.dtype == torch.int32
    for expected, actual in zip(tensors, found, strict=True):
        assert (actual.dtype, actual.tolist()) == (expected.dtype, expected.tolist())


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)

    assert Download([tensor]).wait()[0].data_ptr() == tensor.data_ptr()
