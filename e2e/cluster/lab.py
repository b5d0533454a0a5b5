"""The cluster: what runs, in which order it starts, and how it ends.

Order: network, keys, containerd and etcd, API server until it is ready, controller manager, scheduler, images,
kubelet, kube-proxy, names; then the node turns Ready. A start first removes what an earlier run left.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster import cleanup, config, objects, published, tools
from e2e.cluster.errors import ClusterError, CommandError
from e2e.cluster.image import image, write_checkout, write_pause
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.mounts import binds, model_binds, with_mounts
from e2e.cluster.network import Network
from e2e.cluster.paths import cache_dir
from e2e.cluster.pki import write_pki
from e2e.cluster.processes import Processes
from e2e.cluster.requirements import check, system_program
from e2e.cluster.shell import run, succeeds
from e2e.cluster.tools import Say

NUMBERS = {"lab": 0, "e2e": 1}
"""Name of a cluster → its network's number: `lab` is people's, `e2e` the tests'."""

_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns")
_POLL_S = 0.1


@dataclass(slots=True)
class Lab:
    """One cluster on this machine, running or not; owns its folder, processes and network."""

    name: str
    say: Say
    images: Path | None = field(default_factory=published.given)
    """The folder of published images that it runs; without one it runs the checkout."""
    folder: Path = field(init=False)
    network: Network = field(init=False)
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.folder = cache_dir() / "lab" / self.name
        self.network = Network(name=self.name, number=NUMBERS[self.name])
        self.processes = Processes(self.folder / "run", self.folder / "log")

    @property
    def kubeconfig(self) -> Path:
        """Of the administrator."""
        return self.folder / "pki" / "admin.kubeconfig"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(program=tools.find_program("kubectl", self.say), kubeconfig=self.kubeconfig)

    def is_running(self) -> bool:
        """Whether every program of the cluster runs."""
        return set(_PROGRAMS) | {"containerd"} <= set(self.processes.running())

    def start(self) -> None:
        """Start the cluster until its node is Ready; raises UnavailableError where this machine cannot."""
        check()
        programs = tools.ensure(tools.KUBERNETES, self.say)
        coredns = tools.find_program("coredns", self.say)
        self.stop()
        began = time.monotonic()
        self.folder.mkdir(parents=True, mode=0o755)
        try:
            self._start_control_plane(programs)
            self.say(f"API server ready after {time.monotonic() - began:.1f} s")
            self._start_node(programs, coredns)
        except BaseException:
            # A half-started cluster is of no use, but its logs are.
            self.save_logs(cache_dir() / "lab" / f"{self.name}-failed-logs")
            self.stop()
            raise
        self.say(f"node Ready after {time.monotonic() - began:.1f} s")

    def stop(self) -> None:
        """Remove the cluster and all its traces; nothing happens where there is none."""
        cleanup.remove_cluster(self.folder, self.network, self.processes)

    def leftovers(self) -> list[str]:
        """What of the cluster is on the machine."""
        return cleanup.leftovers(self.folder, self.network)

    @property
    def _snapshotter(self) -> str:
        """Whole copies of the few files of ours, since overlayfs cannot lie on an overlayfs (a build in a container)."""
        return "overlayfs" if self.images else "native"

    def add_fake_gpus(self, count: int) -> None:
        """Make the node offer GPUs that no device stands behind."""
        self.kubectl.patch_status("node", config.NODE, objects.fake_gpus(count))

    def add_kwok_nodes(self, count: int, *, num_gpus: int) -> None:
        """Start kwok and give it `count` nodes."""
        folder = tools.ensure(tools.KWOK, self.say)
        stages = [f"--config={folder / Path(file).name}" for file in tools.KWOK.data]
        flags = ["--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", "--node-lease-duration-seconds=40"]
        self._start("kwok", [str(folder / "kwok"), f"--kubeconfig={self.kubeconfig}", *flags, *stages])
        self.kubectl.apply([objects.kwok_node(number, num_gpus=num_gpus) for number in range(count)])

    def save_logs(self, target: Path) -> None:
        """Copy the programs' logs into `target`."""
        target.mkdir(parents=True, exist_ok=True)
        for log in self.processes.logs.glob("*.log"):
            (target / log.name).write_bytes(log.read_bytes())

    def _start_control_plane(self, programs: Path) -> None:
        lab, network = self.folder, self.network
        network.create()
        write_pki(lab / "pki", network)
        self._write_files()
        self._start("containerd", [system_program("containerd"), "--config", f"{lab}/containerd.toml"])
        self._start("etcd", config.etcd_command(system_program("etcd"), lab))
        self._start("kube-apiserver", config.apiserver_command(programs / "kube-apiserver", lab, network))
        ours = published.archives(self.images) if self.images else [write_checkout(lab)]
        ctr = [system_program("ctr"), f"--address={lab}/c.sock", "--namespace=k8s.io"]
        self._wait("containerd", lambda: succeeds([*ctr, "version"]), limit_s=30)
        for archive in [write_pause(lab), *ours]:
            run([*ctr, "images", "import", f"--snapshotter={self._snapshotter}", archive], timeout_s=900)
        if self.images:
            run([*ctr, "images", "tag", image("server"), image("server-cpu")])
        self._wait("kube-apiserver", lambda: self.kubectl.works("get", "--raw=/readyz"), limit_s=60)

    def _start_node(self, programs: Path, coredns: Path) -> None:
        lab, network = self.folder, self.network
        manager = config.controller_manager_command(programs / "kube-controller-manager", lab)
        self._start("kube-controller-manager", manager)
        self._start("kube-scheduler", config.scheduler_command(programs / "kube-scheduler", lab))
        self._start("kubelet", config.kubelet_command(programs / "kubelet", lab, network))
        self._start("kube-proxy", [str(programs / "kube-proxy"), f"--config={lab}/kube-proxy.json"])
        self._start("coredns", [str(coredns), "-conf", f"{lab}/Corefile"])
        self.kubectl.apply(objects.dns_objects(network))
        self._wait("kubelet", self._is_node_ready, limit_s=60)
        # Pods cannot be made before the namespace has its service account.
        self._wait(
            "kube-controller-manager", lambda: self.kubectl.works("get", "serviceaccount", "default"), limit_s=30
        )
        self.processes.require_running(*_PROGRAMS, "containerd")

    def _write_files(self) -> None:
        lab, network = self.folder, self.network
        for name in ("cni", "kubelet", "pod-logs"):
            (lab / name).mkdir()
        folders = model_binds() if self.images else binds()
        default_spec = json.loads(run([system_program("ctr"), "oci", "spec"]))
        (lab / "runtime-spec.json").write_text(json.dumps(with_mounts(default_spec, folders), indent=2))
        (lab / "containerd.toml").write_text(config.containerd_toml(lab, self._snapshotter))
        (lab / "cni" / "10-octavo.conflist").write_text(config.cni_conflist(lab, network))
        (lab / "kubelet.json").write_text(json.dumps(config.kubelet_configuration(lab, network), indent=2))
        (lab / "kube-proxy.json").write_text(json.dumps(config.kube_proxy_configuration(lab, network), indent=2))
        (lab / "Corefile").write_text(config.corefile(lab, network))
        (lab / "resolv.conf").write_text(f"nameserver {network.node_ip}\n")
        cleanup.make_cgroups(network.namespace)

    def _start(self, name: str, command: list[str]) -> None:
        self.processes.start(name, [*self.network.enter, *command])

    def _wait(self, program: str, condition: Callable[[], bool], *, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            self.processes.require_running(program)
            if time.monotonic() > deadline:
                raise ClusterError(f"{program} is not ready after {limit_s:.0f} s: {self.processes.log_end(program)}")
            time.sleep(_POLL_S)

    def _is_node_ready(self) -> bool:
        try:
            conditions = self.kubectl.get("node", config.NODE)["status"]["conditions"]
        except (CommandError, KeyError):
            return False
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


@contextmanager
def exclusive(name: str, say: Say) -> Iterator[None]:
    """Hold the cluster of that name for this process: a second one waits instead of removing it."""
    file = cache_dir() / "lab" / f".{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process uses the cluster `{name}`; waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
