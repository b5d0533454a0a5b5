"""Amounts as people read them."""

from __future__ import annotations

import pytest

from octavo_operator.units import bytes_text, seconds_text, two_digits


def test_bytes_in_the_unit_of_the_whole() -> None:
    assert bytes_text(31_000_000, 149_000_000) == "31/149 MB"
    assert bytes_text(31_000_000, 14_900_000_000, " of ") == "0.0 of 14.9 GB"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (119, "119 s"), (150, "2 min"), (7200, "2 h")])
def test_seconds_in_the_unit_that_is_read_best(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(("number", "rounded"), [(0, 0), (3.14, 3), (3149.9, 3100), (99_600, 100_000)])
def test_two_digits_count(number: float, rounded: int) -> None:
    assert two_digits(number) == rounded
