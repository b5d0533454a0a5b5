"""Remove everything that a cluster left on this machine, whether it was stopped or crashed.

Containers outlive the process that made them, so that everything is found anew from what only this cluster has: its
namespace, its folder in command lines and mount points, its cgroup. Nothing is ended or deleted by a common name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.network import Network
from e2e.cluster.processes import Processes, descendants, end_processes
from e2e.cluster.requirements import system_program
from e2e.cluster.shell import succeeds

_CGROUPS = Path("/sys/fs/cgroup")
_CNI_RESULTS = Path("/var/lib/cni/results")
_CONTAINER_LOG_LINKS = Path("/var/log/containers")
_ATTEMPTS = 5


def remove_cluster(lab: Path, network: Network, processes: Processes) -> None:
    """End all programs and containers, unmount, delete namespace, cgroups and `lab`; raises when a mount stays."""
    # The control plane first: a kubelet would start again what is ended below.
    processes.stop([name for name in processes.running() if name != "containerd"], grace_s=2)
    sockets = _shim_sockets(lab)
    _end_containers(lab, network)
    processes.stop(["containerd"], grace_s=2)
    end_processes(sorted(network.process_ids()), grace_s=0)
    processes.reap()
    for socket in sockets:
        socket.unlink(missing_ok=True)
    network.delete()
    _unmount_below(lab)
    _remove_cgroups(network.namespace)
    _remove_traces(lab, network)
    if lab.exists():
        shutil.rmtree(lab, onerror=_retry_removal)


def make_cgroups(name: str) -> None:
    """Make the cluster's top cgroup in every hierarchy: the kubelet uses but does not make its root.

    Its pods together weigh as much as one busy program for each processor; the default, as much as one program, starves
    them beside a build.
    """
    num_processors = os.cpu_count() or 1
    controllers = _CGROUPS / "cgroup.controllers"
    if controllers.exists():
        for controller in controllers.read_text().split():
            _write_if_there(_CGROUPS / "cgroup.subtree_control", f"+{controller}")
        (_CGROUPS / name).mkdir(exist_ok=True)
        _write_if_there(_CGROUPS / name / "cpu.weight", str(100 * num_processors))
        return
    for hierarchy in _CGROUPS.iterdir():
        if (hierarchy / "cgroup.procs").exists():
            (hierarchy / name).mkdir(exist_ok=True)
            _write_if_there(hierarchy / name / "cpu.shares", str(1024 * num_processors))


def _write_if_there(file: Path, text: str) -> None:
    """What may not be set here keeps its default; the kubelet names a controller that it misses."""
    if file.exists():
        with contextlib.suppress(OSError):
            file.write_text(text)


def leftovers(lab: Path, network: Network) -> list[str]:
    """What of the cluster is on the machine, in words; empty when nothing is."""
    found = [f"process {process_id}" for process_id in sorted(network.process_ids() | set(_shims(lab)))]
    if network.exists():
        found.append(f"network namespace {network.namespace}")
    found += [f"mount {point}" for point in _mounts_below(lab)]
    found += [f"cgroup {folder}" for folder in _cgroup_folders(network.namespace)]
    if lab.exists():
        found.append(f"folder {lab}")
    return found


def _end_containers(lab: Path, network: Network) -> None:
    shims = _shims(lab)
    end_processes([*descendants(shims), *shims], grace_s=0)
    # Reparented processes of a container whose shim had died before.
    end_processes(_cgroup_processes(network.namespace), grace_s=0)


def _shims(lab: Path) -> list[int]:
    socket = str(lab / "c.sock").encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd-shim" in words[0] and socket in words:
                found.append(int(entry.name))
    return found


def _shim_sockets(lab: Path) -> list[Path]:
    """Sockets that shims keep outside of the lab's folder; containerd forgets them as soon as a shim dies."""
    found = []
    for address in (lab / "c" / "state").glob("io.containerd.runtime.v2.task/*/*/address"):
        with contextlib.suppress(OSError):
            found.append(Path(address.read_text().removeprefix("unix://")))
    return found


def _mounts_below(lab: Path) -> list[str]:
    """Mount points below the cluster's folder, innermost first."""
    prefix = f"{lab}/"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return [point for point in reversed(points) if point.startswith(prefix)]


def _unmount_below(lab: Path) -> None:
    umount = system_program("umount")
    for _ in range(_ATTEMPTS):
        points = _mounts_below(lab)
        for point in points:
            succeeds([umount, "--lazy", point])
        if not points:
            return
    # What is mounted there may be the machine's own /usr: deleting the folder would delete it too.
    raise ClusterError(f"cannot unmount {', '.join(_mounts_below(lab))}; unmount by hand, then run `down` again")


def _cgroup_folders(name: str) -> list[Path]:
    """The cluster's top cgroup in every hierarchy (v1) or in the only one (v2)."""
    candidates = [_CGROUPS / name, *(folder / name for folder in _CGROUPS.iterdir() if folder.is_dir())]
    return [folder for folder in candidates if folder.is_dir()]


def _cgroup_processes(name: str) -> list[int]:
    found: set[int] = set()
    for folder in _cgroups(name):
        # It may go while it is looked at: that is what the clean-up waits for.
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
    return sorted(found)


def _remove_cgroups(name: str) -> None:
    for folder in _cgroups(name):
        _remove_cgroup(folder)


def _cgroups(name: str) -> list[Path]:
    """All cgroups of the cluster, children before parents. os.walk passes over what vanishes meanwhile."""
    walks = (os.walk(top, topdown=False) for top in _cgroup_folders(name))
    return [Path(folder) for walk in walks for folder, _, _ in walk]


def _remove_cgroup(folder: Path) -> None:
    for _ in range(_ATTEMPTS):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # The kernel lets go of an ended process a moment later.
            time.sleep(0.1)
        else:
            return


def _remove_traces(lab: Path, network: Network) -> None:
    for result in _CNI_RESULTS.glob(f"{network.namespace}-*-eth0"):
        container_id = result.name.removeprefix(f"{network.namespace}-").removesuffix("-eth0")
        for file in _CNI_RESULTS.glob(f"*-{container_id}-*"):
            file.unlink(missing_ok=True)
    for link in _CONTAINER_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{lab}/"):
            link.unlink(missing_ok=True)


def _retry_removal(function: object, path: str, failure: object) -> None:
    """A program that is being ended may still write; by the next run its file is gone."""
    del function, failure
    if os.path.lexists(path):
        succeeds(["rm", "-rf", "--one-file-system", path])
