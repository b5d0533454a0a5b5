from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from octavo_kernels import numba_sampling, sample, sample_ref, torch_sampling
from octavo_kernels.batches import NOT_FINITE, NOTHING_LEFT, SamplingBatch
from octavo_kernels.numba_backend import NumbaBackend
from octavo_testing.kernels import a_sampling_batch

COMPILED = NumbaBackend(2)

IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation",
    [sample, torch_sampling, sample_ref, COMPILED],
    ids=["triton", "torch", "reference", "compiled"],
)


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def some_logits(num_rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(implementation: object, logits: torch.Tensor, params: SamplingBatch, device: str) -> list[int]:
    on_device = SamplingBatch(
        temperature=params.temperature.to(device),
        top_k=params.top_k.to(device),
        top_p=params.top_p.to(device),
        min_p=params.min_p.to(device),
        seed=params.seed.to(device),
        position=params.position.to(device),
        all_greedy=params.all_greedy,
    )
    tokens: torch.Tensor = implementation.sample(logits.to(device), on_device)  # type: ignore[attr-defined]
    assert tokens.dtype == torch.int64
    return tokens.tolist()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    actual = sample_ref.philox_4x32(words(*counter), words(*key))  # type: ignore[arg-type]

    assert tuple(int(word) for word in actual) == expected


@pytest.mark.parametrize("seed", [0, 3, -1, 2**62 + 12345, -(2**63)])
@pytest.mark.parametrize("position", [0, 7, 2**33 + 5])
def test_the_fast_philox_is_word_0_of_the_reference(seed: int, position: int) -> None:
    token_ids = torch.tensor([0, 1, 2, 49151, 2**31 - 1])
    mask = 0xFFFFFFFF
    counter = words(position & mask, position >> 32, 0, 0)
    key = words(seed & mask, (seed >> 32) & mask)

    expected = sample_ref.philox_4x32((counter[0], counter[1], token_ids, counter[3]), (key[0], key[1]))[0]

    assert torch.equal(torch_sampling.philox_word(seed, position, token_ids), expected)


def test_noise_is_that_of_a_gumbel_distribution_and_bounded() -> None:
    noise = sample_ref.gumbel_noise(torch.tensor(5), torch.tensor(9), torch.arange(200_000))

    # mean: Euler's constant; variance: pi^2 / 6
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(1.6449, abs=0.03)
    extremes = sample_ref.gumbel_from_word(torch.tensor([0, 0xFFFFFFFF]))
    assert extremes.tolist() == pytest.approx([-2.81, 16.64], abs=0.01)
    assert float(extremes[1] - extremes[0]) < torch_sampling._NOISE_SPAN


@IMPLEMENTATIONS
def test_greedy_takes_the_first_of_the_largest(implementation: object, device: str) -> None:
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [-3.0, -2.0, -1.0, -1.0]])

    assert drawn(implementation, logits, a_sampling_batch(2, temperature=0), device) == [1, 2]


@IMPLEMENTATIONS
def test_greedy_rows_among_sampled_ones_ignore_every_other_parameter(implementation: object, device: str) -> None:
    logits = some_logits(3, 50)
    params = a_sampling_batch(3, temperature=[0.0, 1.0, 0.0], top_k=3, top_p=0.5, min_p=0.5)

    tokens = drawn(implementation, logits, params, device)

    assert tokens[0] == logits[0].argmax()
    assert tokens[2] == logits[2].argmax()


