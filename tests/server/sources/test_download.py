"""`octavo download`: whole, checked, resumed, and never silently wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from octavo_server import cli
from octavo_server.errors import ConfigError, StartupError
from octavo_server.sources.download import download
from octavo_testing.hub import COMMIT, FILES, Hub, running_hub

SERVED = {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


def fetch(hub: Hub, to: Path, uri: str = "hf://org/model", patterns: list[str] | None = None) -> Path:
    return download(uri, to, patterns, lambda *_: None, endpoint=hub.url)


def files_in(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".cache/")}


def test_a_repository_lands_in_the_folder_whole(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    path = download(
        f"hf://org/model@{COMMIT}", tmp_path / "new" / "m", None, lambda *pair: seen.append(pair), endpoint=hub.url
    )

    assert path == tmp_path / "new" / "m"
    assert files_in(path) == SERVED
    assert all((path / name).read_bytes() == FILES[name] for name in SERVED)
    assert seen[-1] == (sum(len(FILES[name]) for name in SERVED),) * 2


def test_a_second_run_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.fetched.clear()

    fetch(hub, tmp_path)

    assert hub.fetched == []


def test_one_gguf_file(hub: Hub, tmp_path: Path) -> None:
    path = fetch(hub, tmp_path, "org/model/weights/small.gguf")

    assert path == tmp_path / "weights" / "small.gguf"
    assert files_in(tmp_path) == {"weights/small.gguf"}


def test_patterns_choose(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, patterns=["*.md", "token*"])

    assert files_in(tmp_path) == {"README.md", "tokenizer.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"], ids=["sha256", "git blob"])
def test_a_file_that_came_wrong_is_removed_and_named(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damaged.add(name)
    with pytest.raises(StartupError, match=f"{name} was damaged on its way") as caught:
        fetch(hub, tmp_path)
    assert caught.value.reason == "ModelInvalid"
    assert not (tmp_path / name).exists()

    hub.damaged.clear()
    fetch(hub, tmp_path)

    assert (tmp_path / name).read_bytes() == FILES[name]


def test_what_was_cut_off_goes_on_where_it_ended(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    hub.cut.add("model.safetensors")
    try:
        fetch(hub, tmp_path)
    except StartupError:
        fetch(hub, tmp_path)

    assert (tmp_path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.ranges
    assert min(hub.ranges) > 0


@pytest.mark.parametrize(
    ("uri", "patterns", "reason", "words"),
    [
        ("org/other", None, "ModelNotFound", "no model org/other"),
        ("org/model@v9", None, "ModelNotFound", "no revision v9"),
        ("org/model/absent.gguf", None, "ModelNotFound", "no file"),
        ("org/model", ["*.nope"], "ModelNotFound", "no file that matches"),
        ("file:///nowhere", None, "ModelNotFound", "/nowhere does not exist"),
    ],
)
def test_says_why_it_cannot(
    hub: Hub, tmp_path: Path, uri: str, patterns: list[str] | None, reason: str, words: str
) -> None:
    with pytest.raises(StartupError, match=words) as caught:
        fetch(hub, tmp_path, uri, patterns)

    assert caught.value.reason == reason


def test_without_a_network_it_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.url = "http://127.0.0.1:9"

    with pytest.raises(StartupError, match="cannot be reached") as caught:
        fetch(hub, tmp_path)
    assert caught.value.reason == "DownloadStalled"


def test_another_scheme_is_named_with_those_that_work(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s3:// is not supported .* hf://ORG/NAME"):
        fetch(hub, tmp_path, "s3://bucket/model")


def test_a_folder_of_this_machine_is_copied_and_only_what_differs_again(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    (source / "sub").mkdir(parents=True)
    for name, content in {"config.json": b"{}", "sub/a.safetensors": b"weights", "notes.md": b"x"}.items():
        (source / name).write_bytes(content)
    seen: list[tuple[int, int]] = []

    download(f"file://{source}", to, None, lambda *pair: seen.append(pair))
    assert files_in(to) == {"config.json", "sub/a.safetensors"}
    assert seen[-1] == (9, 9)

    (to / "config.json").write_bytes(b"[]")
    seen.clear()
    download(f"file://{source}", to, None, lambda *pair: seen.append(pair))
    assert (to / "config.json").read_bytes() == b"{}"
    assert seen[-1] == (2, 2)


def test_the_command_prints_the_path_and_progress_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda _: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")

    status = cli.main(["download", f"file://{tmp_path}/a.gguf", "--to", str(tmp_path / "to"), "--progress", "json"])

    *progress, path = capsys.readouterr().out.splitlines()
    assert status == 0
    assert path == str(tmp_path / "to" / "a.gguf")
    assert json.loads(progress[-1]) == {"stage": "ready", "bytes": 4, "total_bytes": 4}


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["hf://org/model"], 2, "--to"),
        (["gs://a/b", "--to", "x"], 2, "gs:// is not supported"),
        (["file:///nowhere", "--to", "x"], 1, "/nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda _: None)
    monkeypatch.chdir(tmp_path)

    assert cli.main(["download", *argv]) == status

    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
