"""Against a local server that speaks the hub's protocol, through the library that people use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_server.errors import StartupError
from octavo_server.sources.hub import TEXT_FILES, fetch_model
from octavo_server.sources.uri import HubModel
from octavo_testing.hub import FILES, Hub, running_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def _fetch(
    hub: Hub, repository: str = "org/model", file: str = "", revision: str | None = None
) -> tuple[Path, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    model = HubModel(repository=repository, file=file, revision=revision)
    path = fetch_model(model, on_bytes=lambda *pair: seen.append(pair), endpoint=hub.url)
    return path, seen


def test_fetches_what_serving_reads_and_nothing_else(hub: Hub) -> None:
    path, _ = _fetch(hub)

    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_counts_every_byte(hub: Hub) -> None:
    _, seen = _fetch(hub)

    total = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_second_start_fetches_nothing(hub: Hub) -> None:
    _fetch(hub)
    hub.fetched.clear()

    _fetch(hub)

    assert hub.fetched == []


def test_what_is_in_the_cache_needs_no_network(hub: Hub) -> None:
    first, _ = _fetch(hub)
    hub.url = "http://127.0.0.1:9"

    again, _ = _fetch(hub)

    assert again == first


def test_one_gguf_file_of_a_repository(hub: Hub) -> None:
    path, _ = _fetch(hub, file="weights/small.gguf")

    assert path.read_bytes() == b"GGUF"
    assert hub.fetched == ["weights/small.gguf"]


@pytest.mark.parametrize(
    ("name", "revision", "refusal", "reason", "words"),
    [
        ("org/other", None, None, "ModelNotFound", "no model org/other"),
        ("org/model", "v9", None, "ModelNotFound", "no revision v9"),
        ("org/model/absent.gguf", None, None, "ModelNotFound", "no file absent.gguf"),
        ("org/model", None, (403, "GatedRepo"), "ModelAccessDenied", "HF_TOKEN"),
        ("org/model", None, (503, ""), "DownloadStalled", "org/model"),
    ],
)
def test_says_why_it_cannot(
    hub: Hub, name: str, revision: str | None, refusal: tuple[int, str] | None, reason: str, words: str
) -> None:
    hub.refusal = refusal

    with pytest.raises(StartupError, match=words) as caught:
        _fetch(hub, "/".join(name.split("/")[:2]), name.partition("model/")[2], revision)

    assert caught.value.reason == reason


def test_configuration_and_tokenizer_without_weights(hub: Hub) -> None:
    fetch_model(HubModel(repository="org/model"), on_bytes=lambda *_: None, files=TEXT_FILES, endpoint=hub.url)

    assert sorted(hub.fetched) == ["config.json", "tokenizer.json"]
