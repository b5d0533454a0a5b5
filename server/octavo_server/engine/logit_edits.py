"""What requests ask to change about their logits before a token is drawn; every row on its own.

Order, as in vLLM: what may be chosen at all (grammar, allowed_token_ids), logit_bias, min_tokens, bad_words, penalties.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_server.engine.outputs import GRAMMAR_ENDED, NOTHING_LEFT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.sequence import GrammarState, Sequence
    from octavo_server.engine.token_counts import TokenCounts


MAX_REMEMBERED = 64


class LogitEdits:
    """Knows the model's tokens that end an output; remembers for a while what requests allow."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self._eos_token_ids = eos_token_ids
        # By identity: to compare a hundred thousand ids at each step would take longer than to apply them.
        self._forbidden: OrderedDict[int, tuple[tuple[int, ...], NDArray[np.bool_]]] = OrderedDict()

    def apply(self, logits: torch.Tensor, items: Items[ScheduledSequence]) -> dict[int, str]:
        """Edits rows in place; says in which of them nothing can be chosen, and why.

        logits: [len(items), vocab] float32.
        """
        failed = _restrict_to_grammars(logits, items)
        for row, item in enumerate(items):
            if row not in failed and not self._edit(logits[row], item.sequence):
                failed[row] = NOTHING_LEFT
        return failed

    def touches(self, sequence: Sequence) -> bool:
        """Whether `apply` may change the sequence's next logits."""
        params = sequence.request.params
        return bool(
            sequence.grammar is not None
            or params.allowed_token_ids is not None
            or params.logit_bias
            or sequence.request.bad_token_ids
            or sequence.num_output_tokens < params.min_tokens
            or params.has_penalty
        )

    def apply_to_prompt(self, logits: torch.Tensor, params: SamplingParams) -> None:
        """What holds for a prompt's tokens too: allowed_token_ids and logit_bias; the rest is about the output.

        logits: [vocab] float32, changed in place.
        """
        if params.allowed_token_ids is not None:
            _forbid(logits, self._not_among(params.allowed_token_ids, logits.shape[0]))
        for token_id, bias in params.logit_bias.items():
            logits[token_id] += bias

    def _edit(self, logits: torch.Tensor, sequence: Sequence) -> bool:
        """logits: [vocab] float32. False where nothing is left."""
        params, request = sequence.request.params, sequence.request
        if params.allowed_token_ids is not None:
            _forbid(logits, self._not_among(params.allowed_token_ids, logits.shape[0]))
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=logits.device)
            bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
            logits.index_add_(0, ids, bias)
        if sequence.num_output_tokens < params.min_tokens:
            self._forbid_the_end(logits, params, sequence.grammar)
        if request.bad_token_ids:
            banned = _banned(request.bad_token_ids, sequence.output_token_ids)
            logits[banned] = -torch.inf
        if sequence.token_counts is not None:
            _penalize(logits, params, sequence.token_counts)
        # A grammar alone always leaves something.
        is_restricted = params.allowed_token_ids is not None or request.bad_token_ids
        return not is_restricted or float(logits.max()) > -torch.inf

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
        ends = [token for token in (*self._eos_token_ids, *params.stop_token_ids) if token < logits.shape[0]]
        before = logits[ends]
        logits[ends] = -torch.inf
        # A grammar that is fulfilled and cannot go on ends the output, however short.
        if grammar is not None and float(logits.max()) == -torch.inf:
            logits[ends] = before


def _restrict_to_grammars(logits: torch.Tensor, items: Items[ScheduledSequence]) -> dict[int, str]:
    """Leaves each row with a grammar the tokens that this allows; says which grammars cannot go on."""
    failed: dict[int, str] = {}
    for row, item in enumerate(items):
        grammar = item.sequence.grammar
        if grammar is None:
            continue
        mask = grammar.allowed_tokens()
        if mask is None:
            failed[row] = f"{GRAMMAR_ENDED}{grammar.error}"
        elif not any(mask):
            failed[row] = NOTHING_LEFT
        else:
            _forbid(logits[row], _forbidden(mask, logits.shape[1]))
    return failed


def _forbid(logits: torch.Tensor, forbidden: NDArray[np.bool_]) -> None:
    """logits: [vocab] float32, changed in place."""
    if logits.device.type == "cpu":
        # Waking torch's threads for a row takes several times as long as the row.
        np.copyto(logits.numpy(), -np.inf, where=forbidden)
    else:
        logits.masked_fill_(torch.from_numpy(forbidden).to(logits.device), -torch.inf)


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


def _penalize(logits: torch.Tensor, params: SamplingParams, counts: TokenCounts) -> None:
    """logits: [vocab] float32, changed in place."""
    seen = torch.from_numpy(np.array(counts.token_ids)).to(logits.device)
    if params.repetition_penalty != 1.0:
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        times = torch.from_numpy(np.array(counts.counts)).to(logits.device)
        logits[seen] -= params.presence_penalty * (times > 0) + params.frequency_penalty * times
