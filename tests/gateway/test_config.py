"""Flag > variable > default; mistakes end with a sentence."""

from __future__ import annotations

import logging

import pytest

from octavo_gateway.config import GatewayConfig, parse_config
from octavo_gateway.logs import JsonFormatter, TextFormatter


def test_defaults_are_the_ports_that_the_chart_knows() -> None:
    config = parse_config([], {})

    assert config == GatewayConfig()
    assert (config.port, config.internal_port) == (8080, 8081)


def test_a_flag_beats_a_variable_and_a_variable_the_default() -> None:
    env = {"OCTAVO_GATEWAY_PORT": "1", "OCTAVO_GATEWAY_INTERNAL_PORT": "2", "OCTAVO_GATEWAY_NAMESPACES": "a, b,"}

    config = parse_config(["--port", "3"], env)

    assert (config.port, config.internal_port, config.namespaces) == (3, 2, ("a", "b"))


def test_a_service_link_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config([], {"OCTAVO_GATEWAY_PORT": "tcp://10.0.0.1:8080"})

    assert config.port == 8080
    assert "service link" in caplog.text


@pytest.mark.parametrize(
    ("argv", "env", "said"),
    [
        ([], {"OCTAVO_GATEWAY_PORT": "many"}, "OCTAVO_GATEWAY_PORT='many' is not a number"),
        ([], {"OCTAVO_GATEWAY_LOG_LEVEL": "loud"}, "must be one of debug, info"),
        (["--port", "many"], {}, "invalid int value"),
        (["--prot", "1"], {}, "unrecognized arguments"),
    ],
)
def test_mistakes_are_named(
    argv: list[str], env: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(argv, env)

    assert end.value.code == 2
    assert said in capsys.readouterr().err


def a_record() -> logging.LogRecord:
    record = logging.LogRecord("octavo_gateway.x", logging.INFO, __file__, 1, "woke a model", (), None)
    record.model = "default/m"
    return record


def test_log_lines_carry_their_fields() -> None:
    assert TextFormatter().format(a_record()).endswith("info octavo_gateway.x: woke a model model=default/m")
    assert '"message": "woke a model", "model": "default/m"' in JsonFormatter().format(a_record())