@pytest.mark.parametrize("implementation", [sample, torch_sampling, COMPILED], ids=["triton", "torch", "compiled"])
@pytest.mark.parametrize("vocab", [1, 7, 517])
def test_every_mixture_of_parameters_draws_what_the_reference_draws(
    implementation: object, vocab: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # several tiles, the last one ragged; and top-p's first look too short
    monkeypatch.setattr(sample, "_BLOCK", 128)
    monkeypatch.setattr(torch_sampling, "_LIKELY", 8)
    choices = [
        (0.0, 5, 0.5, 0.1),
        (0.7, 0, 1.0, 0.0),
        (1.5, 0, 1.0, 0.05),
        (1.5, 5, 1.0, 0.0),
        (0.7, 0, 0.6, 0.0),
        (1.5, 40, 0.95, 0.0),
        (1.5, 1000, 0.999, 0.02),
    ]
    columns = [list(column) for column in zip(*choices, strict=True)]
    # rounded, so that many logits are equal
    logits = (some_logits(len(choices), vocab) * 4).round() / 4
    params = a_sampling_batch(
        len(choices),
        temperature=columns[0],
        top_k=[int(k) for k in columns[1]],
        top_p=columns[2],
        min_p=columns[3],
        seed=[(-7919) ** (i % 5) for i in range(len(choices))],
        position=[2**31 * i for i in range(len(choices))],
    )

    assert drawn(implementation, logits, params, device) == drawn(sample_ref, logits, params, "cpu")


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        # ids 3 and 4 are equally likely, and the lower one is kept
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_p": 0.74}, {0, 1}),
        ({"top_p": 0.76}, {0, 1, 2}),
        ({"top_p": 0.9}, {0, 1, 2, 3}),
        ({"top_p": 1e-6}, {0}),
        # of top-k's 0.875, not of 1
        ({"top_k": 3, "top_p": 0.8}, {0, 1}),
        ({"min_p": 0.24}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_p": 0.9, "min_p": 0.4}, {0, 1}),
    ],
)
@pytest.mark.parametrize(
    "implementation", [torch_sampling, sample_ref, COMPILED], ids=["torch", "reference", "compiled"]
)
def test_only_kept_tokens_are_drawn_and_each_of_them_is(
    implementation: object, limits: dict[str, float], kept: set[int]
) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    params = a_sampling_batch(100, seed=11, **limits)  # type: ignore[arg-type]

    assert set(drawn(implementation, probabilities.log().expand(100, 5).contiguous(), params, "cpu")) == kept


@IMPLEMENTATIONS
def test_frequencies_are_those_of_softmax(implementation: object, device: str) -> None:
    """Chi-square with 4 degrees of freedom; 18.5 is passed by one fair seed in a thousand, and this one is fixed."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    temperature = 1.3
    num_rows = 200 if implementation is sample else 2000
    expected = num_rows * torch.softmax(logits / temperature, dim=0)

    params = a_sampling_batch(num_rows, temperature=temperature, seed=42)
    counts = Counter(drawn(implementation, logits.expand(num_rows, 5).contiguous(), params, device))

    observed = torch.tensor([float(counts[token]) for token in range(5)])
    assert ((observed - expected) ** 2 / expected).sum() < 18.5


@IMPLEMENTATIONS
def test_a_draw_depends_on_seed_and_position_and_on_no_other_row(implementation: object, device: str) -> None:
    logits = some_logits(1, 300).expand(4, 300).contiguous() * 0.1
    params = a_sampling_batch(4, seed=[1, 1, 2, 1], position=[5, 6, 5, 5])

    tokens = drawn(implementation, logits, params, device)
    alone = drawn(implementation, logits[:1], a_sampling_batch(1, seed=1, position=[5]), device)

    assert tokens[0] == tokens[3] == alone[0]
    assert len({tokens[0], tokens[1], tokens[2]}) == 3


@IMPLEMENTATIONS
def test_masked_tokens_are_never_drawn(implementation: object, device: str) -> None:
    logits = torch.full((4, 9), -torch.inf)
    logits[:, 4] = -3.0
    params = a_sampling_batch(4, temperature=2.0, top_k=5, top_p=0.9)

    assert set(drawn(implementation, logits, params, device)) == {4}


# the interpreter computes with numpy, which warns
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@IMPLEMENTATIONS
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize(
    ("broken", "expected"), [(torch.nan, NOT_FINITE), (torch.inf, NOT_FINITE), (-torch.inf, NOTHING_LEFT)]
)
def test_a_row_without_a_distribution_is_told_and_harms_no_other_row(
    implementation: object, broken: float, expected: int, greedy: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only one logit, in one of several tiles, is broken; minus infinity is one that may not be chosen."""
    monkeypatch.setattr(sample, "_BLOCK", 16)
    logits = some_logits(3, 50)
    temperature = 0.0 if greedy else 1.0
    sound = drawn(implementation, logits[2:], a_sampling_batch(1, position=[2], temperature=temperature), device)
    logits[0] = broken
    logits[1, 40] = broken

    params = a_sampling_batch(3, top_k=[5, 0, 0], top_p=[0.9, 1.0, 1.0], temperature=temperature)
    tokens = drawn(implementation, logits, params, device)

    assert tokens[0] == expected
    assert tokens[1] == expected if broken != -torch.inf else 0 <= tokens[1] < 50
    assert tokens[2:] == sound


