"""`kubectl octavo` as a program: flags, a real API server, a real operator, and what is said when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl.cluster import connect
from octavo_testing import keda
from octavo_testing.apiserver import ApiServer, BinariesMissingError, apiserver_with_crd
from octavo_testing.chart import install_optional_kinds
from octavo_testing.operator_process import Namespace, running_operator, until

PATIENCE_S = 120.0
"""A process that starts on a busy machine."""
ENV = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}


def octavo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo_cli.kubectl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**ENV, **env})


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with apiserver_with_crd() as server:
        yield server


# Flags


@pytest.mark.parametrize(
    ("arguments", "namespace", "context"),
    [
        (["-n", "team", "status"], "team", ""),
        (["status", "-n", "team", "--context=c"], "team", "c"),
        (["-n", "first", "status", "--namespace=second"], "second", ""),
        (["--context", "c", "status"], "", "c"),
    ],
)
def test_kubectls_flags_stand_before_or_after_the_command(arguments: list[str], namespace: str, context: str) -> None:
    given, _ = plugin.parser().parse_known_args(arguments)

    assert (given.command, given.namespace, given.context) == ("status", namespace, context)


def test_help_loads_no_package_of_the_cluster() -> None:
    code = (
        "import sys\nfrom octavo_cli.kubectl.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'kubernetes', 'rich', 'aiohttp', 'octavo_server', 'torch'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert all(f"\n    {name} " in ran.stdout for name in plugin.COMMANDS)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_each_command_explains_its_own_arguments() -> None:
    helped = octavo("logs", "--help")

    assert helped.returncode == 0
    assert "usage: kubectl octavo logs" in helped.stdout
    assert "--previous" in helped.stdout


def test_the_distribution_brings_the_program() -> None:
    scripts = (Path(__file__).parents[3] / "pyproject.toml").read_text()

    assert 'kubectl-octavo = "octavo_cli.kubectl.__main__:main"' in scripts


# Without a cluster


def test_without_a_cluster_one_line_says_what_to_do(tmp_path: Path) -> None:
    nothing = octavo("status", "--kubeconfig", str(tmp_path / "absent"))
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (tmp_path / "away").write_text(yaml.safe_dump(config))
    away = octavo("status", KUBECONFIG=str(tmp_path / "away"))

    assert (nothing.returncode, away.returncode) == (1, 1)
    assert "name one with --kubeconfig and --context" in nothing.stderr
    assert "https://127.0.0.1:1 does not answer" in away.stderr
    assert nothing.stderr.count("\n") == away.stderr.count("\n") == 1


# Against a real one


def test_the_contexts_namespace_is_the_default(server: ApiServer, tmp_path: Path) -> None:
    Namespace(server, "plugin-home").create("alone", suspend=True)
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = "plugin-home"
    (tmp_path / "config").write_text(yaml.safe_dump(config))

    shown = octavo("status", KUBECONFIG=str(tmp_path / "config"))

    assert "plugin-home/alone" in shown.stdout
    Namespace(server, "plugin-home").clear()


def test_a_models_life_as_the_plugin_tells_it(server: ApiServer, tmp_path: Path) -> None:
    """Status, pause, resume and rollout, with the real operator behind; its revisions are what it keeps."""
    namespace = Namespace(server, "plugin-life")
    flags = [f"--kubeconfig={server.kubeconfig}", "--namespace=plugin-life"]
    with running_operator(server, tmp_path / "operator.log", "--metrics-adapter=false"):
        namespace.create("qwen")
        until(lambda: namespace.condition("qwen"), bool, within_s=PATIENCE_S)
        deployment = namespace.deployment_of("qwen")

        shown = octavo("status", "qwen", *flags)
        assert shown.returncode == 0, shown.stderr
        assert "plugin-life/qwen  0/1 ready  Creating" in shown.stdout
        assert f"revision {deployment['metadata']['name'].removeprefix('qwen-')}" in shown.stdout
        assert octavo("rollout", "status", "qwen", *flags).returncode == 1

        ready = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        namespace.add_pod(deployment, "qwen-1", ready)
        until(lambda: namespace.condition("qwen"), lambda found: found["status"] == "True", within_s=PATIENCE_S)
        watched = octavo("rollout", "status", "qwen", "--watch", "--timeout=60", *flags)
        assert watched.returncode == 0, watched.stderr
        assert "RolledOut" in watched.stdout
        assert "qwen-1  Ready" in octavo("status", "qwen", *flags).stdout

        paused = octavo("rollout", "pause", "qwen", *flags)
        assert "qwen rests" in paused.stdout
        until(
            lambda: namespace.condition("qwen", "Progressing"),
            lambda found: found.get("reason") == "Suspended",
            within_s=PATIENCE_S,
        )
        octavo("rollout", "resume", "qwen", *flags)
        assert namespace.get("ModelDeployment", "qwen")["spec"]["suspend"] is False  # type: ignore[index]


def test_undo_is_accepted_by_the_api_server_and_refused_to_who_comes_late(server: ApiServer) -> None:
    """Replaces the spec whole, with every default and cross-field rule of the schema, or not at all."""
    namespace = Namespace(server, "plugin-undo")
    namespace.create("qwen", model="hf://org/new", replicas=2, servedNames=["a"])
    labels = {
        "app.kubernetes.io/managed-by": "octavo",
        "octavo.dev/modeldeployment": "qwen",
        "octavo.dev/revision": "r1",
    }
    kept = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": "qwen-r1", "labels": labels},
        "revision": 1,
        "data": {"spec": {"model": "hf://org/old", "drain": {"timeout": "5s"}}, "template": {}},
    }
    path = "/apis/apps/v1/namespaces/plugin-undo/controllerrevisions"
    assert server.request("POST", path, kept).status == 201

    ran = octavo("rollout", "undo", "qwen", f"--kubeconfig={server.kubeconfig}", "-n", "plugin-undo")

    spec = namespace.get("ModelDeployment", "qwen")["spec"]  # type: ignore[index]
    assert ran.returncode == 0, ran.stderr
    assert (spec["model"], spec["drain"], spec["replicas"]) == ("hf://org/old", {"timeout": "5s"}, 2)
    assert "servedNames" not in spec


def test_doctor_fails_on_a_cluster_without_octavo_and_says_what_to_do(server: ApiServer) -> None:
    ran = octavo("doctor", f"--kubeconfig={server.kubeconfig}")

    assert ran.returncode == 1
    assert "✔  CRD" in ran.stdout
    assert "no Deployment of the operator is found" in ran.stdout
    assert "→ install the chart" in ran.stdout
    assert "nobody serves custom.metrics.k8s.io" in ran.stdout


def test_what_keda_writes_is_shown_as_its_own_definition_lets_it_be_written(server: ApiServer) -> None:
    """By the CustomResourceDefinition of KEDA 2.21, which drops what it does not know; KEDA itself is not there."""
    try:
        install_optional_kinds(server)
    except BinariesMissingError as error:
        pytest.skip(str(error))
    namespace, flags = Namespace(server, "plugin-keda"), (f"--kubeconfig={server.kubeconfig}", "-n", "plugin-keda")
    scaling = {"maxReplicas": 4, "backend": "KEDA"}
    made = namespace.create("qwen", scaling=scaling)
    scaled = keda.a_scaled_object(namespace="plugin-keda")
    scaled["metadata"]["ownerReferences"][0]["uid"] = made["metadata"]["uid"]
    namespace.post("ScaledObject", scaled)

    before = octavo("status", "qwen", *flags).stdout
    status = keda.a_status(keda.TRIGGER_ERROR, keda.IDLE, keda.FALLBACK, keda.NOT_PAUSED, keda.HPA_FAILS)
    written = namespace.patch("ScaledObject", "qwen", {"status": status}, subresource="status")
    after = octavo("status", "qwen", *flags).stdout
    judged = " ".join(octavo("doctor", *flags).stdout.split())

    assert written["status"] == status
    assert "autoscaler ScaledObject qwen  1…4" in before
    assert "KEDA has not looked at it" in before
    assert "✘ Ready TriggerError Triggers defined in ScaledObject are not working correctly" in after
    assert "· Active ScalerNotActive" in after
    assert "✘ HPAActive FailedGetExternalMetric" in after
    assert "keda.sh is served, but no Deployment keda-operator is found; qwen cannot be scaled" in judged
    assert "ScaledObject qwen Ready is False: Triggers defined in ScaledObject are not working correctly" in judged


@pytest.mark.parametrize(
    "content",
    [b"{}", b"\xff\xfe", b"[]", b"a: [", b"clusters: 3", b"current-context: c\ncontexts: [3]\n", b"apiVersion: v1"],
    ids=str,
)
def test_a_file_that_is_no_kubeconfig_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_bytes(content)

    with pytest.raises(CliError, match=r"^no cluster to talk to: .+; name one with --kubeconfig and --context$"):
        connect(kubeconfig=str(file), context="", namespace="").__enter__()


def test_a_kubeconfig_that_is_not_accepted_is_told_as_that(server: ApiServer, tmp_path: Path) -> None:
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": "forged"}
    (tmp_path / "config").write_text(yaml.safe_dump(config))

    ran = octavo("status", f"--kubeconfig={tmp_path / 'config'}")

    assert ran.returncode == 1
    assert "credentials are not accepted, log in again" in ran.stderr
