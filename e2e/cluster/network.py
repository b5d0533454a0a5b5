"""One network namespace is the node; it is tied to the host by a veth pair and vanishes with all its rules.

```
host 10.231.N.1 ──veth── 10.231.N.2 = eth0 of the node ── bridge cni0 10.232.N.1 ── pods 10.232.N.0/24
```
Tests on the host reach API server, NodePorts and pods by a route to the pods' net; nothing is reachable from outside,
and a pod reaches nothing beyond the host. N differs between the people's cluster and the tests', so that both may run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.requirements import system_program
from e2e.cluster.shell import run, succeeds

_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_INSTANCES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Names and addresses of one cluster's network."""

    name: str
    """Of the cluster; also ends the namespace's and the devices' names."""
    number: int
    """Third byte of every address: one number a cluster."""

    service_cidr = "10.96.0.0/16"
    """Of Services; seen inside the namespace alone, so that two clusters may share it."""
    kubernetes_ip = "10.96.0.1"
    dns_ip = "10.96.0.10"

    @property
    def namespace(self) -> str:
        return f"octavo-{self.name}"

    @property
    def namespace_file(self) -> Path:
        return Path("/run/netns") / self.namespace

    @property
    def host_device(self) -> str:
        return f"octavo-{self.name}"

    @property
    def host_ip(self) -> str:
        return f"10.231.{self.number}.1"

    @property
    def node_ip(self) -> str:
        return f"10.231.{self.number}.2"

    @property
    def pod_cidr(self) -> str:
        return f"10.232.{self.number}.0/24"

    @property
    def enter(self) -> list[str]:
        """Words before a command that shall run on the node. `ip netns exec` would remount /sys and hide the cgroups."""
        return [system_program("nsenter"), f"--net={self.namespace_file}"]

    def create(self) -> None:
        """Make the namespace with its link and routes; nothing of that name may exist."""
        ip = system_program("ip")
        inside = f"{self.host_device}n"
        run([ip, "netns", "add", self.namespace])
        run([ip, "link", "add", self.host_device, "type", "veth", "peer", "name", inside])
        run([ip, "link", "set", inside, "netns", self.namespace, "name", "eth0"])
        run([ip, "address", "add", f"{self.host_ip}/24", "dev", self.host_device])
        run([ip, "link", "set", self.host_device, "up"])
        run([*self.enter, ip, "link", "set", "lo", "up"])
        run([*self.enter, ip, "address", "add", f"{self.node_ip}/24", "dev", "eth0"])
        run([*self.enter, ip, "link", "set", "eth0", "up"])
        run([*self.enter, ip, "route", "add", "default", "via", self.host_ip])
        run([ip, "route", "add", self.pod_cidr, "via", self.node_ip])
        run([*self.enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        if int(_INOTIFY.read_text()) < _INOTIFY_INSTANCES:
            _INOTIFY.write_text(str(_INOTIFY_INSTANCES))

    def delete(self) -> None:
        """Remove the namespace and the link, whatever of them exists."""
        ip = system_program("ip")
        succeeds([ip, "link", "delete", self.host_device])
        succeeds([ip, "netns", "delete", self.namespace])

    def exists(self) -> bool:
        return self.namespace_file.exists()

    def process_ids(self) -> set[int]:
        """Processes that live in the namespace: the node's own programs, not the pods'."""
        try:
            wanted = self.namespace_file.stat().st_ino
        except FileNotFoundError:
            return set()
        found = set()
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and _namespace_of(entry.name) == wanted:
                found.add(int(entry.name))
        return found - {os.getpid()}


def _namespace_of(process_id: str) -> int | None:
    try:
        return os.stat(f"/proc/{process_id}/ns/net").st_ino
    except OSError:
        return None
