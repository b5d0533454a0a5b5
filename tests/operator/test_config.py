from __future__ import annotations

from pathlib import Path

import pytest

from octavo_operator.config import DEFAULT_IMAGE, DEFAULT_IMAGE_CPU, DEFAULT_IMAGE_ROCM, ConfigError, parse_config


def test_defaults_serve_all_namespaces_without_an_adapter() -> None:
    config = parse_config([], {})

    assert config.namespaces == ()
    assert config.adapter is None
    assert (config.pods.image, config.pods.image_cpu) == (DEFAULT_IMAGE, DEFAULT_IMAGE_CPU)
    assert config.pods.image_rocm == DEFAULT_IMAGE_ROCM
    assert (config.log_level, config.port) == ("INFO", 8082)


def test_flags_win_over_variables() -> None:
    env = {"OCTAVO_SERVER_IMAGE": "env:1", "OCTAVO_GATEWAY_URL": "http://gw/v1/", "OCTAVO_NAMESPACE": "sys"}

    config = parse_config(["--server-image", "flag:1", "--namespaces=a, b"], env)

    assert (config.pods.image, config.pods.image_cpu, config.pods.image_rocm) == ("flag:1",) * 3
    assert config.namespaces == ("a", "b")
    assert (config.gateway_url, config.own_namespace) == ("http://gw", "sys")


def test_prometheus_is_an_address_or_nothing() -> None:
    assert parse_config([], {}).prometheus == ""
    assert parse_config(["--prometheus-address=http://p.monitoring:9090"], {}).prometheus == "http://p.monitoring:9090"
    with pytest.raises(ConfigError, match=r"--prometheus-address is 'p:9090', must be like http://prometheus"):
        parse_config(["--prometheus-address=p:9090"], {})


def test_adapter_outside_a_cluster_serves_with_files() -> None:
    config = parse_config(["--metrics-adapter-port=1", "--metrics-adapter-cert=c", "--metrics-adapter-key=k"], {})

    assert config.adapter is not None
    assert (config.adapter.port, config.adapter.cert_file, config.adapter.key_file) == (1, Path("c"), Path("k"))
    assert config.adapter.service is None


def test_adapter_in_a_cluster_serves_with_the_charts_secret() -> None:
    argv = ["--metrics-adapter=true", "--metrics-adapter-service=sys/octavo", "--metrics-adapter-secret=s"]

    config = parse_config([*argv, "--metrics-adapter-owner=role"], {})

    assert config.adapter is not None
    assert config.adapter.service is not None
    assert (config.adapter.service.namespace, config.adapter.service.name) == ("sys", "octavo")
    assert (config.adapter.secret_name, config.adapter.service.cluster_role) == ("s", "role")
    assert config.adapter.take_over


def test_adapter_can_be_switched_off() -> None:
    argv = ["--metrics-adapter=false", "--metrics-adapter-cert=c", "--metrics-adapter-key=k"]

    assert parse_config(argv, {}).adapter is None


@pytest.mark.parametrize(
    ("argv", "env", "words"),
    [
        (["--metrics-adapter-cert=c"], {}, "belong together"),
        (["--metrics-adapter-service=octavo"], {}, "must be NAMESPACE/NAME"),
        (["--metrics-adapter-service=a/b"], {}, "needs --metrics-adapter-secret"),
        (["--server-network-policy={"], {}, "--server-network-policy is no JSON"),
        (["--server-network-policy=[]"], {}, "must be an object with policyTypes"),
        (['--server-network-policy={"ingress": []}'], {}, "must be an object with policyTypes"),
        (['--server-network-policy={"policyTypes": ["Ingress"], "podSelector": {}}'], {}, "must be an object with pol"),
        ([], {"OCTAVO_LOG_LEVEL": "loud"}, "OCTAVO_LOG_LEVEL is 'loud', must be one of debug"),
    ],
)
def test_contradiction_is_refused(argv: list[str], env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(argv, env)


def test_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--kubeconf", "x"], {})

    assert "--kubeconf" in capsys.readouterr().err
