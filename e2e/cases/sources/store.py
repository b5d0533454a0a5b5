"""An object store in the cluster, slow enough to be watched, and a volume that was made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e.cluster import config
from e2e.cluster.image import USER_ID, image
from e2e.cluster.mounts import MODELS
from e2e.cluster.paths import MODEL_NAME

STORAGE_CLASS = "by-hand"
BYTES_PER_SECOND = 3_000_000
"""So that the model's 93 MB take half a minute."""

# moto's server, which keeps objects in memory, behind a proxy that counts bytes.
_SERVER = f"""
import asyncio, boto3
from moto.server import ThreadedMotoServer
moto = ThreadedMotoServer(ip_address="127.0.0.1", port=5001, verbose=False)
moto.start()
client = boto3.client("s3", endpoint_url="http://127.0.0.1:5001", region_name="us-east-1",
                      aws_access_key_id="key", aws_secret_access_key="secret")
client.create_bucket(Bucket="models")
client.upload_file("{MODELS}/{MODEL_NAME}", "models", "smol.gguf")

async def pipe(reader, writer, pause):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / {BYTES_PER_SECOND} * pause)
    finally:
        writer.close()

async def serve(reader, writer):
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", 5001)
    await asyncio.gather(pipe(reader, inner_writer, 0), pipe(inner_reader, writer, 1), return_exceptions=True)

async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 5000)
    await server.serve_forever()

asyncio.run(main())
"""


def store_objects() -> list[dict[str, Any]]:
    """Pod and Service `s3`."""
    labels = {"app": "s3"}
    container = {
        "name": "s3",
        "image": image("server-cpu"),
        "imagePullPolicy": "Never",
        "command": ["python", "-c", _SERVER],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            # It would take the first part of the name of its Service for the bucket.
            {"name": "S3_IGNORE_SUBDOMAIN_BUCKETNAME", "value": "true"},
        ],
        "readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "s3", "labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": USER_ID},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3"},
        "spec": {"selector": labels, "ports": [{"port": 5000}]},
    }
    return [pod, service]


def secret(namespace: str) -> dict[str, Any]:
    """What a pod needs to read from that store."""
    entries = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://s3.{namespace}.svc:5000",
        "AWS_ALLOW_HTTP": "true",
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "models-s3"}, "stringData": entries}


def volume_objects(name: str, folder: Path) -> list[dict[str, Any]]:
    """A StorageClass without a provisioner and one local volume of it: `folder` on the node."""
    on_the_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [config.NODE]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_the_node]}]}},
        },
    }
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    return [storage_class, volume]
