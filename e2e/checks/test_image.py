"""Images made by the standard library: what a container runtime reads, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from e2e.cluster.image import Content, write_archive
from e2e.cluster.mounts import binds, with_mounts

CONTENT = Content(
    folders=["tmp", "usr"],
    links={"bin": "usr/bin"},
    files={"hello": b"#!/bin/sh\n"},
    entrypoint=["/hello"],
    variables=["A=1"],
)


def test_config_names_the_layer_by_its_own_digest(tmp_path: Path) -> None:
    with tarfile.open(write_archive(tmp_path / "image.tar", ["x.local/a:1", "x.local/b:1"], CONTENT)) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]
        config_bytes = archive.extractfile(manifest["Config"]).read()
        layer = archive.extractfile(manifest["Layers"][0]).read()

    config = json.loads(config_bytes)
    assert f"{hashlib.sha256(config_bytes).hexdigest()}.json" == manifest["Config"]
    assert [f"sha256:{hashlib.sha256(layer).hexdigest()}"] == config["rootfs"]["diff_ids"]
    assert manifest["RepoTags"] == ["x.local/a:1", "x.local/b:1"]
    assert (config["config"]["Entrypoint"], config["config"]["Env"]) == (["/hello"], ["A=1"])


def test_layer_holds_folders_links_and_programs(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "image.tar", ["x.local/a:1"], CONTENT)
    with tarfile.open(path) as archive, tarfile.open(fileobj=archive.extractfile("layer.tar")) as layer:
        members = {member.name: member for member in layer.getmembers()}

    assert members["tmp"].mode == 0o1777
    assert members["bin"].linkname == "usr/bin"
    assert members["hello"].mode == 0o755


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    archives = [write_archive(tmp_path / name, ["x.local/a:1"], CONTENT).read_bytes() for name in ("one", "two")]

    assert archives[0] == archives[1]


def test_containers_get_the_code_read_only_beside_their_default_mounts() -> None:
    spec = with_mounts({"ociVersion": "1.0.2", "mounts": [{"destination": "/proc"}]}, binds())

    ours = spec["mounts"][1:]
    assert spec["mounts"][0] == {"destination": "/proc"}
    assert {str(destination) for destination in binds()} == {mount["destination"] for mount in ours}
    assert all("ro" in mount["options"] for mount in ours)
    assert "/opt/octavo/src/operator" in {mount["destination"] for mount in ours}
