"""What is asked: prompts with the length of each answer, made from a seed or read from a file.

The same for the same seed, so that two runs ask the same. Lengths are words, or token ids where `vocab_size` is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.bench.prompts import RandomText
from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Content = str | list[int] | list[dict[str, Any]]
"""A text, token ids, or a chat's messages."""

KINDS = ("random", "sharegpt-like")
SHAREGPT_TOKENS = (161, 338)
"""Means of prompts and answers in ShareGPT (PagedAttention's paper, figure 11)."""
_SHAREGPT_SIGMAS = (1.1, 0.8)
"""Of the logarithms: most prompts are short and a few long; answers differ less."""
_LONGEST = 1024
_CHARACTERS_PER_TOKEN = 4
"""Of English, for files that say an answer's text and not its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    content: Content
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What the flags say of the requests."""

    kind: str = "random"
    prompt_tokens: int
    """Of each prompt, or the mean."""
    max_tokens: int
    """Of each answer, or the mean."""
    range_ratio: float = 0.0
    """Ragged: both lengths are drawn from n · (1 - r) to n · (1 + r)."""
    shared_prefix: int = 0
    """Of a prompt, how much its group begins with."""
    prefix_groups: int = 1
    vocab_size: int | None = None
    """Ask with lists of ids below this: exact lengths, completions only."""

    def asks(self, count: int, seed: int) -> list[Ask]:
        """`count` requests that share a prefix with their group only, and nothing with those of another seed."""
        rng = random.Random(seed)
        text = RandomText(rng, self.vocab_size)
        prefixes = [text.piece(self.shared_prefix) for _ in range(self.prefix_groups)]
        made = []
        for number in range(count):
            given, answer = self._lengths(rng)
            rest = max(given - self.shared_prefix, 1 if self.shared_prefix else 0)
            made.append(
                Ask(content=text.join(prefixes[number % len(prefixes)], text.piece(rest)), max_tokens=max(1, answer))
            )
        return made

    def _lengths(self, rng: random.Random) -> tuple[int, int]:
        means = (self.prompt_tokens, self.max_tokens)
        if self.kind == "sharegpt-like":
            given, answer = (_log_normal(rng, *pair) for pair in zip(means, _SHAREGPT_SIGMAS, strict=True))
            return given, answer
        given, answer = (
            rng.randint(math.ceil(mean * (1 - self.range_ratio)), int(mean * (1 + self.range_ratio))) for mean in means
        )
        return given, answer


def read_asks(path: str, max_tokens: int | None, seed: int) -> list[Ask]:
    """The requests of a file, shuffled: JSON lines with `prompt` or `messages`, or ShareGPT's JSON.

    Args:
        path: of JSON lines `{"prompt": …}` or `{"messages": […]}`, each with `max_tokens` where it wants another than
            all; or of a JSON array of `{"conversations": [{"value": …}, …]}`, whose first two turns are taken.
        max_tokens: of every answer; None: the line's own, ShareGPT's answer by its length, else 128.
        seed: of the order.

    Raises:
        ConfigError: it cannot be read; says which line.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --dataset-path {path}: {error}") from error
    asks = list(_read_array(path, content) if content.lstrip().startswith("[") else _read_lines(path, content))
    if not asks:
        raise ConfigError(f"--dataset-path {path} holds no prompts")
    random.Random(seed).shuffle(asks)
    return [Ask(content=ask.content, max_tokens=max_tokens or ask.max_tokens) for ask in asks]


def sha256_of(asks: Sequence[Ask]) -> str:
    """Tells whether two runs asked the same."""
    digest = hashlib.sha256()
    for ask in asks:
        digest.update(json.dumps([ask.content, ask.max_tokens], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _read_lines(path: str, content: str) -> Iterator[Ask]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"--dataset-path {path}, line {number}"
        value = _parsed(line, where)
        prompt = value.get("prompt", value.get("messages")) if isinstance(value, dict) else None
        if not isinstance(prompt, str | list) or not prompt:
            raise ConfigError(f'{where}: needs "prompt" (a text or token ids) or "messages"')
        wanted = value.get("max_tokens", 128)
        if not isinstance(wanted, int) or wanted < 1:
            raise ConfigError(f"{where}: max_tokens is {wanted!r}, it must be a whole number, 1 or more")
        yield Ask(content=prompt, max_tokens=wanted)


def _read_array(path: str, content: str) -> Iterator[Ask]:
    for number, item in enumerate(_parsed(content, f"--dataset-path {path}")):
        turns = item.get("conversations") if isinstance(item, dict) else None
        try:
            texts = [turn["value"] for turn in turns or ()]
        except (TypeError, KeyError):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f'--dataset-path {path}, item {number}: "conversations" must be turns with a text "value"'
            )
        # Items of one turn have no answer whose length could be asked for, as other tools leave them out too.
        if len(texts) >= 2 and texts[0]:
            yield Ask(content=texts[0], max_tokens=max(1, len(texts[1]) // _CHARACTERS_PER_TOKEN))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from error


def _log_normal(rng: random.Random, mean: int, sigma: float) -> int:
    """Around `mean`, from 1 to 1,024 (or eight times the mean, where that is less)."""
    value = rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
    return min(max(1, round(value)), _LONGEST, 8 * mean)
