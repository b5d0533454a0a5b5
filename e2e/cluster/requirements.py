"""What this machine must have before a cluster can start on it; each lack is a sentence with its remedy."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from e2e.cluster import tools
from e2e.cluster.errors import UnavailableError
from e2e.cluster.shell import succeeds

PACKAGE_OF = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "busybox": "busybox-static",
    "etcd": "etcd-server",
    "nsenter": "util-linux",
}
"""Program (found on the PATH, or by its full path) → the Debian package that brings it."""

_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def find_system_program(name: str) -> str | None:
    """Path of a system program; administrators' folders are searched even where the PATH lacks them."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), _SBIN)))


def system_program(name: str) -> str:
    """Path of a system program that `check` has found; raises UnavailableError when it is gone."""
    found = find_system_program(name)
    if found is None:
        raise UnavailableError(f"{name} is not installed (Debian package {PACKAGE_OF.get(name, name)})")
    return found


def lacks() -> list[str]:
    """Everything that keeps a cluster from starting here, empty where it can start."""
    if sys.platform != "linux":
        return [f"a cluster needs Linux, this is {sys.platform}; name an existing one by OCTAVO_E2E_KUBECONFIG"]
    found = []
    if os.geteuid() != 0:
        found.append("a cluster needs root (network namespaces, mounts, cgroups); run as root or with sudo")
    packages = missing_packages()
    if packages:
        found.append(f"Debian packages are missing: apt-get install --no-install-recommends {' '.join(packages)}")
    unbuilt = [tool.name for tool in tools.missing()]
    if unbuilt and shutil.which("go") is None:
        found.append(f"Go 1.26 is needed to build {', '.join(unbuilt)} from source, and `go` is not on the PATH")
    if not found and not _may_make_namespaces():
        found.append("this kernel or sandbox lets root make no network namespace (CAP_SYS_ADMIN, CAP_NET_ADMIN)")
    return found


def missing_packages() -> list[str]:
    """Debian packages whose programs are absent, each once."""
    return sorted({package for program, package in PACKAGE_OF.items() if find_system_program(program) is None})


def check() -> None:
    """Raise UnavailableError naming everything that is lacking."""
    found = lacks()
    if found:
        raise UnavailableError("; ".join(found))


def _may_make_namespaces() -> bool:
    return Path("/sys/fs/cgroup").is_dir() and succeeds([system_program("unshare"), "--net", "--mount", "true"])
