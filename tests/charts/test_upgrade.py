"""The chart's life by the real Helm on a real API server: a CustomResourceDefinition that grows, and what stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from octavo_testing.apiserver import running_apiserver, skipping_without_binaries
from octavo_testing.chart import PATHS, path_of

CHART = Path(__file__).parents[2] / "charts" / "octavo"
CRD = f"{PATHS['CustomResourceDefinition']}/modeldeployments.octavo.dev"


def an_older_chart(folder: Path) -> Path:
    """The chart as it would have been before `suspend` was a field."""
    chart = folder / "octavo"
    shutil.copytree(CHART, chart)
    crd = yaml.safe_load((chart / "files" / "crd.yaml").read_text())
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["suspend"]
    body = yaml.safe_dump({key: value for key, value in crd.items() if key != "metadata"})
    head = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n"
    metadata = "metadata:\n  name: modeldeployments.octavo.dev\n"
    rest = yaml.safe_dump({"spec": yaml.safe_load(body)["spec"]})
    (chart / "files" / "crd.yaml").write_text(head + metadata + rest)
    return chart


def test_an_upgrade_brings_new_fields_and_an_uninstall_keeps_every_model(helm, tmp_path):
    """Helm never upgrades what lies in a chart's crds/, and deletes what lies in templates: neither may happen here."""
    with skipping_without_binaries(), running_apiserver() as server:
        flags = ["--namespace=sys", f"--kubeconfig={server.kubeconfig}"]

        def knows_suspend() -> bool:
            (version,) = server.request("GET", CRD).body["spec"]["versions"]
            return "suspend" in version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]

        helm("install", "octavo", str(an_older_chart(tmp_path)), "--create-namespace", *flags)
        assert not knows_suspend()
        model = {"apiVersion": "octavo.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "qwen"}}
        models = "/apis/octavo.dev/v1alpha1/namespaces/default/modeldeployments"
        assert server.request("POST", models, {**model, "spec": {"model": "hf://org/name"}}).status == 201

        helm("upgrade", "octavo", str(CHART), *flags)
        assert knows_suspend()

        helm("uninstall", "octavo", *flags)
        assert server.request("GET", f"{models}/qwen").status == 200
        assert server.request("GET", PATHS["Deployment"].format(namespace="sys")).body["items"] == []


def test_another_release_takes_over_the_crd_that_the_one_before_left(helm, tmp_path):
    """Under another name or in another namespace, and side by side with one that keeps its own."""
    with skipping_without_binaries(), running_apiserver() as server:
        flags = ["--create-namespace", f"--kubeconfig={server.kubeconfig}"]
        helm("install", "octavo", str(CHART), "--namespace=sys", *flags)
        beside = helm("install", "second", str(CHART), "--namespace=b", *flags, check=False)
        helm("install", "second", str(CHART), "--namespace=b", "--set=crds.install=false", *flags)
        for release, namespace in (("octavo", "sys"), ("second", "b")):
            helm("uninstall", release, f"--namespace={namespace}", f"--kubeconfig={server.kubeconfig}")

        helm("install", "again", str(CHART), "--namespace=c", "--take-ownership", *flags)
        owner = server.request("GET", CRD).body["metadata"]["annotations"]["meta.helm.sh/release-name"]

    assert "invalid ownership metadata" in beside.stderr
    assert owner == "again"


@pytest.mark.parametrize("release", ["my.release", "1st", "b" * 53])
def test_every_name_that_helm_takes_for_a_release_is_one(helm, server, render, release):
    """A Service's name has no dots, and 63 letters at most."""
    for manifest in render({"crds": {"install": False}}, release=release):
        path = f"{path_of(manifest)}/{manifest['metadata']['name']}"
        query = "?dryRun=All&fieldValidation=Strict&fieldManager=helm&force=true"
        answer = server.request("PATCH", path + query, manifest, content_type="application/apply-patch+yaml")
        assert answer.status in (200, 201), answer.message
