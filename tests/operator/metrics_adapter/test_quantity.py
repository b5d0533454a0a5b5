from __future__ import annotations

import math
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_operator.metrics_adapter.quantity import format_quantity

SCALE = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9}
SCALE |= {"T": Decimal(10) ** 12, "P": Decimal(10) ** 15, "E": Decimal(10) ** 18}


def parse(text: str) -> Decimal:
    """What resource.ParseQuantity reads, written here independently."""
    match = re.fullmatch(r"(-?[0-9]+)(m|k|M|G|T|P|E)?", text)
    assert match, text
    return Decimal(match[1]) * SCALE[match[2] or ""]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.85, "850m"),
        (0.8, "800m"),
        (3.2, "3200m"),
        (1.0, "1"),
        (2.0, "2"),
        (1000.0, "1k"),
        (1500.0, "1500"),
        (1000.5, "1000500m"),
        (0.0004, "0"),
        (0.0006, "1m"),
        (1e-12, "0"),
        (1e15, "1P"),
        (-0.25, "-250m"),
    ],
)
def test_it_is_canonical_as_kubernetes_prints_it(value, expected):
    assert format_quantity(value) == expected


@given(st.floats(min_value=-1e15, max_value=1e15))
def test_it_reads_back_to_the_nearest_thousandth(value):
    assert abs(parse(format_quantity(value)) - Decimal(value)) <= Decimal("0.0005") + abs(Decimal(value)) * Decimal(
        "1e-16"
    )


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_formatting_what_was_read_changes_nothing(thousandths):
    text = format_quantity(thousandths / 1000)

    assert format_quantity(float(parse(text))) == text


@pytest.mark.parametrize(("value", "error"), [(math.nan, ValueError), (math.inf, OverflowError), (1e18, OverflowError)])
def test_what_is_no_quantity_is_refused(value, error):
    with pytest.raises(error):
        format_quantity(value)
