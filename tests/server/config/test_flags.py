"""Where settings come from: flag > variable > file > default; nothing unknown or unsupported is ignored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from octavo_server.cli import main
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.errors import ConfigError
from octavo_server.flags import NOT_SUPPORTED_YET, FlagParser, add_config_file, add_flags, build, read_settings


def a_parser() -> FlagParser:
    parser = FlagParser(prog="octavo serve")
    for config in (EngineConfig, ServerConfig):
        add_flags(parser, config)
    add_config_file(parser)
    return parser


def read(*argv: str, env: dict[str, str] | None = None) -> tuple[EngineConfig, ServerConfig]:
    settings = read_settings(a_parser().parse_strictly(argv), env or {}, EngineConfig, ServerConfig)
    return build(EngineConfig, settings), build(ServerConfig, settings)


def a_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "octavo.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_stand_where_nothing_is_given() -> None:
    engine, server = read("some/model")

    assert EngineConfig(model="some/model") == engine
    assert ServerConfig() == server


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--max-model-len", "32k"], "max_model_len", 32_000),
        (["--max-model-len=auto"], "max_model_len", None),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--gpu-memory-utilization", "0.5"], "gpu_memory_utilization", 0.5),
        (["--scheduling-policy", "priority"], "scheduling_policy", "priority"),
        (["--served-model-name", "a", "b"], "served_model_name", ("a", "b")),
        (["--api-key", "k1", "--api-key", "k2"], "api_key", ("k1", "k2")),
        (["--shutdown-timeout", "2.5"], "shutdown_timeout", 2.5),
        (["--tokenizer", "org/other@v2"], "tokenizer", "org/other@v2"),
        (["--load-format", "dummy"], "load_format", "dummy"),
        (["--data-dir", "/data"], "data_dir", "/data"),
        (["--max-stored-files", "5"], "max_stored_files", 5),
        (["--max-stored-bytes", "1G"], "max_stored_bytes", 2**30),
        (["--max-stored-age", "60"], "max_stored_age", 60),
        (["--max-upload-bytes", "1m"], "max_upload_bytes", 10**6),
        (["--max-batch-lines", "7"], "max_batch_lines", 7),
        (["--max-batch-concurrency", "2"], "max_batch_concurrency", 2),
        (["--enforce-eager"], "enforce_eager", True),
        (["--overlap-steps", "on"], "overlap_steps", "on"),
        (["--kv-cache-dtype", "auto"], "kv_cache_dtype", "auto"),
        (["--kv-cache-dtype", "fp8"], "kv_cache_dtype", "fp8"),
        (["--kv-cache-dtype", "fp8_e4m3"], "kv_cache_dtype", "fp8"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size", 2),
        (
            ["--allowed-origins", "https://a.example", "http://b:1"],
            "allowed_origins",
            ("https://a.example", "http://b:1"),
        ),
    ],
)
def test_a_flag_sets_its_field(argv: list[str], name: str, expected: object) -> None:
    engine, server = read("m", *argv)

    assert expected == getattr(engine if hasattr(engine, name) else server, name)


def test_a_flag_wins_over_a_variable_over_a_file(tmp_path: Path) -> None:
    path = a_file(tmp_path, "port: 1\nmax-num-seqs: 1\nblock_size: 32\n")
    env = {"OCTAVO_PORT": "2", "OCTAVO_MAX_NUM_SEQS": "2"}

    engine, server = read("m", "--config", path, "--port", "3", env=env)

    assert (server.port, engine.max_num_seqs, engine.block_size) == (3, 2, 32)


def test_a_file_may_name_the_model_and_hold_lists_and_booleans(tmp_path: Path) -> None:
    path = a_file(tmp_path, "model: m\nserved-model-name: [a, b]\nenable-prefix-caching: false\n")

    engine, server = read(env={"OCTAVO_CONFIG": path})

    assert (engine.model, server.served_model_name, engine.enable_prefix_caching) == ("m", ("a", "b"), False)


def test_keys_in_a_variable_are_separated_by_commas() -> None:
    assert read("m", env={"OCTAVO_API_KEY": "k1, k2"})[1].api_key == ("k1", "k2")


@pytest.mark.parametrize("source", ["variable", "file"])
def test_an_origin_is_checked_wherever_it_comes_from(source: str, tmp_path: Path) -> None:
    path = a_file(tmp_path, "allowed-origins: [http://a, nowhere]\n" if source == "file" else "port: 1\n")
    env = {"OCTAVO_ALLOWED_ORIGINS": "http://a, nowhere"} if source == "variable" else {}

    with pytest.raises(ConfigError, match="'nowhere' is no origin"):
        read("m", "--config", path, env=env)


@pytest.mark.parametrize(
    ("argv", "env", "source"),
    [
        (["--api-key", ""], {}, "--api-key"),
        (["--api-key", "k1", ""], {}, "--api-key"),
        (["--served-model-name", ""], {}, "--served-model-name"),
        ([], {"OCTAVO_API_KEY": ""}, "OCTAVO_API_KEY"),
        ([], {"OCTAVO_API_KEY": " , "}, "OCTAVO_API_KEY"),
    ],
)
def test_an_empty_key_or_name_is_refused_rather_than_open(argv: list[str], env: dict[str, str], source: str) -> None:
    with pytest.raises(ConfigError, match=f"{source} is empty"):
        read("m", *argv, env=env)


def test_a_service_link_of_kubernetes_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, server = read("m", env={"OCTAVO_PORT": "tcp://10.96.0.7:8000"})

    assert server.port == 8000
    assert "OCTAVO_PORT" in caplog.text
    assert "service link" in caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["m", "--max-modl-len", "5"], "unknown flag --max-modl-len; did you mean --max-model-len?"),
        (["m", "--max-model", "5"], "unknown flag --max-model"),
        (["m", "n"], "unexpected argument 'n'"),
        (["m", "--port", "x"], "--port is 'x', it must be a number"),
        (["m", "--port", "70000"], "--port is 70000, it must be at most 65535"),
        (["m", "--port"], "expected one argument"),
        (["m", "--dtype", "int3"], "--dtype is 'int3', it must be one of auto, float32, bfloat16, float16"),
        (["m", "--max-model-len", "many"], "--max-model-len: 'many' is not a whole number"),
        (["m", "--load-format", "pt"], "--load-format is 'pt', it must be one of auto, safetensors, gguf, dummy"),
        (["m", "--kv-cache-dtype", "fp7"], "--kv-cache-dtype is 'fp7', it must be one of auto, fp8"),
        (
            ["m", "--kv-cache-dtype", "fp8_e5m2"],
            "fp8_e5m2 is not supported yet in this version of Octavo: it has a bit",
        ),
        (["m", "--kv-cache-dtype", "int8"], "int8 is not supported yet in this version of Octavo: the 8 bits"),
        (["m", "--kv-cache-dtype", "bfloat16"], "leave it out, and use --dtype bfloat16 for both"),
        (["m", "--tensor-parallel-size", "0"], "--tensor-parallel-size is 0, it must be at least 1"),
        (["m", "--allowed-origins", "https://a.example/"], "'https://a.example/' is no origin"),
        ([], "MODEL is missing"),
        (["m", "--config", "/nowhere.yaml"], "cannot read --config /nowhere.yaml"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*argv)

    assert message in str(caught.value)


@pytest.mark.parametrize("flag", sorted(NOT_SUPPORTED_YET))
def test_a_flag_that_a_later_version_brings_is_refused_by_name(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} is not supported yet"):
        read("m", flag, "1")


def test_no_supported_flag_is_named_as_unsupported() -> None:
    flags = {option for action in a_parser()._actions for option in action.option_strings}

    assert not flags & NOT_SUPPORTED_YET


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "unknown entry 'prot'; did you mean port?"),
        ("enable-lora: true", "--enable-lora is not supported yet"),
        ("[1, 2]", "must hold names and values"),
        ("port: [1]", "is no value for --port"),
        ("port: {", "cannot read --config"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("m", "--config", a_file(tmp_path, text))

    assert message in str(caught.value)


def test_help_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])

    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for text in ("--max-model-len", "(default: auto)", "--block-size", "(default: 16)", "2.7 %"):
        assert text in shown


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["sevre"], 2, "there is no command 'sevre'; did you mean serve?"),
        (["serve", "--nope"], 2, "octavo: error: unknown flag --nope"),
        (["serve", "m", "--enable-lora"], 2, "--enable-lora is not supported yet"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("OCTAVO_TERMINATION_LOG", str(tmp_path / "log"))

    assert status == main(argv)

    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_help_without_a_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    assert all(name in capsys.readouterr().out for name in ("serve",))


def test_collect_env_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect-env"]) == 0

    assert "torch: " in capsys.readouterr().out
