"""How much KV cache is asked for, over how much there is: the number that autoscaling follows.

    pressure = max((blocks held + blocks the waiting still need) / all blocks, (running + waiting) / max_num_seqs)

Not capped at 1, so that one look says how many replicas are needed. A waiting sequence needs the blocks of its prompt
and of the output to be expected of it, less its prefix hits. The sum is kept up to date as sequences come and go; what
drifts meanwhile (hits, the expectation) is counted anew for a few at each reading, so that a long queue costs no more
than a short one.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.engine.kv_cache_manager import KVCacheManager
    from octavo_server.engine.outputs import SequenceId
    from octavo_server.engine.sequence import Sequence

OUTPUT_TOKENS_UNTIL_KNOWN = 64
"""Expected of an output until enough have finished."""
OUTPUTS_TO_KNOW = 10
RECOUNTS_PER_READING = 32
"""Waiting sequences counted anew at each reading, in turn: a shorter queue is always exact."""


class OutputLengths:
    """The running mean of finished outputs. Clients set `max_tokens` to thousands and never reach it."""

    def __init__(self) -> None:
        self._count = 0
        self._tokens = 0

    def add(self, num_tokens: int) -> None:
        """Counts an output that ended by itself or by its length."""
        self._count += 1
        self._tokens += num_tokens

    @property
    def expected(self) -> int:
        """Tokens to expect of the next output, rounded up."""
        return OUTPUT_TOKENS_UNTIL_KNOWN if self._count < OUTPUTS_TO_KNOW else ceil(self._tokens / self._count)


class WaitingDemand:
    """Blocks that all waiting sequences together still need."""

    def __init__(self, kv: KVCacheManager, lengths: OutputLengths) -> None:
        self._kv = kv
        self._lengths = lengths
        # The longest not counted first
        self._waiting: OrderedDict[SequenceId, tuple[Sequence, int]] = OrderedDict()
        self._blocks = 0

    def add(self, sequence: Sequence) -> None:
        """The sequence waits from now on."""
        blocks = self._blocks_of(sequence)
        self._waiting[sequence.sequence_id] = (sequence, blocks)
        self._blocks += blocks

    def remove(self, sequence: Sequence) -> None:
        """The sequence was admitted or aborted."""
        self._blocks -= self._waiting.pop(sequence.sequence_id)[1]

    def blocks(self) -> int:
        """The demand now."""
        for _ in range(min(RECOUNTS_PER_READING, len(self._waiting))):
            sequence, _ = next(iter(self._waiting.values()))
            self.remove(sequence)
            self.add(sequence)
        return self._blocks

    def _blocks_of(self, sequence: Sequence) -> int:
        # A preempted sequence may already have more output than was expected of it
        output = max(min(self._lengths.expected, sequence.max_output_tokens), sequence.num_output_tokens)
        hits = len(self._kv.match_prefix(sequence))
        return self._kv.blocks_for(sequence.num_prompt_tokens + output) - hits
