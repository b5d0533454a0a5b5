from __future__ import annotations

from decimal import Decimal

import pytest

from octavo_operator.api.quantity import milli, parse_duration_s, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", Decimal(1)),
        ("500m", Decimal("0.5")),
        ("0.5", Decimal("0.5")),
        (".5", Decimal("0.5")),
        ("1e3", Decimal(1000)),
        ("24Gi", Decimal(24 * 2**30)),
        ("1k", Decimal(1000)),
        ("-2", Decimal(-2)),
    ],
)
def test_quantity_is_its_number(text: str, number: Decimal) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "abc", "1 Gi", "1GiB", "Gi", "1.", "--1"])
def test_text_that_is_no_quantity_gives_none(text: str) -> None:
    assert parse_quantity(text) is None


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("", 0), ("0s", 0)])
def test_duration_is_its_seconds(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["10", "1.5h", "5d", "m10", "10s5m"])
def test_text_that_is_no_duration_gives_none(text: str) -> None:
    assert parse_duration_s(text) is None


@pytest.mark.parametrize(("ratio", "quantity"), [("0.8", "800m"), ("2", "2"), ("1.25", "1250m"), ("0.005", "5m")])
def test_ratio_becomes_the_quantity_that_the_api_server_stores(ratio: str, quantity: str) -> None:
    assert milli(ratio) == quantity
