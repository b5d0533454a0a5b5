"""What the soak's clients send: every kind of request that the server takes, some that it must refuse.

A kind is a function from a random generator to an `Ask`. Optional kinds are tried once at the start, and sent only where
the server serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from benchmarks.ledger import UNSURE_PROMPT_TOKENS

CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
_WORDS = [
    "pod",
    "node",
    "the",
    "quick",
    "brown",
    "fox",
    "Größe",
    "東京",
    "streams",
    "tokens",
    "🙂",
    "and",
    "again",
    "Ελλάδα",
    "one",
    "holds",
    "more",
]
_SHARED = "The quick brown fox jumps over the lazy dog, again and again, while the server streams tokens. " * 2
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": _SCHEMA}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One HTTP request; `body` lacks the model's name."""

    path: str
    body: Mapping[str, Any]
    num_prompts: int = 1
    must_fail: bool = False

    @property
    def is_stream(self) -> bool:
        return bool(self.body.get("stream"))


Kind = Callable[[Random], Ask]


def chat(rng: Random) -> Ask:
    """A conversation with whatever chat clients set."""
    turns: list[dict[str, str]] = [{"role": "system", "content": _SHARED}] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(2)):
        turns += [{"role": "user", "content": words(rng, 8)}, {"role": "assistant", "content": words(rng, 6)}]
    turns.append({"role": "user", "content": words(rng, rng.randrange(1, 30))})
    body = {"messages": turns, **_common(rng)}
    if rng.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(4)}
    return Ask(path=CHAT, body=_streamed(body, rng))


def completion(rng: Random) -> Ask:
    """One prompt or several, as text or token ids."""
    count = rng.choice((1, 1, 1, 3))
    as_ids = rng.random() < 0.5
    prompts: list[Any] = [
        token_ids(rng, rng.randrange(1, 60)) if as_ids else words(rng, rng.randrange(1, 20)) for _ in range(count)
    ]
    body = {"prompt": prompts if count > 1 else prompts[0], **_common(rng)}
    if rng.random() < 0.2:
        body |= {"logprobs": rng.randrange(4)}
    return Ask(path=COMPLETIONS, body=_streamed(body, rng), num_prompts=count)


def long_prompt(rng: Random) -> Ask:
    """A prompt of most of the smallest context, computed in chunks beside the others' streams."""
    body = {"prompt": token_ids(rng, rng.randrange(300, 440)), "max_tokens": rng.randrange(1, 40), "temperature": 0}
    return Ask(path=COMPLETIONS, body=_streamed(body, rng))


def evaluation(rng: Random) -> Ask:
    """As evaluation harnesses ask: the prompt's own log-probabilities, nothing generated or one token."""
    prompts = [token_ids(rng, rng.randrange(2, 90)) for _ in range(rng.randrange(1, 4))]
    body = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": rng.randrange(2), "temperature": 0}
    return Ask(path=COMPLETIONS, body=body, num_prompts=len(prompts))


def structured(rng: Random) -> Ask:
    """An answer by a JSON schema."""
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}
    body = {"messages": [_user(rng)], "response_format": schema, "max_tokens": 80, "temperature": 1}
    return Ask(path=CHAT, body=_streamed(body, rng))


def tools(rng: Random) -> Ask:
    """A forced call of a function."""
    body = {"messages": [_user(rng)], "tools": [_TOOL], "tool_choice": "required", "max_tokens": 100}
    return Ask(path=CHAT, body=_streamed(body, rng))


def responses(rng: Random) -> Ask:
    """OpenAI's newer endpoint; nothing is stored."""
    stream = {"stream": True} if rng.random() < 0.5 else {}
    body = {"input": words(rng, 10), "max_output_tokens": rng.randrange(16, 40), "store": False, **stream}
    return Ask(path=RESPONSES, body=body)


def embeddings(rng: Random) -> Ask:
    """Vectors of a few texts."""
    texts = [words(rng, rng.randrange(1, 30)) for _ in range(rng.randrange(1, 5))]
    return Ask(path=EMBEDDINGS, body={"input": texts}, num_prompts=len(texts))


def bad(rng: Random) -> Ask:
    """What must be refused with a 4xx, and costs nobody anything."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, {"prompt": "x", "temperature": 9}),
        (COMPLETIONS, {"prompt": [10**9], "max_tokens": 4}),
        (COMPLETIONS, {"prompt": [5] * 100_000, "max_tokens": 4}),
        (COMPLETIONS, {"prompt": "x", "n": 0}),
        (COMPLETIONS, {"prompt": "\ud800", "max_tokens": 4}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "model": "another"}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**30}),
    ]
    path, body = rng.choice(wrong)
    return Ask(path=path, body=body, must_fail=True)


def to_abort(rng: Random, num_tokens: int) -> Ask:
    """Long enough that its client surely leaves before it ends. Streams say which tokens came."""
    stream = {"stream": True, "return_token_ids": True} if rng.random() < 0.5 else {}
    n = rng.choice((1, 1, 2)) if stream else 1
    prompt = token_ids(rng, rng.choice((5, 200)) if stream else UNSURE_PROMPT_TOKENS)
    body = {"prompt": prompt, "n": n, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 1, **stream}
    return Ask(path=COMPLETIONS, body=body)


KINDS: dict[str, tuple[int, Kind]] = {
    "chat": (6, chat),
    "completion": (6, completion),
    "long prompt": (1, long_prompt),
    "evaluation": (2, evaluation),
    "bad": (1, bad),
}
"""Name → weight and kind; every server takes these."""

OPTIONAL: dict[str, tuple[int, Kind]] = {
    "structured": (2, structured),
    "tools": (2, tools),
    "responses": (2, responses),
    "embeddings": (2, embeddings),
}


def words(rng: Random, count: int) -> str:
    """A text of `count` words."""
    return " ".join(rng.choices(_WORDS, k=count))


def token_ids(rng: Random, count: int) -> list[int]:
    """Ids that every vocabulary has and that end nothing."""
    return [rng.randrange(10, 500) for _ in range(count)]


def _user(rng: Random) -> dict[str, str]:
    return {"role": "user", "content": words(rng, 10)}


def _common(rng: Random) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": rng.randrange(1, 48), "temperature": rng.choice((0, 0.7, 1.5))}
    chance = rng.random
    if chance() < 0.3:
        body["n"] = rng.randrange(2, 5)
    if chance() < 0.3:
        body["stop"] = rng.choice((" the", ["e", "Z"], ["\n", "。", "er"]))
    if chance() < 0.2:
        body["seed"] = rng.getrandbits(40)
    if chance() < 0.2:
        body |= {"top_p": 0.9, "top_k": 20, "min_p": 0.01}
    if chance() < 0.2:
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    if chance() < 0.1:
        body |= {"logit_bias": {"50": -100, "60": 5}, "min_tokens": 1, "stop_token_ids": [70]}
    if chance() < 0.1:
        body["cache_salt"] = rng.choice("ab")
    return body


def _streamed(body: dict[str, Any], rng: Random) -> dict[str, Any]:
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if rng.random() < 0.5 else body
