"""One cluster for all cases of a session; what a case leaves in it is removed, what failed is written down."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from e2e.cluster.artifacts import artifacts_dir, collect
from e2e.cluster.errors import UnavailableError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.lab import Lab, exclusive
from e2e.cluster.models import Model, apply_model, read_manifest
from e2e.cluster.mounts import check_mountable
from e2e.cluster.octavo import Octavo, install, reach
from e2e.cluster.paths import model_path
from e2e.cluster.target import KUBECONFIG_VARIABLE, Target, existing_target, own_target
from e2e.cluster.tools import Say
from e2e.cluster.waiting import wait_until

CASES = (
    "bare_node",
    "refused",
    "no_gpu",
    "gpu_shapes",
    "chat",
    "load",
    "kubectl",
    "bad_model",
    "replacement",
    "rollouts",
    "deletion",
    "autoscaling",
    "scale_to_zero",
    "sources",
    "chart",
)
"""Folders of e2e/cases in the order in which a person would meet them; the chart's goes last, it uninstalls."""

_CASES_FOLDER = Path(__file__).parent / "cases"
_MANIFEST = _CASES_FOLDER / "modeldeployment.yaml"
_TARGET = pytest.StashKey[Target]()


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The running cluster. Where none can run, every case counts as skipped and says why."""
    say = _terminal_line(request.config)
    existing = os.environ.get(KUBECONFIG_VARIABLE)
    with _existing(existing, say) if existing else _own(say) as found:
        request.config.stash[_TARGET] = found
        yield found
        del request.config.stash[_TARGET]


@contextmanager
def _existing(kubeconfig: str, say: Say) -> Iterator[Target]:
    yield existing_target(kubeconfig, say)


@contextmanager
def _own(say: Say) -> Iterator[Target]:
    with exclusive("e2e", say):
        lab = Lab("e2e", say)
        try:
            check_mountable()
            lab.start()
        except UnavailableError as lack:
            pytest.skip(f"no cluster here: {lack}")
        try:
            yield own_target(lab)
        finally:
            lab.stop()
        assert lab.leftovers() == []


@pytest.fixture(scope="session")
def octavo(target: Target) -> Iterator[Octavo]:
    """The chart, installed with the real helm. The chart's own cases uninstall it."""
    if target.lab is not None and not model_path().exists():
        pytest.fail(f"{model_path()} is missing; run ./scripts/test once, which fetches it, or set OCTAVO_TEST_MODEL")
    install(target)
    with reach(target) as release:
        yield release


@pytest.fixture(scope="session")
def smol(octavo: Octavo) -> Iterator[Model]:
    """The real small model, Ready, in a namespace of its own; several cases share it."""
    with _namespace(octavo.target.kubectl, "e2e-models") as name:
        model = apply_model(octavo, read_manifest(_MANIFEST, octavo), name)
        model.wait_ready()
        yield model


@pytest.fixture
def client(octavo: Octavo) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, pointed at the gateway. It retries nothing: a failed request must be seen."""
    base_url = f"{octavo.gateway_url}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def namespace(target: Target, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the case's own, gone when the case ends."""
    case = re.sub(r"[^a-z0-9]+", "-", request.node.path.parent.name.lower()).strip("-")
    with _namespace(target.kubectl, f"e2e-{case}") as name:
        yield name


@contextmanager
def _namespace(kubectl: Kubectl, name: str) -> Iterator[str]:
    """Make a namespace, and remove it with all that runs in it, so that the next case has the machine to itself."""
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        # The namespace controller looks again only after half of the longest grace period; so the pods go first.
        for kind in ("modeldeployments", "deployments", "pods"):
            if kubectl.works("get", kind, f"--namespace={name}"):
                kubectl("delete", kind, "--all", f"--namespace={name}", "--timeout=60s")
        wait_until(lambda: not kubectl.items("pods", namespace=name), f"no pod is left in {name}", limit_s=90)
        kubectl("delete", "namespace", name, "--timeout=60s")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the cases in order; count the time of a case alone, for a first run builds a cluster's programs before it."""
    # All items of the session come here, those of other folders too; they keep their places before the cases.
    items.sort(key=_case_number)
    for item in items:
        if _case_number(item) >= 0:
            item.add_marker(pytest.mark.timeout(300, func_only=True))


def _case_number(item: pytest.Item) -> int:
    """Place in CASES, -1 for what is no case."""
    folder = item.path.parent
    return CASES.index(folder.name) if folder.parent == _CASES_FOLDER else -1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add objects, events and logs to the report of a failed case, while the cluster still stands."""
    report = yield
    found = item.config.stash.get(_TARGET, None)
    if report.failed and call.when != "teardown" and found is not None:
        folder = artifacts_dir() / re.sub(r"[^\w.-]+", "_", item.nodeid)
        # Of an earlier run.
        shutil.rmtree(folder, ignore_errors=True)
        report.sections.append(("cluster", collect(found.kubectl, folder)))
        (folder / "failure.txt").write_text(report.longreprtext)
        if found.lab is not None:
            found.lab.save_logs(folder / "node")
    return report


def _terminal_line(config: pytest.Config) -> Say:
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        """Past pytest's capture: a person who waits for a build shall see it."""
        with capture.global_and_fixture_disabled():
            print(f"\ne2e: {line}", end="", flush=True)

    return say
