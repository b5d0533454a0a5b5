"""From the hidden state of a request that pools to the vector that its client asked for.

A vector is the state's first `dimensions` numbers, normalised to length 1 unless asked otherwise. float32 throughout, but
for sums, which are float64: a state's numbers may be large enough for their squares to overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.models.config import VectorSizes

Item = TypeVar("Item")
Vector: TypeAlias = NDArray[np.float32]

_LEAST_LENGTH = 1e-12
"""Of a state that is zero: it stays zero instead of becoming a division by nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What to make of a hidden state; names as in vLLM."""

    dimensions: int | None = None
    """Leading numbers to keep, where the model was trained for it. None: all."""
    use_activation: bool | None = None
    """Normalise to length 1. None: yes."""
    normalize: bool | None = None
    """An older name of `use_activation`."""
    truncate_prompt_tokens: int | None = None
    """Use the last tokens of the prompt alone: so many, or as many as fit for -1. None: refuse what does not fit."""

    @property
    def normalizes(self) -> bool:
        return self.use_activation is not False and self.normalize is not False


def check_dimensions(params: PoolingParams, sizes: VectorSizes) -> None:
    """Whether the model's vectors can be so short.

    Raises:
        InvalidRequestError: names both numbers and the remedy.
    """
    asked = params.dimensions
    if asked is None or asked == sizes.hidden:
        return
    if not 1 <= asked <= sizes.hidden:
        problem = f"dimensions is {asked}, the model's vectors have {sizes.hidden}; ask for 1 to {sizes.hidden}"
    elif not sizes.can_shorten:
        problem = (
            f"dimensions is {asked}, but this model was not trained for shorter vectors than {sizes.hidden} "
            f"(its config names no Matryoshka representation); leave dimensions out"
        )
    elif sizes.trained and asked not in sizes.trained:
        known = ", ".join(map(str, sizes.trained))
        problem = f"dimensions is {asked}, the model was trained for {known}; ask for one of these"
    else:
        return
    raise InvalidRequestError(problem, param="dimensions")


def check_pairs(num_first: int, num_second: int, *, names: tuple[str, str]) -> None:
    """Whether the two sides of a score fit each other: one against each, or as many pairs.

    Raises:
        InvalidRequestError: names both numbers.
    """
    if num_second and num_first in (1, num_second):
        return
    raise InvalidRequestError(
        f"{names[0]} has {num_first} texts and {names[1]} {num_second}; send one and any number, or as many on each side",
        param=names[0],
    )


def make_vector(state: bytes, params: PoolingParams) -> Vector:
    """state: float32 little-endian, as OutputDelta.hidden_state -> [dimensions] float32."""
    values = np.frombuffer(state, dtype="<f4")[: params.dimensions].astype(np.float32, copy=False)
    return _normalized(values) if params.normalizes else values


def cosine(first: Vector, second: Vector) -> float:
    """Cosine similarity of two vectors of length 1, within [-1, 1] whatever rounding does."""
    value = float(np.dot(first.astype(np.float64), second.astype(np.float64)))
    return min(1.0, max(-1.0, value))


def scores(first: Sequence[Vector], second: Sequence[Vector]) -> list[float]:
    """Of one vector against each, or of pairs."""
    return [cosine(one, other) for one, other in zip(paired(first, len(second)), second, strict=True)]


def paired(first: Sequence[Item], count: int) -> Sequence[Item]:
    """The first side of `count` pairs."""
    return [*first] * count if len(first) == 1 else first


def _normalized(values: Vector) -> Vector:
    wide = values.astype(np.float64)
    return (wide / max(float(np.linalg.norm(wide)), _LEAST_LENGTH)).astype(np.float32)


def last_tokens(token_ids: list[int], limit: int | None, context: int) -> list[int]:
    """What `truncate_prompt_tokens` leaves of a prompt; -1 is the context."""
    if limit is None:
        return token_ids
    return token_ids[-(context if limit == -1 else limit) :]
