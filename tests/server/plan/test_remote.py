"""Plans of models that lie elsewhere: what describes them is read, and no more of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError, StartupError
from octavo_server.plan.command import plan_model
from octavo_server.plan.memory import MemoryPlan
from octavo_testing import hub as hubs
from octavo_testing.gguf_files import RandomModel, write_gguf
from octavo_testing.model_shapes import QWEN3_06B, SMALL_LLAMA
from octavo_testing.sites import Site, own_authority, running_site

SIZES = {**SMALL_LLAMA, "num_hidden_layers": 1}
MIB = 2**20


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    tls, authority = own_authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    site = Site({"/m/config.json": json.dumps(QWEN3_06B).encode()})
    with running_site(site, tls):
        yield site


def a_file(path: Path, num_tokens: int) -> bytes:
    """A GGUF of Q8_0 blocks, the header of which holds so many tokens of 100 bytes each."""
    tokens = [f"{index:0100}" for index in range(num_tokens)]
    write_gguf(path, RandomModel(SIZES), "llama", Kind.Q8_0, add_token_list=tokens)
    return path.read_bytes()


def planned(model: str) -> MemoryPlan:
    return plan_model(EngineConfig(model=model, quantization="int8"), gpu="48GiB").memory


def test_of_a_folder_behind_an_address_the_configuration_is_read(site: Site) -> None:
    assert planned(f"{site.url}/m/").model.num_parameters == 596_049_920


@pytest.mark.parametrize("num_tokens", [10, 20_000], ids=["small header", "header of several pieces"])
def test_of_a_gguf_file_the_header_is_read_and_the_weights_are_not(site: Site, tmp_path: Path, num_tokens: int) -> None:
    """What comes after the first MiB, or four, never arrives."""
    data = a_file(tmp_path / "model.gguf", num_tokens)
    site.files["/model.gguf"] = data + bytes(8 * MIB)
    # The first answer is looked at for the size alone.
    site.cuts = [len(data), MIB if num_tokens == 10 else 4 * MIB]

    plan = planned(f"{site.url}/model.gguf")

    assert plan.weight_bytes == planned(str(tmp_path / "model.gguf")).weight_bytes
    assert len(site.cuts) == 0


def test_what_is_no_gguf_is_told(site: Site) -> None:
    site.files["/model.gguf"] = b"nothing" * 1000

    with pytest.raises(StartupError, match="no GGUF file"):
        planned(f"{site.url}/model.gguf")


def test_a_revision_is_for_the_hub() -> None:
    with pytest.raises(ConfigError, match="--revision is for models of the hub"):
        plan_model(EngineConfig(model="https://host/model.gguf", revision="main"), gpu="L4")
    with pytest.raises(ConfigError, match="--revision v1 contradicts @v2"):
        plan_model(EngineConfig(model="hf://org/model@v2", revision="v1"), gpu="L4")


def test_of_a_repository_on_the_hub_its_configuration_alone_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hubs.FILES, "config.json", json.dumps(QWEN3_06B).encode())

    found, fetched = of_the_hub("hf://org/model", tmp_path)

    assert found["parameters"] == 596_049_920
    assert fetched == ["config.json"]


def test_of_a_file_on_the_hub_the_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hubs.FILES, "weights/small.gguf", a_file(tmp_path / "model.gguf", 10) + bytes(4 * MIB))

    found, _ = of_the_hub("org/model/weights/small.gguf", tmp_path)

    assert found["weight_bytes"] == planned(str(tmp_path / "model.gguf")).weight_bytes


def of_the_hub(model: str, home: Path) -> tuple[dict[str, object], list[str]]:
    """The plan, and the files that were asked for, in a process of its own: the library reads its variables on import."""
    argv = [sys.executable, "-m", "octavo_server", "plan", model, "--gpu", "48GiB", "--quantization", "int8", "--json"]
    with hubs.running_hub() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout), hub.fetched
