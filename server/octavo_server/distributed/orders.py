"""What rank 0 tells the other ranks to do, so that all make the same calls.

An order is a few numbers of a fixed size over a local socket, where a rank may wait for hours and sees at once that rank 0
is gone. The tensors of a step follow in one broadcast:

    int64: token ids | positions | slots | rows      int32: query starts | sequence lengths | block tables
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from octavo_kernels.batches import AttentionBatch

if TYPE_CHECKING:
    import socket

_ORDER = struct.Struct("<10q")
ALL_ROWS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """All have loaded: meet the other ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Compute a step, whose tensors are about to come."""

    num_tokens: int
    num_seqs: int
    table_width: int
    num_rows: int
    """Of which the hidden state is wanted; ALL_ROWS: of every token."""
    max_query_len: int
    max_seq_len: int
    min_query_len: int
    num_blocks: int
    block_size: int
    """Both of rank 0's KV cache: the others allocate one like it before their first step."""

    @property
    def num_words(self) -> int:
        """int32 numbers of the tensors."""
        num_long = 3 * self.num_tokens + max(0, self.num_rows)
        return 2 * num_long + 2 * self.num_seqs + 1 + self.num_seqs * self.table_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """Compute logits of rows [start, stop) of the last step's hidden states."""

    start: int
    stop: int


Order = Connect | Forward | Logits
_KINDS: tuple[type[Order], ...] = (Connect, Forward, Logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """The arguments of `Decoder.forward`, but for the cache."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionBatch
    rows: torch.Tensor | None


def encode(order: Order) -> bytes:
    """Always of one size."""
    numbers = [getattr(order, field.name) for field in fields(order)]
    return _ORDER.pack(_KINDS.index(type(order)), *numbers, *[0] * (9 - len(numbers)))


def receive(channel: socket.socket) -> Order | None:
    """Waits for the next order; None where rank 0 has closed its end."""
    data = b""
    while len(data) < _ORDER.size:
        more = channel.recv(_ORDER.size - len(data))
        if not more:
            return None
        data += more
    number, *values = _ORDER.unpack(data)
    kind = _KINDS[number]
    order: Order = kind(**{field.name: value for field, value in zip(fields(kind), values, strict=False)})
    return order


def pack(tensors: StepTensors) -> torch.Tensor:
    """-> new [num_words] int32, on the tensors' device; nothing waits for it."""
    attention = tensors.attention
    long = [tensors.token_ids, tensors.positions, attention.slot_mapping]
    short = [attention.query_start_loc, attention.seq_lens, attention.block_tables]
    if tensors.rows is not None:
        long.append(tensors.rows)
    return torch.cat([*(part.view(torch.int32) for part in long), *(part.reshape(-1) for part in short)])


def unpack(words: torch.Tensor, order: Forward) -> StepTensors:
    """words: [num_words] int32, as `pack` made them -> views of it."""
    num_tokens, num_seqs, num_rows = order.num_tokens, order.num_seqs, max(0, order.num_rows)
    num_long = 2 * (3 * num_tokens + num_rows)
    token_ids, positions, slots, rows = torch.split(
        words[:num_long].view(torch.int64), [num_tokens, num_tokens, num_tokens, num_rows]
    )
    starts, lengths, tables = torch.split(words[num_long:], [num_seqs + 1, num_seqs, num_seqs * order.table_width])
    return StepTensors(
        token_ids=token_ids,
        positions=positions,
        attention=AttentionBatch(
            query_start_loc=starts,
            seq_lens=lengths,
            block_tables=tables.view(num_seqs, order.table_width),
            slot_mapping=slots,
            max_query_len=order.max_query_len,
            max_seq_len=order.max_seq_len,
            min_query_len=order.min_query_len,
        ),
        rows=None if order.num_rows == ALL_ROWS else rows,
    )
