"""Build the programs that a cluster needs from their Go modules, once, into the cache.

Each folder of e2e/tools pins one module with go.mod and go.sum; nothing prebuilt is fetched and no binary is
committed. An entry of the cache is named by version and by the hash of go.mod and go.sum, appears whole or not at
all, and is never changed afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError, UnavailableError
from e2e.cluster.paths import MODULES, cache_dir
from e2e.cluster.shell import run

_BUILD_LIMIT_S = 3600
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One Go module and the programs that are built from it."""

    name: str
    """Folder under e2e/tools and first part of the cache entry's name."""
    module: str
    """Go module whose required version is the tool's version."""
    packages: tuple[str, ...] = ()
    """Main packages; each gives a program named by its last element. None: only `data` is wanted."""
    tags: tuple[str, ...] = ()
    """Build tags."""
    variables: tuple[str, ...] = ()
    """Linker variables `path=value`; `{version}` stands for the version."""
    data: tuple[str, ...] = ()
    """Files of the module that are kept beside the programs."""
    minutes: str = ""
    """What a cold build takes on two cores, for the person who waits."""

    @property
    def folder(self) -> Path:
        return MODULES / self.name

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(package.rsplit("/", 1)[1] for package in self.packages)

    @property
    def version(self) -> str:
        """Version that go.mod requires, such as `v1.36.4`."""
        found = re.search(rf"^(?:require )?\s*{re.escape(self.module)} (v\S+)", self._read("go.mod"), re.MULTILINE)
        if found is None:
            raise ClusterError(f"{self.folder / 'go.mod'} does not require {self.module}")
        return found.group(1)

    @property
    def entry(self) -> Path:
        """Folder in the cache that holds the programs once they are built."""
        digest = hashlib.sha256((self._read("go.mod") + self._read("go.sum")).encode()).hexdigest()[:12]
        return cache_dir() / "tools" / f"{self.name}-{self.version}-{digest}"

    def _read(self, file: str) -> str:
        return (self.folder / file).read_text()


_VERSION = "k8s.io/component-base/version"

