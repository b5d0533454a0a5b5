"""Files behind https addresses, over TLS with an authority of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_server.errors import StartupError
from octavo_server.sources import fetch
from octavo_server.sources.download import Wanted, download
from octavo_testing.sites import Site, own_authority, running_site

GGUF = bytes(range(256)) * 8192
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}})
FOLDER = {
    "/m/config.json": b"{}",
    "/m/tokenizer.json": b"{}",
    "/m/model.safetensors.index.json": INDEX.encode(),
    "/m/model-1.safetensors": b"one",
    "/m/model-2.safetensors": b"two",
    "/m/pytorch_model.bin": b"never fetched",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    tls, authority = own_authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)
    site = Site({"/a%20b.gguf": GGUF, "/model.gguf": GGUF, **FOLDER})
    with running_site(site, tls):
        yield site


def get(site: Site, to: Path, path: str = "/model.gguf", checksum: str = "") -> Path:
    return download(f"{site.url}{path}", to, Wanted(checksum=checksum), lambda *_: None)


def test_one_file(site: Site, tmp_path: Path) -> None:
    path = get(site, tmp_path / "to", "/model.gguf?signature=x")

    assert path == tmp_path / "to" / "model.gguf"
    assert path.read_bytes() == GGUF


def test_a_folder_s_configuration_and_the_shards_that_its_index_names(site: Site, tmp_path: Path) -> None:
    path = get(site, tmp_path / "to", "/m/")

    assert {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()} == {
        name.removeprefix("/m/"): data for name, data in FOLDER.items() if "pytorch" not in name
    }


def test_a_connection_that_ends_early_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.cuts = [10**9, 2**20]

    path = get(site, tmp_path / "to")

    assert path.read_bytes() == GGUF
    assert [start for _, start in site.asked[:2]] == [0, 0]
    assert 0 < site.asked[2][1] < len(GGUF)


@pytest.mark.parametrize("lacks", ["has_ranges", "has_tags"])
def test_a_server_that_cannot_go_on_starts_over(site: Site, tmp_path: Path, lacks: str) -> None:
    setattr(site, lacks, False)
    site.cuts = [10**9, 2**20]

    assert get(site, tmp_path / "to").read_bytes() == GGUF


def test_a_token_goes_to_its_own_host_alone(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_BEARER_TOKEN", "secret")
    site.token = "secret"
    assert get(site, tmp_path / "to").read_bytes() == GGUF

    other = Site({"/model.gguf": GGUF})
    other.token = "secret"
    with running_site(other, site.tls):
        site.redirects = {"/moved.gguf": f"{other.url}/model.gguf"}
        with pytest.raises(StartupError, match=r"refused \(status 401\)"):
            get(site, tmp_path / "other", "/moved.gguf")


def test_a_redirect_away_from_https_is_not_followed(site: Site, tmp_path: Path) -> None:
    site.redirects = {"/model.gguf": "http://127.0.0.1:9/model.gguf"}

    with pytest.raises(StartupError, match="away from https"):
        get(site, tmp_path / "to")


@pytest.mark.parametrize(
    ("path", "statuses", "reason", "words"),
    [
        ("/absent.gguf", [], "ModelNotFound", "check the address"),
        ("/absent/", [], "ModelNotFound", "has no config.json"),
        ("/model.gguf", [403], "ModelAccessDenied", "HTTPS_BEARER_TOKEN"),
        ("/model.gguf?sig=secret", [401], "ModelAccessDenied", "sign the address anew"),
        ("/model.gguf", [503] * 5, "DownloadStalled", "status 503"),
        ("/model.gguf", [418], "ModelNotFound", "status 418"),
    ],
)
def test_says_why_it_cannot(
    site: Site, tmp_path: Path, path: str, statuses: list[int], reason: str, words: str
) -> None:
    site.statuses = statuses

    with pytest.raises(StartupError, match=words) as caught:
        get(site, tmp_path / "to", path)

    assert caught.value.reason == reason
    assert "secret" not in str(caught.value)


def test_a_server_that_is_busy_for_a_while_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]

    assert get(site, tmp_path / "to").read_bytes() == GGUF


def test_nobody_there(site: Site, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be reached") as caught:
        download("https://127.0.0.1:9/model.gguf", tmp_path, Wanted(), lambda *_: None)

    assert caught.value.reason == "DownloadStalled"


def test_a_certificate_that_nobody_signed_is_not_trusted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(StartupError, match=r"certificate") as caught:
        get(site, tmp_path / "to")
    assert caught.value.reason == "DownloadStalled"


@pytest.mark.parametrize(("path", "checksum"), [("/model.gguf", "sha256:" + "0" * 64), ("/m/", "sha256:" + "1" * 64)])
def test_another_model_than_the_expected_is_told_with_both_sums(
    site: Site, tmp_path: Path, path: str, checksum: str
) -> None:
    with pytest.raises(StartupError, match=f"not {checksum}") as caught:
        get(site, tmp_path / "to", path, checksum)

    assert caught.value.reason == "ChecksumMismatch"
    found = str(caught.value).partition("its checksum is ")[2].partition(",")[0]
    get(site, tmp_path / "to", path, found)
