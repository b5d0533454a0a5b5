"""What a person may write for a model, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_server.errors import ConfigError
from octavo_server.sources.locate import with_revision
from octavo_server.sources.uri import Artifact, BucketModel, HubModel, Source, WebModel, parse_source

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubModel(repository="org/name")),
        ("org/name@v1.2", HubModel(repository="org/name", revision="v1.2")),
        ("hf://org/name", HubModel(repository="org/name")),
        ("hf://org/na-me_1.5@refs/pr/3", HubModel(repository="org/na-me_1.5", revision="refs/pr/3")),
        ("hf://org/name/q4/a.gguf@main", HubModel(repository="org/name", file="q4/a.gguf", revision="main")),
        ("https://host/a/m.gguf?sig=1", WebModel(url="https://host/a/m.gguf?sig=1")),
        ("https://host/a/", WebModel(url="https://host/a/")),
        ("s3://bucket/a/b/", BucketModel(scheme="s3", bucket="bucket", path="a/b")),
        ("gs://bucket/a.gguf", BucketModel(scheme="gs", bucket="bucket", path="a.gguf")),
        ("oci://r.io:5000/o/m", Artifact(registry="r.io:5000", repository="o/m", reference="latest")),
        ("oci://r.io/o/m:v1", Artifact(registry="r.io", repository="o/m", reference="v1")),
        (f"oci://r/m:v1@{DIGEST}", Artifact(registry="r", repository="m", reference=DIGEST)),
        ("file:///models/a b", Path("/models/a b")),
        ("/models/a", Path("/models/a")),
        ("model", Path("model")),
        ("a/b/c", Path("a/b/c")),
    ],
)
def test_a_name_is_read(text: str, expected: Source) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("az://bucket/model", "az:// is not supported as a source of models; supported are hf://"),
        ("http://host/model.gguf", "http:// is not supported"),
        ("https://host/model", "write https://HOST/FILE.gguf or https://HOST/FOLDER/"),
        ("https://me:pw@host/m.gguf", "write https://HOST"),
        ("s3://bucket", "write s3://BUCKET/PATH"),
        ("gs://B/x", "write gs://BUCKET/PATH"),
        ("oci://registry", "write oci://REGISTRY/REPOSITORY"),
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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://org/name", "org/name"),
        ("https://host/a/my%20m.gguf?x", "my m"),
        ("https://host/models/qwen/", "qwen"),
        ("s3://bucket/models/qwen/", "qwen"),
        ("oci://r/org/qwen:v1", "qwen"),
    ],
)
def test_what_clients_call_it_when_nobody_said(text: str, name: str) -> None:
    source = parse_source(text)

    assert not isinstance(source, Path)
    assert source.name == name
