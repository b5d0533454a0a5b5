"""The control plane: keeps Deployments, Services and autoscalers as ModelDeployments ask for.

kopf, the Kubernetes client and HTTP live at the rim (`handlers`, `kube/`, `probe`, `__main__`); what is decided is decided
by pure functions over values (`api/`, `desired/`, `plan`, `status`, `conditions`, `diagnosis`).
"""
