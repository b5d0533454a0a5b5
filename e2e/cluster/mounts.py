"""Our code in a pod without building an image: read-only hostPath mounts of what this interpreter runs from.

Each folder is mounted at its own path, so that the virtual environment's links and scripts hold. Inside the container
only the mount points matter: that the host's /root is closed to user 65532 hinders nobody. What is *in* the mounted
folders must be readable by all.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from e2e.cluster.errors import UnavailableError
from e2e.cluster.paths import CHECKOUT, model_path

PACKAGES = ("operator", "server", "kernels")
MODELS = "/models"


def code_folders() -> list[Path]:
    """Folders that a pod needs to run this checkout with this interpreter; none lies inside another."""
    system = [Path("/", name) for name in ("usr", "lib", "lib64", "bin", "sbin")]
    folders = [folder for folder in system if folder.is_dir() and not folder.is_symlink()]
    folders += [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]]
    folders += [Path(entry) for entry in sys.path if entry and "site-packages" in entry and Path(entry).is_dir()]
    folders += [CHECKOUT / package for package in PACKAGES]
    return _outermost([*folders, *(folder.resolve() for folder in folders)])


def python_command(module: str) -> list[str]:
    """Command of a container that runs one of our modules."""
    return [sys.executable, "-m", module]


def environment() -> list[dict[str, str]]:
    """Variables that make this checkout's packages importable in a pod, installed or not."""
    search = os.pathsep.join(str(CHECKOUT / package) for package in PACKAGES)
    return [{"name": "PYTHONPATH", "value": search}, {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}]


def volumes(*, with_model: bool = False) -> list[dict[str, Any]]:
    """`volumes` of a pod that runs our code."""
    found = [
        {"name": f"code-{number}", "hostPath": {"path": str(folder), "type": "Directory"}}
        for number, folder in enumerate(code_folders())
    ]
    if with_model:
        found.append({"name": "models", "hostPath": {"path": str(model_path().parent), "type": "Directory"}})
    return found


def volume_mounts(*, with_model: bool = False) -> list[dict[str, Any]]:
    """`volumeMounts` of a container that runs our code."""
    found = [
        {"name": f"code-{number}", "mountPath": str(folder), "readOnly": True}
        for number, folder in enumerate(code_folders())
    ]
    if with_model:
        found.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    return found


def check_readable() -> None:
    """Raise UnavailableError when another user could not read the code: a pod's user then finds nothing."""
    for folder in [*code_folders(), model_path().parent]:
        if folder.exists() and not folder.stat().st_mode & 0o005 == 0o005:
            raise UnavailableError(f"{folder} is not readable by all, so that pods cannot run from it; chmod o+rx it")


def _outermost(folders: list[Path]) -> list[Path]:
    unique = sorted(set(folders))
    return [folder for folder in unique if not any(other in folder.parents for other in unique)]
