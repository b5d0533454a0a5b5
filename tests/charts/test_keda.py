"""KEDA as an option of the chart: an address, a right, and an operator that uses both."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_operator.config import parse_config

CHART = Path(__file__).parents[2] / "charts" / "octavo"
ADDRESS = "http://prometheus-operated.monitoring.svc:9090"


def test_without_the_option_the_operator_leaves_keda_alone(render):
    args = render({"prometheus": {"address": ADDRESS}}).container("operator")["args"]

    assert parse_config(args, {}).prometheus == ""


def test_the_operator_is_told_the_address(render):
    args = render({"keda": {"enabled": True}, "prometheus": {"address": ADDRESS}}).container("operator")["args"]

    assert parse_config(args, {}).prometheus == ADDRESS


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set=keda.enabled=true"], "keda.enabled needs prometheus.address"),
        (["--set=prometheus.address=prometheus:9090"], "prometheus/address"),
    ],
)
def test_what_cannot_be_is_refused(helm, flags, words):
    result = helm("template", "octavo", str(CHART), *flags, check=False)

    assert result.returncode != 0
    assert words in result.stderr
