"""Embeddings and scores of the offline API, with vLLM's names: what `LLM.embed` and `LLM.score` give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from octavo_server.engine.vectors import make_vector, paired, scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.request import Request
    from octavo_server.engine.vectors import PoolingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOutput:
    """One prompt's vector."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequestOutput:
    """A prompt and its vector."""

    request_id: str
    prompt: str | None
    """None where token ids were given."""
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOutput:
    """How alike two texts are, from -1 to 1."""

    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRequestOutput:
    """A pair of texts and its score."""

    request_id: str
    prompt_token_ids: list[int]
    """Both texts', one after the other."""
    outputs: ScoringOutput
    num_cached_tokens: int = 0
    finished: bool = True


def embedding_output(
    request: Request, text: str | None, delta: OutputDelta, params: PoolingParams
) -> EmbeddingRequestOutput:
    """What `LLM.embed` gives of a request that has its hidden state."""
    assert delta.hidden_state is not None
    return EmbeddingRequestOutput(
        request_id=request.request_id,
        prompt=text,
        prompt_token_ids=list(request.prompt_token_ids),
        outputs=EmbeddingOutput(embedding=make_vector(delta.hidden_state, params).tolist()),
        num_cached_tokens=delta.num_cached_tokens,
    )


def scoring_outputs(
    first: Sequence[EmbeddingRequestOutput], second: Sequence[EmbeddingRequestOutput]
) -> list[ScoringRequestOutput]:
    """What `LLM.score` gives of normalised vectors; the first side is one, or as many as the second."""
    vectors = [[np.array(item.outputs.embedding, dtype=np.float32) for item in side] for side in (first, second)]
    found = scores(vectors[0], vectors[1])
    return [
        ScoringRequestOutput(
            request_id=other.request_id,
            prompt_token_ids=one.prompt_token_ids + other.prompt_token_ids,
            outputs=ScoringOutput(score=score),
            num_cached_tokens=one.num_cached_tokens + other.num_cached_tokens,
        )
        for one, other, score in zip(paired(first, len(second)), second, found, strict=True)
    ]
