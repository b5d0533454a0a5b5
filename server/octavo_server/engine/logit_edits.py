"""What requests ask to change about their logits before a token is drawn; every row on its own.

Order, as in vLLM: what may be chosen at all (grammar, allowed_token_ids), logit_bias, min_tokens, bad_words, penalties.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_server.engine.outputs import GRAMMAR_ENDED, NOTHING_LEFT
from octavo_server.engine.transfers import upload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.sequence import GrammarState, Sequence


MAX_REMEMBERED = 64


class LogitEdits:
    """Knows the model's tokens that end an output; remembers for a while what requests allow."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos_token_ids = eos_token_ids
        # By identity: to compare a hundred thousand ids at each step would take longer than to apply them.
        self._forbidden: OrderedDict[int, tuple[tuple[int, ...], NDArray[np.bool_]]] = OrderedDict()

    def apply(self, logits: torch.Tensor, items: Items[ScheduledSequence], rows: Collection[int]) -> dict[int, str]:
        """Edits `rows` in place, all those that `touches`; says in which of them nothing can be chosen, and why.

        Of the others it is the draw that finds it out, on the device. logits: [len(items), vocab] float32.
        """
        failed: dict[int, str] = {}
        penalized: list[int] = []
        for row in rows:
            sequence = items[row].sequence
            problem = _restrict_to_grammar(logits[row], sequence.grammar) if sequence.grammar is not None else None
            if problem is not None:
                failed[row] = problem
                continue
            self._edit(logits[row], sequence)
            if sequence.token_counts is not None:
                penalized.append(row)
        if penalized:
            _penalize(logits, penalized, [items[row].sequence for row in penalized])
        return failed

    def touches(self, sequence: Sequence) -> bool:
        """Whether `apply` may change the sequence's next logits."""
        min_tokens = sequence.request.params.min_tokens
        return sequence.edits_logits or (min_tokens > 0 and sequence.num_sampled_tokens < min_tokens)

    def apply_to_prompt(self, logits: torch.Tensor, params: SamplingParams) -> None:
        """What holds for a prompt's tokens too: allowed_token_ids and logit_bias; the rest is about the output.

        logits: [vocab] float32, changed in place.
        """
        if params.allowed_token_ids is not None:
            _forbid(logits, self._not_among(params.allowed_token_ids, logits.shape[0]))
        for token_id, bias in params.logit_bias.items():
            logits[token_id] += bias

    def _edit(self, logits: torch.Tensor, sequence: Sequence) -> None:
        """All but penalties. logits: [vocab] float32, changed in place."""
        params, request = sequence.request.params, sequence.request
        if params.allowed_token_ids is not None:
            _forbid(logits, self._not_among(params.allowed_token_ids, logits.shape[0]))
        if params.logit_bias:
            ids = upload(list(params.logit_bias), np.int64, logits.device)
            bias = upload(list(params.logit_bias.values()), np.float32, logits.device)
            logits.index_add_(0, ids, bias)
        if sequence.num_sampled_tokens < params.min_tokens:
            self._forbid_the_end(logits, params, sequence.grammar)
        if request.bad_token_ids:
            banned = _banned(request.bad_token_ids, sequence.output_token_ids)
            logits.index_fill_(0, upload(banned, np.int64, logits.device), -torch.inf)

    def _not_among(self, allowed: tuple[int, ...], vocab_size: int) -> NDArray[np.bool_]:
        """-> [vocab] bool."""
        found = self._forbidden.pop(id(allowed), None)
        # The entry keeps its ids, so that their identity cannot pass to others.
        if found is None:
            forbidden = np.ones(vocab_size, np.bool_)
            forbidden[list(allowed)] = False
            found = allowed, forbidden
        self._forbidden[id(allowed)] = found
        if len(self._forbidden) > MAX_REMEMBERED:
            self._forbidden.popitem(last=False)
        return found[1]

    def _forbid_the_end(self, logits: torch.Tensor, params: SamplingParams, grammar: GrammarState | None) -> None:
        known = [token for token in (*self._eos_token_ids, *params.stop_token_ids) if token < logits.shape[0]]
        ends = upload(known, np.int64, logits.device)
        before = logits[ends]
        logits.index_fill_(0, ends, -torch.inf)
        # A grammar that is fulfilled and cannot go on ends the output, however short.
        if grammar is not None:
            logits[ends] = torch.where(logits.amax() == -torch.inf, before, -torch.inf)


def _restrict_to_grammar(logits: torch.Tensor, grammar: GrammarState) -> str | None:
    """Leaves the row, [vocab] float32, the tokens that its grammar allows; says why where there are none."""
    mask = grammar.allowed_tokens()
    if mask is None:
        return f"{GRAMMAR_ENDED}{grammar.error}"
    if not any(mask):
        return NOTHING_LEFT
    _forbid(logits, _forbidden(mask, logits.shape[0]))
    return None


def _forbid(logits: torch.Tensor, forbidden: NDArray[np.bool_]) -> None:
    """logits: [vocab] float32, changed in place."""
    if logits.device.type == "cpu":
        # Waking torch's threads for a row takes several times as long as the row.
        np.copyto(logits.numpy(), -np.inf, where=forbidden)
    else:
        logits.masked_fill_(upload(forbidden, np.bool_, logits.device), -torch.inf)


def _forbidden(mask: bytes, vocab_size: int) -> NDArray[np.bool_]:
    """-> [vocab] bool."""
    packed = ~np.frombuffer(mask, np.uint8)
    return np.unpackbits(packed, count=vocab_size, bitorder="little").view(np.bool_)


def _banned(bad: tuple[tuple[int, ...], ...], output: list[int]) -> list[int]:
    """Last tokens of those words whose other tokens the output ends with."""
    last = output[-1] if output else None
    return [
        word[-1] for word in bad if len(word) == 1 or (word[-2] == last and output[1 - len(word) :] == list(word[:-1]))
    ]


def _penalize(logits: torch.Tensor, rows: list[int], sequences: Items[Sequence]) -> None:
    """All rows in the same few operations, however many they are.

    logits: [num_rows, vocab] float32, changed in place where tokens stand in the row's prompt or output.
    """
    counts = [sequence.token_counts for sequence in sequences if sequence.token_counts is not None]
    lengths = [len(each.token_ids) for each in counts]
    token_ids = np.concatenate([np.array(each.token_ids, np.int64) for each in counts])
    num_times = np.concatenate([np.array(each.counts, np.int64) for each in counts])
    penalties = [
        (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
        for params in (sequence.request.params for sequence in sequences)
    ]
    numbers = np.stack([np.repeat(rows, lengths), token_ids, num_times])
    owners, seen, times = upload(numbers, np.int64, logits.device)
    # each: [seen tokens of all rows] float32
    repetition, presence, frequency = upload(np.repeat(penalties, lengths, axis=0).T, np.float32, logits.device)
    values = logits[owners, seen]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[owners, seen] = values - (presence * (times > 0) + frequency * times)
