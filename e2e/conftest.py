"""One cluster for all cases of a session; what a case leaves in it is removed, what failed is written down."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator

import pytest
from e2e.cluster.artifacts import artifacts_dir, collect
from e2e.cluster.errors import UnavailableError
from e2e.cluster.lab import Lab, exclusive
from e2e.cluster.mounts import check_mountable
from e2e.cluster.target import Target, own_target

_TARGET = pytest.StashKey[Target]()


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The running cluster. Where none can run, every case counts as skipped and says why."""
    say = _terminal_line(request.config)
    with exclusive("e2e", say):
        lab = Lab("e2e", say)
        try:
            check_mountable()
            lab.start()
        except UnavailableError as lack:
            pytest.skip(f"no cluster here: {lack}")
        found = own_target(lab)
        request.config.stash[_TARGET] = found
        yield found
        del request.config.stash[_TARGET]
        lab.stop()
        assert lab.leftovers() == []


@pytest.fixture
def namespace(target: Target, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the case's own, gone when the case ends."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", request.node.path.parent.name.lower()).strip("-")
    target.kubectl("create", "namespace", name)
    yield name
    target.kubectl("delete", "namespace", name, "--timeout=90s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add objects, events and logs to the report of a failed case, while the cluster still stands."""
    report = yield
    found = item.config.stash.get(_TARGET, None)
    if report.failed and call.when != "teardown" and found is not None:
        folder = artifacts_dir() / re.sub(r"[^\w.-]+", "_", item.nodeid)
        report.sections.append(("cluster", collect(found.kubectl, folder)))
        if found.lab is not None:
            found.lab.save_logs(folder / "node")
    return report


def _terminal_line(config: pytest.Config) -> Callable[[str], None]:
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        """Past pytest's capture: a person who waits for a build shall see it."""
        with capture.global_and_fixture_disabled():
            print(f"\ne2e: {line}", end="", flush=True)

    return say
