"""A model from an object store: what it waits for is said, its way onto the claim is seen, and then it answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e.cases.sources.store import STORAGE_CLASS, secret, store_objects, volume_objects
from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.octavo import Octavo
from e2e.cluster.paths import model_path
from e2e.cluster.waiting import wait_until

pytestmark = pytest.mark.e2e

MANIFEST = Path(__file__).with_name("modeldeployment.yaml")


@pytest.fixture
def stored(octavo: Octavo, namespace: str) -> Iterator[Model]:
    """Its store runs and its volume is there; its Secret is not."""
    target = octavo.target
    if target.lab is None or target.lab.images:
        pytest.skip("the store is made of this checkout's image, and the volume is a folder of its node")
    folder = target.lab.folder / "volume"
    folder.mkdir(mode=0o755)
    target.kubectl.apply(volume_objects(namespace, folder))
    target.kubectl.apply(store_objects(), namespace=namespace)
    target.kubectl("wait", "pod/s3", "--for=condition=Ready", f"--namespace={namespace}", "--timeout=60s")
    yield apply_model(octavo, read_manifest(MANIFEST, octavo), namespace)
    target.kubectl("delete", "modeldeployment", "stored", f"--namespace={namespace}", "--timeout=60s")
    target.kubectl("delete", "pods", "--all", f"--namespace={namespace}", "--timeout=60s")
    target.kubectl("delete", "persistentvolume", namespace, "--wait=false")
    target.kubectl("delete", "storageclass", STORAGE_CLASS)
    shutil.rmtree(folder)


def test_model_is_fetched_onto_a_claim_when_its_secret_comes_and_answers(
    stored: Model, client: openai.OpenAI, namespace: str
) -> None:
    kubectl = stored.octavo.target.kubectl
    for kind in ("ModelCached", "Ready"):
        wait_until(
            lambda kind=kind: stored.condition(kind).get("reason") == "SecretNotFound",
            f"{kind} says that the Secret is missing",
            limit_s=20,
            describe=stored.describe,
        )
    assert 'secret "models-s3" not found' in stored.condition("ModelCached")["message"]
    assert not kubectl.items("deployments", namespace=namespace)

    kubectl.apply([secret(namespace)], namespace=namespace)
    download = wait_until(
        lambda: _download_in_column(stored), "the download is seen", limit_s=60, describe=stored.describe
    )
    wait_until(
        lambda: stored.condition("ModelCached").get("status") == "True",
        "the model is on its claim",
        limit_s=60,
        describe=stored.describe,
    )
    stored.wait_ready()
    reply = client.chat.completions.create(
        model="stored", messages=[{"role": "user", "content": "Say hello."}], max_tokens=8
    )

    size = model_path().stat().st_size
    assert download["totalBytes"] == size > download["bytes"]
    assert reply.usage.completion_tokens > 0
    (claim,) = kubectl.items("persistentvolumeclaims", namespace=namespace)
    assert claim["status"]["phase"] == "Bound"
    status = wait_until(
        lambda: stored.status() if {"coldStart", "capacity"} <= stored.status().keys() else None,
        "the start and the capacity are told",
        limit_s=30,
        describe=stored.describe,
    )
    assert "download" not in status
    assert status["coldStart"]["total"].endswith("s")
    assert status["capacity"]["kvTokensPerReplica"] > 0


def _download_in_column(model: Model) -> dict[str, Any] | None:
    """What the status has of the download, once the column DOWNLOAD shows one too."""
    kubectl = model.octavo.target.kubectl
    columns = kubectl("get", "mdl", model.name, f"--namespace={model.namespace}", "--output=wide")
    download: dict[str, Any] | None = model.status().get("download")
    return download if " MB" in columns else None
