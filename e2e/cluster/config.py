"""Configuration files and command lines of the cluster's programs.

Many lines here cure a trap that costs an hour each; the comment beside a line says which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.cluster.image import PAUSE_IMAGE
from e2e.cluster.network import Network

NODE = "node0"


def containerd_toml(lab: Path, snapshotter: str) -> str:
    """Of containerd 1.6 and 1.7."""
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox dies with "can't get final child's PID from pipe".
    # netns_mounts_under_state_dir: a crashed run's namespaces lie under the lab's folder and are found there.
    return f"""version = 2
root = "{lab}/c/root"
state = "{lab}/c/state"
[grpc]
  address = "{lab}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  sandbox_image = "{PAUSE_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{lab}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{lab}/runtime-spec.json"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{lab}/runc"
"""


def cni_conflist(lab: Path, network: Network) -> str:
    """A bridge with addresses from a local pool, then host ports."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{lab}/cni-addresses",
        "ranges": [[{"subnet": network.pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": network.namespace, "plugins": [bridge, portmap]}, indent=2)


def kubelet_configuration(lab: Path, network: Network) -> dict[str, Any]:
    pki = lab / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node_ip,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        # Two clusters on one machine must not tidy up each other's pods.
        "cgroupRoot": f"/{network.namespace}",
        "clusterDNS": [network.dns_ip],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{lab}/c.sock",
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # On a kernel with cgroup v1 the kubelet refuses to start otherwise.
        "failCgroupV1": False,
        "failSwapOn": False,
        "fileCheckFrequency": "0s",
        # What garbage collection deletes can never be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # The default of a million is above many a machine's limit.
        "maxOpenFiles": 20000,
        "nodeStatusUpdateFrequency": "5s",
        "oomScoreAdj": 0,
        "podLogsDir": f"{lab}/pod-logs",
        # Pods inherit no search domains and no upstream of the machine.
        "resolvConf": f"{lab}/resolv.conf",
        "serializeImagePulls": False,
        "shutdownGracePeriod": "0s",
        "syncFrequency": "10s",
        "tlsCertFile": f"{pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet-server.key",
        "volumePluginDir": f"{lab}/volume-plugins",
    }


def kube_proxy_configuration(lab: Path, network: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": network.node_ip,
        "clientConnection": {"kubeconfig": f"{lab}/pki/kube-proxy.kubeconfig"},
        "clusterCIDR": network.pod_cidr,
        # The namespace may not write these sysctls.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "hostnameOverride": NODE,
        "mode": "nftables",
        "oomScoreAdj": 0,
    }


def corefile(lab: Path, network: Network) -> str:
    return f"""cluster.local in-addr.arpa {{
    bind {network.node_ip}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {lab}/pki/admin.kubeconfig octavo-e2e
        ttl 1
    }}
}}
"""


def etcd_command(program: str, lab: Path) -> list[str]:
    clients = "http://127.0.0.1:2379"
    return [
        program,
        f"--data-dir={lab}/etcd",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
        "--logger=zap",
    ]


def apiserver_command(program: Path, lab: Path, network: Network) -> list[str]:
    pki = lab / "pki"
    return [
        str(program),
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        # An address on loopback is refused in the EndpointSlice of the Service `kubernetes`.
        f"--advertise-address={network.node_ip}",
        f"--service-cluster-ip-range={network.service_cidr}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--cert-dir={lab}/apiserver",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-account.pub",
        f"--service-account-signing-key-file={pki}/service-account.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        # Dial an aggregated API's endpoints: the cluster IP is not served before kube-proxy is.
        "--enable-aggregator-routing=true",
    ]


def controller_manager_command(program: Path, lab: Path) -> list[str]:
    pki = lab / "pki"
    return [
        str(program),
        *_kubeconfigs(f"{pki}/controller-manager.kubeconfig"),
        "--leader-elect=false",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-account.key",
        "--use-service-account-credentials=true",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--cert-dir={lab}/controller-manager",
        # Autoscaling cases wait for several rounds; the default is 15 s a round.
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--horizontal-pod-autoscaler-downscale-stabilization=15s",
    ]


def scheduler_command(program: Path, lab: Path) -> list[str]:
    return [
        str(program),
        *_kubeconfigs(f"{lab}/pki/scheduler.kubeconfig"),
        "--leader-elect=false",
        f"--cert-dir={lab}/scheduler",
    ]


def kubelet_command(program: Path, lab: Path, network: Network) -> list[str]:
    return [
        str(program),
        f"--config={lab}/kubelet.json",
        f"--kubeconfig={lab}/pki/kubelet.kubeconfig",
        f"--hostname-override={NODE}",
        f"--node-ip={network.node_ip}",
        f"--root-dir={lab}/kubelet",
        f"--cert-dir={lab}/kubelet-certificates",
    ]


def _kubeconfigs(path: str) -> list[str]:
    return [f"--kubeconfig={path}", f"--authentication-kubeconfig={path}", f"--authorization-kubeconfig={path}"]
