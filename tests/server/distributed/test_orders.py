"""Orders and tensors arrive as they were sent."""

from __future__ import annotations

import socket

import pytest
import torch

from octavo_kernels.batches import AttentionBatch
from octavo_server.distributed.orders import (
    ALL_ROWS,
    Connect,
    Forward,
    Logits,
    Order,
    StepTensors,
    encode,
    pack,
    receive,
    unpack,
)

FORWARD = Forward(
    num_tokens=5,
    num_seqs=2,
    table_width=3,
    num_rows=2,
    max_query_len=4,
    min_query_len=1,
    max_seq_len=40,
    num_blocks=9,
    block_size=16,
)


def test_orders_arrive_in_order_and_a_closed_socket_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    orders: list[Order] = [Connect(), FORWARD, Logits(start=3, stop=7)]
    with theirs:
        with ours:
            for byte in b"".join(encode(order) for order in orders):
                ours.send(bytes([byte]))
        received = [receive(theirs) for _ in range(4)]

    assert received == [*orders, None]


@pytest.mark.parametrize("rows", [torch.tensor([3, 4]), None], ids=["some rows", "all rows"])
def test_a_steps_tensors_are_packed_into_one(rows: torch.Tensor | None) -> None:
    step = StepTensors(
        token_ids=torch.arange(2**40, 2**40 + 5),
        positions=torch.arange(5),
        attention=AttentionBatch(
            query_start_loc=torch.tensor([0, 4, 5], dtype=torch.int32),
            seq_lens=torch.tensor([4, 40], dtype=torch.int32),
            block_tables=torch.tensor([[1, 0, 0], [2, 3, 8]], dtype=torch.int32),
            slot_mapping=torch.tensor([16, 17, 18, -1, 135]),
            max_query_len=4,
            max_seq_len=40,
        ),
        rows=rows,
    )
    order = Forward(
        **{
            **{name: getattr(FORWARD, name) for name in FORWARD.__slots__},
            "num_rows": 2 if rows is not None else ALL_ROWS,
        }
    )

    words = pack(step)
    found = unpack(words, order)

    assert (words.dtype, words.shape) == (torch.int32, (order.num_words,))
    for name in ("token_ids", "positions"):
        assert torch.equal(getattr(step, name), getattr(found, name))
    for name in ("query_start_loc", "seq_lens", "block_tables", "slot_mapping"):
        assert torch.equal(getattr(step.attention, name), getattr(found.attention, name))
        assert getattr(step.attention, name).dtype == getattr(found.attention, name).dtype
    attention = found.attention
    assert (attention.min_query_len, attention.max_query_len, attention.max_seq_len) == (1, 4, 40)
    assert (found.rows is None) == (rows is None)
    assert rows is None or torch.equal(rows, found.rows)
