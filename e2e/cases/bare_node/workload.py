"""A plain workload of this checkout's interpreter: two pods that answer by HTTP, and a Service before them."""

from __future__ import annotations

from typing import Any

from e2e.cluster.image import USER_ID, image

_SERVER = """
import http.server, os, torch
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.getuid()} {torch.ones(3).sum().item()}".encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
print("listening with torch", torch.__version__, flush=True)
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def documents() -> list[dict[str, Any]]:
    """Deployment and Service `web`."""
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": image("server-cpu"),
        "imagePullPolicy": "Never",
        "command": ["python", "-c", _SERVER],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1},
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    return [deployment, service]
