"""`octavo serve URI`: the model is fetched where it belongs, only once, and is the one that was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_server.config import EngineConfig
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError, StartupError
from octavo_server.sources import fetch
from octavo_server.sources.locate import locate_model, locate_tokenizer
from octavo_testing.hub import FILES, Hub, running_hub
from octavo_testing.sites import Registry, running_site

CHECKSUM = f"sha256:{hashlib.sha256(b'GGUF').hexdigest()}"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("OCI_PLAIN_HTTP", "true")
    monkeypatch.setattr(fetch, "FIRST_WAIT_S", 0.0)
    registry = Registry()
    with running_site(registry):
        registry.push("org/model", "v1", {"config.json": b"{}", "a.safetensors": b"a", "b.safetensors": b"b"})
        registry.push("org/small", "v1", {"small.gguf": b"GGUF"})
        yield registry


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield running


def test_progress_tells_of_the_download(registry: Registry, tmp_path: Path) -> None:
    progress = StartupProgress()

    path = locate_model(
        EngineConfig(model=f"oci://{registry.address}/org/model:v1", download_dir=str(tmp_path)), progress
    )

    assert path.is_relative_to(tmp_path)
    assert (progress.stage, progress.bytes, progress.total_bytes) == ("downloading", 4, 4)


def test_a_second_start_fetches_nothing_even_without_a_network(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = EngineConfig(model=f"oci://{registry.address}/org/small:v1")
    first = locate_model(config, StartupProgress())
    registry.asked.clear()
    registry.statuses = [503] * 100
    registry.manifests.clear()

    with pytest.raises(StartupError, match="does not exist"):
        locate_model(config, StartupProgress())
    registry.push("org/small", "v1", {"small.gguf": b"GGUF"})

    assert locate_model(config, StartupProgress()) == first
    assert registry.asked == []
    assert first.is_relative_to(tmp_path / "octavo" / "models")


def test_weight_files_choose_among_the_weights_alone(registry: Registry, tmp_path: Path) -> None:
    config = EngineConfig(
        model=f"oci://{registry.address}/org/model:v1", download_dir=str(tmp_path), weight_files=("a.*",)
    )

    path = locate_model(config, StartupProgress())

    assert {each.name for each in path.iterdir() if each.is_file()} == {"config.json", "a.safetensors"}


def test_the_hub_s_files_go_to_the_folder_that_is_named(hub: Hub, tmp_path: Path) -> None:
    config = EngineConfig(model="org/model", download_dir=str(tmp_path / "models"), weight_files=("*.bin",))

    path = locate_model(config, StartupProgress())

    assert path.parent == tmp_path / "models"
    assert (path / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]
    assert not (path / "model.safetensors").exists()


def test_only_the_expected_model_is_served(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    for model in (str(tmp_path / "small.gguf"), "org/model/weights/small.gguf"):
        locate_model(EngineConfig(model=model, model_checksum=CHECKSUM), StartupProgress())
        with pytest.raises(StartupError, match=f"its checksum is {CHECKSUM}") as caught:
            locate_model(EngineConfig(model=model, model_checksum="sha256:" + "0" * 64), StartupProgress())
        assert caught.value.reason == "ChecksumMismatch"


def test_what_has_no_meaning_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="--revision is for models of the hub"):
        locate_model(EngineConfig(model="s3://bucket/x", revision="v1"), StartupProgress())
    with pytest.raises(ConfigError, match="--tokenizer is a folder"):
        locate_tokenizer(EngineConfig(model="x", tokenizer="s3://bucket/x"), Path("x"), StartupProgress())
