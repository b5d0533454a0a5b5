"""A real single-node Kubernetes from source, for tests and for people who want to try Octavo on one.

`python -m e2e.cluster up` starts it, `status` tells about it, `down` removes it. Nothing here fakes Kubernetes:
API server, controller manager, scheduler, kubelet, kube-proxy and containerd are the real programs, and one network
namespace is the node. State lives outside the checkout, and a start cleans up after a crashed run first.
"""
