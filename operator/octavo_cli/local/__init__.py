"""Local mode: the same ModelDeployment manifests, run as processes on this machine, the gateway in front.

Reuses the operator's validation, rendering of arguments and status, and the gateway whole; what is its own is starting
processes where the cluster starts pods.
"""
