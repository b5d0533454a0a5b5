"""Artifacts by the distribution protocol: their layers are files; login by the token protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_server.errors import StartupError
from octavo_server.sources import fetch
from octavo_server.sources.download import Wanted, download
from octavo_testing.sites import Registry, running_site

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 8192, "README.md": b"never fetched"}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("OCI_PLAIN_HTTP", "true")
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)
    registry = Registry()
    with running_site(registry):
        yield registry


def pull(registry: Registry, to: Path, name: str = "org/model:v1", checksum: str = "") -> Path:
    return download(f"oci://{registry.address}/{name}", to, Wanted(checksum=checksum), lambda *_: None)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_layers_that_serving_reads_land_under_their_names(registry: Registry, tmp_path: Path) -> None:
    registry.push("org/model", "v1", FILES)

    path = pull(registry, tmp_path)

    assert names(path) == {"config.json", "model.safetensors"}
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    "layer",
    [
        {
            "annotations": {"org.cncf.model.filepath": "model.gguf"},
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        },
        {"mediaType": "application/vnd.docker.ai.gguf.v3"},
    ],
    ids=["CNCF model spec", "docker model"],
)
def test_other_ways_to_say_how_a_file_is_called(registry: Registry, tmp_path: Path, layer: dict[str, object]) -> None:
    registry.push_layers("org/model", "v1", [{**layer, "data": b"GGUF"}])

    assert pull(registry, tmp_path) == tmp_path / "model.gguf"


def test_a_login_is_exchanged_for_a_token_and_a_token_that_ends_for_another(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("org/model", "v1", FILES)
    registry.login = ("me", "secret")
    with pytest.raises(StartupError, match="OCI_USERNAME") as caught:
        pull(registry, tmp_path)
    assert caught.value.reason == "ModelAccessDenied"
    monkeypatch.setenv("OCI_USERNAME", "me")
    monkeypatch.setenv("OCI_PASSWORD", "secret")

    assert names(pull(registry, tmp_path)) == {"config.json", "model.safetensors"}
    assert registry.tokens == 1


def test_a_blob_is_gone_on_with(registry: Registry, tmp_path: Path) -> None:
    registry.push("org/model", "v1", {"model.gguf": FILES["model.safetensors"]})
    registry.cuts = [2**20]

    assert pull(registry, tmp_path).read_bytes() == FILES["model.safetensors"]
    assert [start > 0 for _, start in registry.asked] == [False, True]


def test_a_damaged_blob_is_not_taken(registry: Registry, tmp_path: Path) -> None:
    registry.push("org/model", "v1", FILES)
    digest = next(digest for digest, data in registry.blobs.items() if data == b"{}")
    registry.blobs[digest] = b"[]"

    with pytest.raises(StartupError, match=r"config\.json was damaged") as caught:
        pull(registry, tmp_path)
    assert caught.value.reason == "ChecksumMismatch"


def test_the_checksum_is_that_of_the_manifest(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push("org/model", "v1", FILES)

    pull(registry, tmp_path, checksum=digest)
    pull(registry, tmp_path, f"org/model@{digest}")

    with pytest.raises(StartupError, match=f"its checksum is {digest}"):
        pull(registry, tmp_path, checksum="sha256:" + "0" * 64)


def test_another_manifest_than_the_one_that_was_named_is_refused(registry: Registry, tmp_path: Path) -> None:
    digest = registry.push("org/model", "v1", FILES)
    other = registry.push("org/other", "v1", {"a.gguf": b"x"})
    registry.manifests[f"org/model:{digest}"] = registry.manifests["org/other:v1"]

    with pytest.raises(StartupError, match=f"gave a manifest with {other}"):
        pull(registry, tmp_path, f"org/model@{digest}")


@pytest.mark.parametrize(
    ("layers", "reason", "words"),
    [
        (None, "ModelNotFound", "does not exist"),
        ([], "ModelInvalid", "no artifact with layers"),
        (
            [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "data": b"x"}],
            "ModelInvalid",
            "cache.type Image",
        ),
        ([{"mediaType": "text/plain", "data": b"x"}], "ModelInvalid", "with no name"),
        (
            [{"mediaType": "a/b", "annotations": {"org.opencontainers.image.title": "../x.gguf"}, "data": b"x"}],
            "ModelInvalid",
            "no path in a folder",
        ),
    ],
)
def test_says_why_it_cannot(
    registry: Registry, tmp_path: Path, layers: list[dict[str, object]] | None, reason: str, words: str
) -> None:
    if layers is not None:
        registry.push_layers("org/model", "v1", layers)

    with pytest.raises(StartupError, match=words) as caught:
        pull(registry, tmp_path)
    assert caught.value.reason == reason