@IMPLEMENTATIONS
def test_logits_are_not_written(implementation: object, device: str) -> None:
    logits = some_logits(2, 50)
    before = logits.clone()

    drawn(implementation, logits, a_sampling_batch(2, top_k=5, top_p=0.9, min_p=0.1), device)

    assert torch.equal(logits, before)


@pytest.mark.gpu
def test_real_sizes_on_a_gpu() -> None:
    logits = some_logits(64, 128256)
    params = a_sampling_batch(64, temperature=[0.0, 0.8] * 32, top_k=[0, 50, 0, 0] * 16, top_p=[0.95, 1.0] * 32)

    actual, expected = drawn(sample, logits, params, "cuda"), drawn(sample_ref, logits, params, "cpu")

    # a device's logarithm differs in the last bit, which may turn one near-tie
    assert sum(a != e for a, e in zip(actual, expected, strict=True)) <= 1


@pytest.mark.parametrize("spread", [0.05, 3.0, 30.0])
def test_the_compiled_draw_is_the_references_on_a_real_vocabulary(spread: float) -> None:
    """Flat, usual and steep; rows lie further apart than they are long, as a head's output does."""
    limits = [
        (0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.95, 0.0), (0, 1.0, 0.05), (20000, 0.999, 0.0), (1, 1.0, 0.0)
    ]  # fmt: skip
    num_rows, vocab = len(limits), 49_150
    logits = (some_logits(num_rows, 49_152, seed=5) * (spread / 3))[:, :vocab]
    columns = [list(column) for column in zip(*limits, strict=True)]
    params = a_sampling_batch(
        num_rows,
        temperature=[0.3 + row / 5 for row in range(num_rows)],
        top_k=[int(k) for k in columns[0]],
        top_p=columns[1],
        min_p=columns[2],
        seed=list(range(num_rows)),
    )

    assert COMPILED.sample(logits, params).tolist() == sample_ref.sample(logits, params).tolist()
    # Compiled once, whatever the rows and the parameters: nothing compiles while requests wait.
    assert len(numba_sampling._sample.signatures) == 1


@pytest.mark.parametrize("params", [{"top_k": 130}, {"top_p": 0.7}, {"top_k": 130, "top_p": 0.7}], ids=str)
def test_of_equal_logits_at_the_edge_the_first_ids_are_kept(params: dict[str, Any], device: str) -> None:
    """Logits of few values: the edge lies among many equal ones, which are likely enough to be drawn where they are kept."""
    logits = (some_logits(1, 600) / 6).round()
    kept = sample_ref.kept_tokens(logits[0], params.get("top_k", 0), params.get("top_p", 1.0), 0.0)
    at_edge = logits[0] == logits[0][kept].min()
    assert 10 < int((at_edge & kept).sum()) < int(at_edge.sum()) - 10
    batch = a_sampling_batch(24, temperature=1.0, seed=list(range(24)), **params)
    rows = logits.expand(24, 600).contiguous()

    tokens = drawn(sample, rows, batch, device)

    assert tokens == drawn(sample_ref, rows, batch, "cpu")
    assert sum(int(at_edge[token]) for token in tokens) > 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter loads")
@pytest.mark.parametrize("spread", [1.0, 10.0])
@pytest.mark.parametrize(
    ("params", "most"),
    [({}, 1), ({"min_p": 0.1}, 2), ({"top_k": 50}, 14), ({"top_p": 0.95}, 15), ({"top_k": 50, "top_p": 0.95}, 26)],
    ids=str,
)
def test_a_row_is_read_a_few_times(
    params: dict[str, Any], most: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search of the 2^32 keys reads it 11 times at most, an eighth of them being left each time; the draw once."""
    from triton.runtime.interpreter import interpreter_builder

    num_rows, vocab, load, read = 2, 5000, interpreter_builder.create_masked_load, []

    def counting(pointers: Any, mask: Any, *others: Any) -> Any:
        # a row's parameters are single numbers
        read.append(4 * int(mask.data.sum()) if mask.data.size > 1 else 0)
        return load(pointers, mask, *others)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", counting)
    logits = spread * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(3))
    batch = a_sampling_batch(num_rows, temperature=0.8, seed=3, **params)

    tokens = sample.sample(logits, batch)

    assert torch.equal(tokens, sample_ref.sample(logits, batch))
    assert 1 <= sum(read) / logits.nbytes <= most
