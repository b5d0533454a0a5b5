"""The few kubectl calls that the cluster and its cases make; objects go in and come out as dictionaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.shell import run, succeeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """kubectl against one cluster."""

    program: Path
    kubeconfig: Path

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Standard output of `kubectl WORDS`; raises CommandError with what the API server said."""
        return run(self.command(*words), stdin=stdin, timeout_s=timeout_s)

    def command(self, *words: str) -> list[str]:
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *words]

    def works(self, *words: str) -> bool:
        """Whether `kubectl WORDS` succeeds."""
        return succeeds(self.command(*words))

    def get(self, *words: str, namespace: str | None = None) -> dict[str, Any]:
        """`kubectl get WORDS` as an object, or as a list object with `items`."""
        found: dict[str, Any] = json.loads(self("get", *words, *_in(namespace), "--output=json"))
        return found

    def items(self, kind: str, *words: str, namespace: str | None = None) -> list[dict[str, Any]]:
        """All objects of a kind that match."""
        found: list[dict[str, Any]] = self.get(kind, *words, namespace=namespace)["items"]
        return found

    def apply(self, documents: Sequence[dict[str, Any]], *, namespace: str | None = None) -> str:
        """Apply objects in one call."""
        # Documents, not a List: of a List kubectl checks the fields by itself and the API server is never asked.
        stream = "\n---\n".join(json.dumps(document) for document in documents)
        return self("apply", *_in(namespace), "--filename=-", stdin=stream)

    def patch_status(self, kind: str, name: str, patch: dict[str, Any]) -> str:
        """Merge-patch the status subresource."""
        return self("patch", kind, name, "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}")


def _in(namespace: str | None) -> list[str]:
    return [] if namespace is None else [f"--namespace={namespace}"]
