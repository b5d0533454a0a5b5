"""Follows one JSON value character by character, so that its text can be passed on before it is whole.

Strict about structure: what it has passed on is the beginning of valid JSON, and once complete it is valid JSON. Two
slips that models make inside strings are mended instead: control characters are escaped, and so is the backslash of an
escape that JSON does not have.
"""

from __future__ import annotations

import re
from enum import Enum, auto

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_LITERALS = ("true", "false", "null")
_WORD_CHARS = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SPACE = frozenset(" \t\r\n")
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class _Expects(Enum):
    VALUE = auto()
    FIRST_VALUE = auto()
    """A value, or the end of the array."""
    KEY = auto()
    FIRST_KEY = auto()
    """A key, or the end of the object."""
    COLON = auto()
    SEPARATOR = auto()
    """A comma, or the end of what is open."""
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    WORD = auto()
    """More of a number or literal."""
    NOTHING = auto()
    BROKEN = auto()


class JsonCursor:
    """Where in a JSON value the text stands. Owns the stack of what is open."""

    def __init__(self) -> None:
        self._expects = _Expects.VALUE
        self._open: list[str] = []
        self._is_key = False
        self._word = ""
        self._hex_left = 0

    @property
    def is_complete(self) -> bool:
        """Whether the value has ended and is valid."""
        return self._expects is _Expects.NOTHING

    @property
    def is_broken(self) -> bool:
        """Whether what came next can stand in no JSON value here."""
        return self._expects is _Expects.BROKEN

    def take(self, text: str, start: int = 0) -> tuple[int, str]:
        """Takes what belongs to the value from `start` on; where that ends, and the text to pass on for it."""
        position, passed = start, []
        while position < len(text) and not self.is_complete and not self.is_broken:
            if self._expects is _Expects.STRING and (plain := _PLAIN.match(text, position)):
                passed.append(plain[0])
                position = plain.end()
                continue
            mended = self._step(text[position])
            if mended is not None:
                passed.append(mended)
                position += 1
        return position, "".join(passed)

    def end(self) -> None:
        """The text has ended: a number is complete now."""
        if self._expects is _Expects.WORD:
            self._end_word()

    def _step(self, character: str) -> str | None:
        """What to pass on for `character`; None where it was not taken, and is looked at again unless all is over."""
        match self._expects:
            case _Expects.STRING:
                return self._in_string(character)
            case _Expects.ESCAPE:
                return self._after_backslash(character)
            case _Expects.HEX:
                return self._in_hex(character)
            case _Expects.WORD:
                return self._in_word(character)
        if character in _SPACE:
            return character
        return character if self._structure(character) else None

    def _structure(self, character: str) -> bool:
        expects = self._expects
        if expects in (_Expects.VALUE, _Expects.FIRST_VALUE) and self._begin_value(character):
            return True
        if character == '"' and expects in (_Expects.KEY, _Expects.FIRST_KEY):
            self._is_key, self._expects = True, _Expects.STRING
            return True
        if character == ":" and expects is _Expects.COLON:
            self._expects = _Expects.VALUE
            return True
        if character == "," and expects is _Expects.SEPARATOR:
            self._expects = _Expects.KEY if self._open[-1] == "}" else _Expects.VALUE
            return True
        may_close = expects in (_Expects.FIRST_VALUE, _Expects.FIRST_KEY, _Expects.SEPARATOR)
        if may_close and character == self._open[-1]:
            self._open.pop()
            self._end_value()
            return True
        self._expects = _Expects.BROKEN
        return False

    def _begin_value(self, character: str) -> bool:
        if character in "{[":
            self._open.append("}" if character == "{" else "]")
            self._expects = _Expects.FIRST_KEY if character == "{" else _Expects.FIRST_VALUE
        elif character == '"':
            self._is_key, self._expects = False, _Expects.STRING
        elif character in "-0123456789tfn":
            self._word, self._expects = character, _Expects.WORD
        else:
            return False
        return True

    def _end_value(self) -> None:
        self._expects = _Expects.SEPARATOR if self._open else _Expects.NOTHING

    def _in_string(self, character: str) -> str:
        if character == '"':
            if self._is_key:
                self._expects = _Expects.COLON
            else:
                self._end_value()
            return character
        if character == "\\":
            # Held until it is known whether what follows is an escape.
            self._expects = _Expects.ESCAPE
            return ""
        return _ESCAPED.get(character) or f"\\u{ord(character):04x}"

    def _after_backslash(self, character: str) -> str | None:
        self._expects = _Expects.STRING
        if character == "u":
            self._expects, self._hex_left = _Expects.HEX, 4
        elif character == "'":
            return character
        elif character not in '"\\/bfnrt':
            # The character itself is looked at as the string's next.
            return self._literal_backslash(character)
        return "\\" + character

    def _literal_backslash(self, character: str) -> str:
        return "\\\\" + (character if _PLAIN.match(character) else self._in_string(character))

    def _in_hex(self, character: str) -> str | None:
        if character not in "0123456789abcdefABCDEF":
            self._expects = _Expects.BROKEN
            return None
        self._hex_left -= 1
        if self._hex_left == 0:
            self._expects = _Expects.STRING
        return character

    def _in_word(self, character: str) -> str | None:
        if character in _WORD_CHARS:
            self._word += character
            is_literal = self._word[0].isalpha()
            if is_literal and not any(literal.startswith(self._word) for literal in _LITERALS):
                self._expects = _Expects.BROKEN
                return None
            return character
        self._end_word()
        return None

    def _end_word(self) -> None:
        if self._word in _LITERALS or _NUMBER.match(self._word):
            self._end_value()
        else:
            self._expects = _Expects.BROKEN
