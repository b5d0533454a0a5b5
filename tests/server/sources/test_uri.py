"""What a person may write for a model, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_server.errors import ConfigError
from octavo_server.sources.locate import with_revision
from octavo_server.sources.uri import HubModel, parse_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubModel(repository="org/name")),
        ("org/name@v1.2", HubModel(repository="org/name", revision="v1.2")),
        ("hf://org/name", HubModel(repository="org/name")),
        ("hf://org/na-me_1.5@refs/pr/3", HubModel(repository="org/na-me_1.5", revision="refs/pr/3")),
        ("hf://org/name/q4/a.gguf@main", HubModel(repository="org/name", file="q4/a.gguf", revision="main")),
        ("file:///models/a b", Path("/models/a b")),
        ("/models/a", Path("/models/a")),
        ("model", Path("model")),
        ("a/b/c", Path("a/b/c")),
    ],
)
def test_a_name_is_read(text: str, expected: HubModel | Path) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://bucket/model", "s3:// is not supported as a source of models; supported are hf://"),
        ("https://host/model", "https:// is not supported"),
        ("hf://name", "write hf://ORG/NAME"),
        ("hf://org/name@", "write hf://ORG/NAME"),
        ("file://models", "three slashes"),
    ],
)
def test_what_is_no_source_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_source(text)


def test_a_path_that_exists_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)

    assert parse_source("org/model") == Path("org/model")
    assert parse_source("hf://org/model") == HubModel(repository="org/model")


def test_the_flag_says_the_revision_where_the_name_does_not() -> None:
    plain, named = HubModel(repository="o/n"), HubModel(repository="o/n", revision="v1")

    assert with_revision(plain, "v1") == named
    assert with_revision(named, None) == named
    assert with_revision(named, "v1") == named
    with pytest.raises(ConfigError, match="--revision v2 contradicts @v1"):
        with_revision(named, "v2")
