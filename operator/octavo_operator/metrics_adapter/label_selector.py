"""Label selectors as the API server parses them from a query: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<9`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from octavo_operator.metrics_adapter.errors import BadRequestError

Operator = Literal["in", "notin", "exists", "!", "gt", "lt"]

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[^\s,()=!<>]+")
MAX_SELECTOR_CHARS = 32 * 1024
MAX_REQUIREMENTS = 100
"""Each is held against each pod, while the operator does nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One term of a selector; terms are joined by AND."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As in Kubernetes: the negative operators match an absent label, the others do not."""
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "!":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case "gt" | "lt":
                return self._compares(value)

    def _compares(self, value: str | None) -> bool:
        if value is None or not re.fullmatch(r"[+-]?\d{1,19}", value):
            return False
        (bound,) = self.values
        return int(value) > int(bound) if self.operator == "gt" else int(value) < int(bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """All requirements together; none of them selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_label_selector(text: str) -> LabelSelector:
    """A `labelSelector` query value.

    Raises:
        BadRequestError: the text is no label selector; the message says where it stops to be one.
    """
    if len(text) > MAX_SELECTOR_CHARS:
        raise BadRequestError(f"the label selector has {len(text)} characters, the limit is {MAX_SELECTOR_CHARS}")
    if not text.strip():
        return LabelSelector()
    return _Parser(text).selector()


class _Parser:
    """Recursive descent over the text; `_at` is the next unread character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selector(self) -> LabelSelector:
        requirements = [self._requirement()]
        while self._accept(","):
            requirements.append(self._requirement())
            if len(requirements) > MAX_REQUIREMENTS:
                raise BadRequestError(f"the label selector has more than {MAX_REQUIREMENTS} requirements; send fewer")
        if self._at < len(self._text):
            raise self._error("',' or the end")
        return LabelSelector(requirements=tuple(requirements))

    def _requirement(self) -> Requirement:
        if self._accept("!"):
            return Requirement(key=self._key(), operator="!")
        key = self._key()
        if self._accept("!="):
            return Requirement(key=key, operator="notin", values=frozenset({self._value()}))
        if self._accept("==") or self._accept("="):
            return Requirement(key=key, operator="in", values=frozenset({self._value()}))
        if self._accept(">"):
            return Requirement(key=key, operator="gt", values=frozenset({self._integer()}))
        if self._accept("<"):
            return Requirement(key=key, operator="lt", values=frozenset({self._integer()}))
        start = self._at
        match self._word():
            case "":
                return Requirement(key=key, operator="exists")
            case "in":
                return Requirement(key=key, operator="in", values=self._values())
            case "notin":
                return Requirement(key=key, operator="notin", values=self._values())
        self._at = start
        raise self._error("an operator")

    def _values(self) -> frozenset[str]:
        if not self._accept("("):
            raise self._error("'('")
        values = {self._value()}
        while self._accept(","):
            values.add(self._value())
        if not self._accept(")"):
            raise self._error("')'")
        return frozenset(values)

    def _key(self) -> str:
        return self._matching(_KEY, "a label key")

    def _value(self) -> str:
        return self._matching(_VALUE, "a label value")

    def _integer(self) -> str:
        return self._matching(re.compile(r"[+-]?\d{1,19}"), "a whole number")

    def _matching(self, pattern: re.Pattern[str], what: str) -> str:
        start = self._at
        word = self._word()
        if not pattern.fullmatch(word):
            self._at = start
            raise self._error(what)
        return word

    def _word(self) -> str:
        match = _WORD.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        self._skip_space()
        return match.group()

    def _accept(self, token: str) -> bool:
        self._skip_space()
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        self._skip_space()
        return True

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _error(self, wanted: str) -> BadRequestError:
        found = self._text[self._at : self._at + 20] or "the end"
        return BadRequestError(
            f"unable to parse the label selector {self._text[:200]!r}: wanted {wanted}, found {found!r} "
            f"at character {self._at}"
        )
