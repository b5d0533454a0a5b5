"""What requests ask to change about logits, computed by hand, and the log-probabilities that come back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo_kernels.backend import select_backend
from octavo_kernels.batches import SamplingBatch
from octavo_server.engine.gathered_logprobs import gather_logprobs
from octavo_server.engine.logit_edits import LogitEdits
from octavo_server.engine.outputs import SampledToken, ScheduledSequence, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.sampler import Sampler
from octavo_server.engine.sequence import Sequence
from octavo_testing.stepping import chosen

EOS = 7


def an_item(
    prompt: list[int] | None = None, output: list[int] | None = None, *, seed: int = 0, **params: Any
) -> ScheduledSequence:
    prompt, output = prompt or [1], output or []
    request = Request(
        request_id="r",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**{"temperature": 0.0, **params}),
        arrival_s=0.0,
    )
    sequence = Sequence(sequence_id=SequenceId(1), request=request, seed=seed)
    for token_id in output:
        sequence.append(token_id)
    known = len(prompt) + len(output)
    return ScheduledSequence(sequence=sequence, start=known - 1, num_tokens=1, samples=True)


class Recorder:
    """The torch backend, remembering what `sample` was given."""

    def __init__(self) -> None:
        self.inner = select_backend("cpu")
        self.logits = torch.empty(0)
        self.params: SamplingBatch | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def sample(self, logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        self.logits, self.params = logits.clone(), params
        return self.inner.sample(logits, params)


def edited(logits: list[float], item: ScheduledSequence) -> list[float]:
    """The logits that one row's draw is made from."""
    backend = Recorder()
    Sampler(backend, (EOS,)).sample(torch.tensor([logits]), [item])  # type: ignore[arg-type]  # forwards the rest
    return [float(value) for value in backend.logits[0]]


def test_logit_bias_is_added() -> None:
    assert edited([0.0, 1.0, 2.0], an_item(logit_bias={0: 5.0, 2: -100.0})) == [5.0, 1.0, -98.0]


def test_presence_counts_once_and_frequency_each_time_of_the_output_alone() -> None:
    item = an_item([0, 1, 1], [2, 3, 2, 2], presence_penalty=0.5, frequency_penalty=0.25)

    assert edited([1.0] * 5, item) == [1.0, 1.0, 1.0 - 0.5 - 0.75, 1.0 - 0.5 - 0.25, 1.0]


def test_repetition_penalty_covers_prompt_and_output_and_pushes_down_both_signs() -> None:
    item = an_item([0, 0], [1], repetition_penalty=2.0)

    assert edited([4.0, -4.0, 4.0], item) == [2.0, -8.0, 4.0]


PENALIZED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"presence_penalty": 0.5, "frequency_penalty": -0.25},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.3, "min_tokens": 9},
    {"presence_penalty": -1.5, "logit_bias": {2: 4.0}},
]


def test_penalties_of_several_rows_are_those_of_each_alone() -> None:
    items = [an_item([0, 1, 1], [2, 3, 2, row % 9], **PENALIZED[row % 4]) for row in range(10)]
    items.insert(3, an_item([0, 1], [2]))
    logits = 3 * torch.randn(11, 9, generator=torch.Generator().manual_seed(1))
    backend = Recorder()

    Sampler(backend, (EOS,)).sample(logits.clone(), items)  # type: ignore[arg-type]  # forwards the rest

    alone = [edited(row.tolist(), item) for row, item in zip(logits, items, strict=True)]
    assert backend.logits.tolist() == alone
    assert backend.logits[3].tolist() == logits[3].tolist()


def test_penalties_take_as_many_operations_for_many_rows_as_for_one() -> None:
    """A GPU would have each of them to launch."""

    class Counting(TorchDispatchMode):
        num_operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.num_operations += 1
            return func(*args, **(kwargs or {}))

    def count(num_rows: int) -> int:
        items = [an_item([0, 1], [2, row % 5], **PENALIZED[row % 2]) for row in range(num_rows)]
        logits, edits = torch.zeros(num_rows, 9), LogitEdits((EOS,))
        # what each row has to itself, such as its view
        plain = num_rows * operations(lambda: logits[0])
        return operations(lambda: edits.apply(logits, items, range(num_rows))) - plain

    def operations(run: Callable[[], object]) -> int:
        with Counting() as counting:
            run()
        return counting.num_operations

    assert count(20) == count(1) < 20


def test_edits_come_in_vllms_order() -> None:
    """bias, then repetition (a factor), then presence (a term)."""
    item = an_item([1], [0], logit_bias={0: 3.0}, repetition_penalty=2.0, presence_penalty=0.5)

    assert edited([1.0, 0.0], item) == [(1.0 + 3.0) / 2.0 - 0.5, 0.0]


@pytest.mark.parametrize(("num_output", "is_masked"), [(0, True), (2, True), (3, False)])
def test_min_tokens_masks_every_end_until_it_is_reached(num_output: int, is_masked: bool) -> None:
    item = an_item([0], [1] * num_output, min_tokens=3, stop_token_ids=(2, 5000))

    values = edited([float(n) for n in range(9)], item)

    assert [token for token, value in enumerate(values) if value == -math.inf] == ([2, EOS] if is_masked else [])


def test_a_row_without_edits_is_left_alone_beside_one_with() -> None:
    backend = Recorder()
    logits = torch.arange(6.0).repeat(2, 1)

    Sampler(backend, (EOS,)).sample(  # type: ignore[arg-type]  # forwards the rest
        logits, [an_item(logit_bias={0: 9.0}), an_item()]
    )

    assert backend.logits[1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_parameters_reach_the_backend() -> None:
    backend = Recorder()
    items = [
        an_item([1, 2, 3], [4], temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, seed=2**63 + 5),
        an_item(temperature=0.0, top_k=3, seed=-1),
    ]

    Sampler(backend, ()).sample(torch.zeros(2, 8), items)  # type: ignore[arg-type]  # forwards the rest

    params = backend.params
    assert params is not None
    assert (params.temperature.tolist(), params.top_k.tolist()) == ([0.5, 0.0], [0, 3])
    assert params.top_p.tolist() == pytest.approx([0.9, 1.0])
    assert params.min_p.tolist() == pytest.approx([0.1, 0.0])
    assert params.seed.tolist() == [5 - 2**63, -1]
    # the index of the token that is being sampled
    assert params.position.tolist() == [4, 1]
    assert params.all_greedy is False


def test_reported_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    expected = logits[0].log_softmax(dim=-1)

    (token,) = chosen(
        Sampler(select_backend("cpu"), ()),
        logits.clone(),
        [an_item(logit_bias={3: 100.0}, temperature=0.7, logprobs=2, seed=3)],
    )

    assert isinstance(token, SampledToken)
    assert token.token_id == 3
    assert token.logprob is not None
    assert (token.logprob.token_id, token.logprob.rank) == (3, 4)
    assert token.logprob.logprob == pytest.approx(float(expected[3]))
    assert [(item.token_id, item.rank) for item in token.top_logprobs] == [(2, 1), (1, 2)]
    assert [item.logprob for item in token.top_logprobs] == pytest.approx([float(expected[2]), float(expected[1])])


def test_only_rows_that_ask_get_logprobs_and_as_many_as_they_ask() -> None:
    items = [an_item(), an_item(logprobs=0), an_item(logprobs=3), an_item(logprobs=50)]

    found = chosen(Sampler(select_backend("cpu"), ()), torch.arange(8.0).repeat(4, 1), items)

    tokens = [token for token in found if isinstance(token, SampledToken)]
    assert [token.logprob is not None for token in tokens] == [False, True, True, True]
    assert [len(token.top_logprobs) for token in tokens] == [0, 0, 3, 8]


def test_gathered_logprobs_are_those_of_log_softmax() -> None:
    logits = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)) * 9
    ids = [3, 32, 0, 7, 7]

    gathered = gather_logprobs(logits, torch.tensor(ids), [4] * 5)

    found = gathered.read(gathered.tensors)

    expected = logits.log_softmax(dim=-1)
    assert len(found) == 5
    for row, (own, top) in enumerate(found):
        assert own.logprob == pytest.approx(float(expected[row, ids[row]]), abs=1e-5)
        assert own.rank == int((expected[row] > expected[row, ids[row]]).sum()) + 1
        assert [item.token_id for item in top] == expected[row].topk(4).indices.tolist()
        assert [item.rank for item in top] == [1, 2, 3, 4]
