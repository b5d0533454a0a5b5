"""From `kubectl apply` to a real answer of a real model, by OpenAI's own client through the gateway."""

from __future__ import annotations

import openai
import pytest

from e2e.cluster.models import Model

pytestmark = pytest.mark.e2e

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_status_of_the_ready_model_is_whole(smol: Model) -> None:
    """All that a person or a controller reads is there, and agrees with what runs."""
    resource = smol.get()
    status = resource["status"]

    assert resource["metadata"]["generation"] == status["observedGeneration"]
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert status["servedModels"] == ["smol"]
    assert status["endpoint"].endswith("/v1")
    assert all(condition["message"] and condition["reason"] for condition in status["conditions"])


def test_pod_is_restricted_and_has_no_api_token(smol: Model) -> None:
    pod = smol.pods()[0]["spec"]
    container = pod["containers"][0]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False


def test_gateway_lists_the_model(smol: Model, client: openai.OpenAI) -> None:
    assert smol.name in {model.id for model in client.models.list()}


def test_the_real_model_answers(smol: Model, client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=smol.name, messages=QUESTION, temperature=0, max_tokens=40)

    assert "Paris" in reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.choices[0].finish_reason in {"stop", "length"}


def test_streamed_text_is_the_text_of_the_plain_answer(smol: Model, client: openai.OpenAI) -> None:
    """Joined chunks equal the whole; one finish reason; the last chunk carries the same usage."""
    ask = {"model": smol.name, "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    plain = client.chat.completions.create(**ask)

    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert plain.choices[0].message.content == text
    assert [plain.choices[0].finish_reason] == ends
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_unknown_model_is_a_404_that_names_it(smol: Model, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)

    assert "no-such-model" in caught.value.body["message"]


def test_bad_value_is_a_400_that_names_the_field(smol: Model, client: openai.OpenAI) -> None:
    """The server's error passes the gateway unchanged."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=smol.name, messages=QUESTION, temperature=9)

    assert caught.value.body["param"] == "temperature"