# Without these variables Kubernetes calls itself v0.0.0-master and Helm's check of kubeVersion fails.
KUBERNETES = Tool(
    name="kubernetes",
    module="k8s.io/kubernetes",
    packages=tuple(
        f"k8s.io/kubernetes/cmd/{program}"
        for program in (
            "kube-apiserver",
            "kubectl",
            "kubelet",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
        )
    ),
    variables=(
        f"{_VERSION}.gitVersion={{version}}",
        f"{_VERSION}.gitMajor=1",
        f"{_VERSION}.gitMinor=36",
        f"{_VERSION}.gitTreeState=clean",
        f"{_VERSION}.gitCommit={'0' * 40}",
        f"{_VERSION}.buildDate=1970-01-01T00:00:00Z",
    ),
    minutes="5 to 10 minutes",
)
HELM = Tool(
    name="helm",
    module="helm.sh/helm/v4",
    packages=("helm.sh/helm/v4/cmd/helm",),
    variables=("helm.sh/helm/v4/internal/version.version={version}",),
    minutes="2 to 3 minutes",
)
COREDNS = Tool(
    name="coredns",
    module="github.com/coredns/coredns",
    packages=("github.com/coredns/coredns",),
    minutes="2 to 4 minutes",
)
KWOK = Tool(
    name="kwok",
    module="sigs.k8s.io/kwok",
    packages=("sigs.k8s.io/kwok/cmd/kwok",),
    data=(
        "kustomize/stage/node/fast/node-initialize.yaml",
        "kustomize/stage/node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
        "kustomize/stage/pod/fast/pod-complete.yaml",
        "kustomize/stage/pod/fast/pod-delete.yaml",
        "kustomize/stage/pod/fast/pod-ready.yaml",
    ),
    minutes="1 to 2 minutes",
)
PROMETHEUS = Tool(
    name="prometheus",
    module="github.com/prometheus/prometheus",
    packages=("github.com/prometheus/prometheus/cmd/promtool",),
    # Service discovery brings the clients of twenty clouds, which no test asks for.
    tags=("remove_all_sd",),
    minutes="2 to 4 minutes",
)
_MONITORING = "example/prometheus-operator-crd/monitoring.coreos.com_{plural}.yaml"
PROMETHEUS_OPERATOR = Tool(
    name="prometheus-operator",
    module="github.com/prometheus-operator/prometheus-operator",
    data=tuple(_MONITORING.format(plural=plural) for plural in ("podmonitors", "servicemonitors", "prometheusrules")),
    minutes="seconds",
)
GATEWAY_API = Tool(
    name="gateway-api",
    module="sigs.k8s.io/gateway-api",
    data=("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    minutes="seconds",
)
KEDA = Tool(
    name="keda",
    module="github.com/kedacore/keda/v2",
    data=("config/crd/bases/keda.sh_scaledobjects.yaml",),
    minutes="seconds",
)
TOOLS = {
    tool.name: tool for tool in (KUBERNETES, HELM, COREDNS, KWOK, PROMETHEUS, PROMETHEUS_OPERATOR, GATEWAY_API, KEDA)
}


def ensure(tool: Tool, say: Say) -> Path:
    """Folder with the tool's programs; builds them first where the cache lacks them."""
    entry = tool.entry
    if entry.is_dir():
        return entry
    with _locked(cache_dir() / "tools" / f".{tool.name}.lock", waiting=f"another process builds {tool.name}", say=say):
        if not entry.is_dir():
            _build(tool, entry, say)
    return entry


def find_program(name: str, say: Say) -> Path:
    """Path of one program, such as `helm`; builds the tool that it belongs to where need be."""
    for tool in TOOLS.values():
        if name in tool.programs:
            return ensure(tool, say) / name
    raise ClusterError(f"no tool in e2e/tools builds {name}")


def missing() -> list[Tool]:
    """The tools of every run (kwok is for scale runs alone) that the cache lacks."""
    return [tool for tool in (KUBERNETES, HELM, COREDNS) if not tool.entry.is_dir()]


def _build(tool: Tool, entry: Path, say: Say) -> None:
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(f"building {tool.name} {tool.version} needs Go 1.26, and `go` is not on the PATH")
    say(f"building {tool.name} {tool.version} from source, once ({tool.minutes} on two cores) …")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{tool.name}-", dir=entry.parent) as scratch:
        # The build works on a copy of the module, so that a tool can never edit the checkout.
        source = Path(scratch) / "source"
        shutil.copytree(tool.folder, source)
        built = Path(scratch) / "built"
        built.mkdir()
        for package, program in zip(tool.packages, tool.programs, strict=True):
            started = time.monotonic()
            _go_build(go, tool, package, source, built / program)
            say(f"  {program} built in {time.monotonic() - started:.0f} s")
        for file in tool.data:
            shutil.copyfile(_module_folder(go, tool, source) / file, built / Path(file).name)
        built.rename(entry)
    say(f"{tool.name} {tool.version} built in {time.monotonic() - began:.0f} s; kept in {entry}")


def _go_build(go: str, tool: Tool, package: str, source: Path, output: Path) -> None:
    variables = " ".join(f"-X {variable.format(version=tool.version)}" for variable in tool.variables)
    tags = [f"-tags={','.join(tool.tags)}"] if tool.tags else []
    _go(go, "build", "-trimpath", *tags, "-ldflags", f"-s -w {variables}", "-o", str(output), package, source=source)


def _module_folder(go: str, tool: Tool, source: Path) -> Path:
    """Where the module's files lie; fetches them, for a module of which nothing was built is not there yet."""
    return Path(json.loads(_go(go, "mod", "download", "-json", tool.module, source=source))["Dir"])


def _go(go: str, *words: str, source: Path) -> str:
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    return run([go, *words], cwd=source, env=environment, timeout_s=_BUILD_LIMIT_S)


@contextmanager
def _locked(lock: Path, *, waiting: str, say: Say) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{waiting}; waiting for it …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
