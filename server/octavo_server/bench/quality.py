"""How well the measured thing answers: five samples and the log-probabilities of fixed texts.

Speed alone would praise a configuration that answers worse. The samples are greedy: an easy question, an average one, one
over a long context, a malformed request, and one that wants JSON. The texts are scored token by token, which tells small
losses of precision that samples do not show.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FACT = "The depot at Harrow keeps 41 spare gearboxes."
_FILLER = (
    "Each depot writes down what comes in and what goes out, and at the end of the week someone counts the shelves. "
)
_LONG_CHARACTERS = 5000
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"capital": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["capital", "population"],
    "additionalProperties": False,
}
TEXTS = (
    "A container is a running program together with the files that it needs, kept apart from the other programs of the "
    "same machine. It starts in less than a second, because no second operating system has to start with it.",
    "In the spring the river rises over the lower fields, and the farmers wait until the ground is dry enough to plough. "
    "Some years that takes until May; in others they have sown before the swallows come back.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)\n",
    "The sum of 17 and 25 is 42, and their difference is 8. Twice 42 is 84, and half of 84 is 42 again.",
)
"""What is scored: prose, code and numbers, the same for ever."""
WORSE_PERPLEXITY = 1.02
"""Ratio of perplexities from which the later run counts as answering worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One sample's request."""

    name: str
    prompt: str
    max_tokens: int = 48
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What came of a case: a text, or an error."""

    text: str = ""
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A text's tokens after the first, and the log-probability of each."""

    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Answerer(Protocol):
    """A server or an engine."""

    async def answer(self, case: Case) -> Sample:
        """Never raises for what the case causes."""

    async def score(self, text: str) -> Scored | str:
        """Or why it cannot be told."""


def cases(context_tokens: int | None) -> list[Case]:
    """The five; the long one fits into a context of which a third is left for its answer."""
    room = _LONG_CHARACTERS if context_tokens is None else min(_LONG_CHARACTERS, context_tokens * 2 // 3)
    filler = _FILLER * (room // len(_FILLER) // 2)
    return [
        Case(name="easy", prompt="What is the capital of France? Answer in one sentence."),
        Case(name="average", prompt="Explain in a few sentences how a container differs from a virtual machine."),
        Case(name="long_context", prompt=f"{filler}{_FACT} {filler}How many gearboxes does the depot at Harrow keep?"),
        Case(name="malformed", prompt="What is the capital of France?", temperature=-1.0),
        Case(
            name="structured",
            prompt="Give the capital of France and its population, as JSON.",
            max_tokens=96,
            schema=SCHEMA,
        ),
    ]


async def take_quality(answerer: Answerer, context_tokens: int | None) -> dict[str, Any]:
    """What a record keeps under `quality`."""
    samples = {}
    for case in cases(context_tokens):
        sample = await answerer.answer(case)
        samples[case.name] = {"request": asdict(case), **asdict(sample)}
        if case.schema is not None:
            samples[case.name]["valid"] = is_valid(sample.text)
    scored: list[Scored] = []
    for text in TEXTS:
        found = await answerer.score(text)
        if isinstance(found, str):
            return {"samples": samples, "probe": {"error": found}}
        scored.append(found)
    return {"samples": samples, "probe": probe_of(scored)}


def probe_of(scored: Sequence[Scored]) -> dict[str, Any]:
    """Perplexity over all tokens, and each token's own."""
    logprobs = [value for item in scored for value in item.logprobs]
    return {
        "perplexity": math.exp(-sum(logprobs) / len(logprobs)),
        "tokens": [token for item in scored for token in item.tokens],
        "logprobs": [round(value, 4) for value in logprobs],
    }


def is_valid(text: str) -> bool:
    """Whether it is JSON of SCHEMA."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return (
        isinstance(value, dict)
        and value.keys() == SCHEMA["properties"].keys()
        and isinstance(value["capital"], str)
        and type(value["population"]) is int
    )


def compare_quality(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[list[str], bool]:
    """Lines for a person, and whether the later run answers worse."""
    if not before or not after:
        return ["quality: not in both files, so speed stands alone"], False
    lines, worse = [], False
    for name, was in before["samples"].items():
        found, is_worse = _compare_sample(was, after["samples"].get(name))
        lines.append(f"{name}: {found}")
        worse |= is_worse
    found, is_worse = _compare_probe(before["probe"], after["probe"])
    return [*lines, f"log-probabilities of fixed texts: {found}"], worse or is_worse


def _compare_sample(was: Mapping[str, Any], now: Mapping[str, Any] | None) -> tuple[str, bool]:
    if now is None or was["request"] != now["request"]:
        return "asked otherwise, not compared", False
    if was["error"] is not None or now["error"] is not None:
        if (was["error"] is None) == (now["error"] is None):
            return "refused by both", False
        says = (
            f"answered before, now {now['error']}" if was["error"] is None else f"{was['error']} before, now answered"
        )
        # A malformed request that is answered and any other that is refused are the worse ends.
        return says, (was["error"] is None) != (was["request"]["temperature"] < 0)
    same = _common(was["text"], now["text"])
    longest = max(len(was["text"]), len(now["text"]))
    says = "the same" if same == longest else f"the same for {same} of {longest} characters"
    if was.get("valid") and not now.get("valid"):
        return f"{says}; valid before, no longer", True
    return says, False


def _compare_probe(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, bool]:
    errors = [probe["error"] for probe in (was, now) if "error" in probe]
    if errors:
        return f"not known ({errors[0]})", False
    ratio = now["perplexity"] / was["perplexity"]
    says = f"perplexity {was['perplexity']:.2f} -> {now['perplexity']:.2f} (x{ratio:.3f})"
    if was["tokens"] == now["tokens"]:
        gaps = [abs(one - other) for one, other in zip(was["logprobs"], now["logprobs"], strict=True)]
        says += f", mean distance {sum(gaps) / len(gaps):.4f} over {len(gaps)} tokens"
    else:
        says += ", other tokens"
    return says, ratio >= WORSE_PERPLEXITY


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )
