"""From any store into a folder: resumed where it was cut off, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from octavo_server.errors import StartupError
from octavo_server.sources import fetch, folder
from octavo_server.sources.fetch import fetch_files
from octavo_server.sources.store import BrokenOffError, RemoteFile, choose_files
from octavo_testing.sites import Site, own_authority, running_site

WEIGHTS = bytes(range(256)) * 4096


@dataclass
class Shelf:
    """A store in memory that breaks when it is told to."""

    files: dict[str, bytes]
    versions: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    """After so many bytes each next read ends."""
    is_down: bool = False
    title: str = "shelf://x"
    digest: str = ""

    def list_files(self) -> Sequence[RemoteFile]:
        if self.is_down:
            raise BrokenOffError("nobody answers")
        return [
            RemoteFile(
                name=name, size=len(data), version=self.versions.get(name, "v1"), sha256=self.hashes.get(name, "")
            )
            for name, data in self.files.items()
        ]

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        self.asked.append((file.name, offset))
        end = offset + self.breaks.pop(0) if self.breaks else len(self.files[file.name])
        yield self.files[file.name][offset:end]
        if end < len(self.files[file.name]):
            raise BrokenOffError("the line broke")

    def close(self) -> None:
        return


def fetched(
    shelf: Shelf, to: Path, *, verify: bool = False, on: Callable[[int, int], None] | None = None
) -> list[float]:
    """Fetches; gives the waits between tries."""
    waits: list[float] = []
    fetch_files(shelf, to, None, on or (lambda *_: None), verify=verify, sleep=waits.append)
    return waits


def test_a_broken_line_is_made_anew_behind_the_last_byte(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, breaks=[1000, 0, 0, 5000])
    told: list[tuple[int, int]] = []

    waits = fetched(shelf, tmp_path, on=lambda *pair: told.append(pair))

    assert (tmp_path / "model.gguf").read_bytes() == WEIGHTS
    assert [offset for _, offset in shelf.asked] == [0, 1000, 1000, 1000, 6000]
    assert waits == [1.0, 2.0, 4.0, 1.0]
    assert told == sorted(told)
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_a_source_that_gives_nothing_any_more_has_stalled(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, breaks=[1000] + [0] * 10)

    with pytest.raises(StartupError, match="tried 5 times") as caught:
        fetched(shelf, tmp_path)

    assert caught.value.reason == "DownloadStalled"
    assert not (tmp_path / "model.gguf").exists()


def test_a_later_run_goes_on_with_the_part_of_an_earlier_one(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, breaks=[1000] + [0] * 10)
    with pytest.raises(StartupError):
        fetched(shelf, tmp_path)
    shelf.asked.clear()
    shelf.breaks.clear()

    fetched(shelf, tmp_path)

    assert shelf.asked == [("model.gguf", 1000)]
    assert (tmp_path / "model.gguf").read_bytes() == WEIGHTS
    assert list((tmp_path / ".octavo" / "parts").iterdir()) == []


@pytest.mark.parametrize("version", ["v2", ""])
def test_the_part_of_another_version_is_worth_nothing(tmp_path: Path, version: str) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, versions={"model.gguf": version and "v1"}, breaks=[1000])

    def end(done: int, _: int) -> None:
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fetched(shelf, tmp_path, on=end)
    assert [path.stat().st_size for path in (tmp_path / ".octavo" / "parts").iterdir()] == [1000]
    shelf.asked.clear()
    shelf.breaks.clear()
    shelf.versions = {"model.gguf": version}

    fetched(shelf, tmp_path)

    assert shelf.asked == [("model.gguf", 0)]


def test_a_file_of_which_nobody_knows_the_version_is_begun_anew(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, versions={"model.gguf": ""}, breaks=[1000])
    told: list[tuple[int, int]] = []

    fetched(shelf, tmp_path, on=lambda *pair: told.append(pair))

    assert [offset for _, offset in shelf.asked] == [0, 0]
    assert (tmp_path / "model.gguf").read_bytes() == WEIGHTS
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS))


def test_what_is_there_is_not_fetched_again_unless_it_changed(tmp_path: Path) -> None:
    shelf = Shelf({"config.json": b"{}", "model.safetensors": WEIGHTS})
    fetched(shelf, tmp_path)
    shelf.asked.clear()

    fetched(shelf, tmp_path)
    assert shelf.asked == []

    shelf.files["config.json"], shelf.versions["config.json"] = b"[]", "v2"
    fetched(shelf, tmp_path)
    assert shelf.asked == [("config.json", 0)]
    assert (tmp_path / "config.json").read_bytes() == b"[]"


def test_verifying_finds_what_rotted_on_the_disk(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS})
    fetched(shelf, tmp_path)
    (tmp_path / "model.gguf").write_bytes(WEIGHTS[:-1] + b"?")

    fetched(shelf, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() != WEIGHTS
    fetched(shelf, tmp_path, verify=True)
    assert (tmp_path / "model.gguf").read_bytes() == WEIGHTS


def test_bytes_that_the_source_did_not_name_never_get_the_name(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS}, hashes={"model.gguf": hashlib.sha256(b"else").hexdigest()})

    with pytest.raises(StartupError, match=r"model\.gguf was damaged on its way") as caught:
        fetched(shelf, tmp_path)

    assert caught.value.reason == "ChecksumMismatch"
    assert not (tmp_path / "model.gguf").exists()
    assert list((tmp_path / ".octavo" / "parts").iterdir()) == []


def test_a_full_disk_is_told_before_the_first_byte_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 500_000))
    shelf = Shelf({"model.gguf": WEIGHTS})

    with pytest.raises(StartupError, match=r"needs 1\.0 MB more, 0\.5 MB are free in .*cache\.size") as caught:
        fetched(shelf, tmp_path)

    assert caught.value.reason == "DownloadStalled"
    assert shelf.asked == []


def test_a_source_that_is_down_does_not_matter_once_all_is_there(tmp_path: Path) -> None:
    shelf = Shelf({"model.gguf": WEIGHTS})
    fetched(shelf, tmp_path)
    shelf.is_down = True

    assert len(fetched(shelf, tmp_path)) == fetch.TRIES - 1

    with pytest.raises(StartupError, match="nobody answers"):
        fetched(shelf, tmp_path / "elsewhere")


def test_the_first_error_ends_the_other_files_too(tmp_path: Path) -> None:
    shelf = Shelf({f"{number}.safetensors": WEIGHTS for number in range(20)} | {"config.json": b"{}"})
    shelf.hashes = {f"{number}.safetensors": "0" * 64 for number in range(20)}

    with pytest.raises(StartupError):
        fetched(shelf, tmp_path)

    assert len(shelf.asked) < 20


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with folder.locked(tmp_path, lambda *_: None, lambda _: None):
            entered.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(20)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        leave.set()
        holder.join(20)

    fetch_files(Shelf({"model.gguf": WEIGHTS}), tmp_path, None, lambda *_: None, sleep=wait)

    assert len(waits) == 1


@pytest.mark.parametrize(
    ("names", "patterns", "expected"),
    [
        (["a.gguf"], None, ["a.gguf"]),
        (["config.json", "a.safetensors", "a.bin", "x.gguf"], None, ["config.json", "a.safetensors"]),
        (["config.json", "x.gguf"], None, ["config.json", "x.gguf"]),
        (["config.json", "a.safetensors", "sub/b.safetensors"], ["a.*"], ["a.safetensors"]),
    ],
)
def test_what_serving_reads_is_chosen(names: list[str], patterns: list[str] | None, expected: list[str]) -> None:
    files = [RemoteFile(name=name, size=1) for name in names]

    assert [file.name for file in choose_files(files, patterns, "x")] == expected


@pytest.mark.parametrize("name", ["../x.gguf", "/x.gguf", "a/../../x.gguf", ".octavo/x.gguf", "a//x.gguf", "a\\x.gguf"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(StartupError, match="no path in a folder"):
        choose_files([RemoteFile(name=name, size=1)], None, "x")


def test_a_process_that_is_killed_in_the_middle_goes_on(tmp_path: Path) -> None:
    """The command itself, by SIGKILL, over HTTPS."""
    tls, authority = own_authority(tmp_path)
    data = WEIGHTS * 8
    site = Site({"/model.gguf": data})
    site.holds_after = 3 * 2**20
    parts = tmp_path / "m" / ".octavo" / "parts"
    with running_site(site, tls):
        argv = [sys.executable, "-m", "octavo_cli", "download", f"{site.url}/model.gguf", "--to", str(tmp_path / "m")]
        env = {**os.environ, "SSL_CERT_FILE": str(authority)}
        with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not any(path.stat().st_size for path in parts.glob("*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        (part,) = parts.iterdir()
        assert 0 < part.stat().st_size < len(data)
        assert not (tmp_path / "m" / "model.gguf").exists()
        site.holds_after = None
        site.asked.clear()

        subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)

    assert (tmp_path / "m" / "model.gguf").read_bytes() == data
    assert site.asked[-1][1] > 0
