"""How many sequences the recorded decode steps are for. Pure: a plan counts their memory without torch."""

from __future__ import annotations

DOUBLED_TO, STEP = 256, 16


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4 to 256, then 16 apart, rising; the last is `max_num_seqs`."""
    doubled = [2**power for power in range(DOUBLED_TO.bit_length())]
    sizes = [*doubled, *range(DOUBLED_TO + STEP, max_num_seqs + 1, STEP)]
    return (*(size for size in sizes if size < max_num_seqs), max_num_seqs)
