"""`octavo download`: whole, checked, resumed, and never silently wrong."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from huggingface_hub import constants

from octavo_server import cli, download_command
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError, StartupError
from octavo_server.sources.download import Wanted, download
from octavo_testing.hub import COMMIT, FILES, Hub, running_hub

SERVED = {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


def fetch(hub: Hub, to: Path, uri: str = "hf://org/model", patterns: list[str] | None = None) -> Path:
    return download(uri, to, wanted(hub, patterns), lambda *_: None)


def wanted(hub: Hub, patterns: list[str] | None = None, checksum: str = "") -> Wanted:
    return Wanted(patterns=tuple(patterns) if patterns else None, endpoint=hub.url, checksum=checksum)


def files_in(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith((".cache/", ".octavo/"))}


def test_a_repository_lands_in_the_folder_whole(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    path = download(f"hf://org/model@{COMMIT}", tmp_path / "new" / "m", wanted(hub), lambda *pair: seen.append(pair))

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
    assert caught.value.reason == "ChecksumMismatch"
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
    with pytest.raises(ConfigError, match=r"az:// is not supported .* hf://ORG/NAME"):
        fetch(hub, tmp_path, "az://bucket/model")


def test_a_folder_of_this_machine_is_copied_and_only_what_differs_again(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    (source / "sub").mkdir(parents=True)
    for name, content in {"config.json": b"{}", "sub/a.safetensors": b"weights", "notes.md": b"x"}.items():
        (source / name).write_bytes(content)
    seen: list[tuple[int, int]] = []

    download(f"file://{source}", to, Wanted(), lambda *pair: seen.append(pair))
    assert files_in(to) == {"config.json", "sub/a.safetensors"}
    assert seen[-1] == (9, 9)

    (to / "config.json").write_bytes(b"[]")
    seen.clear()
    download(f"file://{source}", to, Wanted(), lambda *pair: seen.append(pair))
    assert (to / "config.json").read_bytes() == b"{}"
    assert seen[-1] == (2, 2)


def test_a_repository_has_the_checksum_of_its_files_list(hub: Hub, tmp_path: Path) -> None:
    """What `sha256sum FILES | sha256sum` prints, by the program itself."""
    fetch(hub, tmp_path)
    listed = subprocess.run(["sha256sum", *sorted(SERVED)], cwd=tmp_path, check=True, capture_output=True).stdout
    expected = f"sha256:{hashlib.sha256(listed).hexdigest()}"

    download("org/model", tmp_path, wanted(hub, checksum=expected), lambda *_: None)

    with pytest.raises(StartupError, match=f"its checksum is {expected}") as caught:
        download("org/model", tmp_path, wanted(hub, checksum="sha256:" + "0" * 64), lambda *_: None)
    assert caught.value.reason == "ChecksumMismatch"


def test_a_job_tells_how_far_it_is_and_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_command, "set_up_logging", lambda _: None)
    monkeypatch.setenv("OCTAVO_TERMINATION_LOG", str(tmp_path / "words"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.gguf").write_bytes(b"GGUF")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told: list[dict[str, object]] = []
    copy = download_command.StartupProgress.add_bytes

    def ask(self: StartupProgress, done: int, total: int) -> None:
        copy(self, done, total)
        for path in ("startup", "health"):
            with urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
                told.append(json.load(answer))

    monkeypatch.setattr(download_command.StartupProgress, "add_bytes", ask)
    argv = ["download", "--to", str(tmp_path / "to"), "--port", str(port), "--progress", "none"]

    assert cli.main([*argv, f"file://{tmp_path}/m"]) == 0
    assert cli.main([*argv, f"file://{tmp_path}/absent"]) == 1

    startup, health = told[-2:]
    assert (startup["stage"], startup["bytes"], startup["total_bytes"]) == ("downloading", 4, 4)
    assert health == {"status": "ok"}
    words = json.loads((tmp_path / "words").read_text())
    assert words["reason"] == "ModelNotFound"


def test_a_port_that_is_taken_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_command, "set_up_logging", lambda _: None)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        argv = [str(tmp_path), "--to", "x", "--port", str(taken.getsockname()[1])]
        with pytest.raises(ConfigError, match="cannot be opened"):
            download_command.download(argv)


def test_the_command_prints_the_path_and_progress_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_command, "set_up_logging", lambda _: None)
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
        (["az://a/b", "--to", "x"], 2, "az:// is not supported"),
        (["s3://b", "--to", "x"], 2, "s3://BUCKET/PATH"),
        (["org/m", "--to", "x", "--checksum", "md5:1"], 2, "no checksum"),
        (["org/m", "--to", "x", "--allow-patterns", "a", "--weight-files", "b"], 2, "give one"),
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
    monkeypatch.setattr(download_command, "set_up_logging", lambda _: None)
    monkeypatch.chdir(tmp_path)

    assert cli.main(["download", *argv]) == status

    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
