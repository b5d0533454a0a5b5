"""What our images hold: this checkout, its interpreter and the real model, mounted by the container runtime.

An image with torch in it weighs gigabytes and minutes at each change of a line. So the images are nearly empty, and the
base specification from which containerd makes every container binds these folders read-only. Pods and manifests know
nothing of it: no hostPath, no overlay.

| in the container | on this machine |
|---|---|
| /usr (and /lib … where they are not links), the interpreter's own tree | the same path |
| /opt/octavo/src/{operator,server,kernels} | of this checkout |
| /opt/octavo/lib/N | the N-th folder of packages that Python imports from, such as the virtual environment's |
| /models | the folder of the real model |

Inside a container only the mount points matter: that the host's /root is closed to user 65532 hinders nobody. What is
*in* the folders must be readable by all. Nothing of ours may lie below /tmp, which pods mount themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e.cluster.errors import UnavailableError
from e2e.cluster.paths import CHECKOUT, PACKAGES, model_path

MODELS = "/models"
"""Where a container finds the real model."""
HOME = Path("/opt/octavo")
BIN = HOME / "bin"


def interpreter() -> Path:
    """The real program behind this interpreter, outside of any virtual environment."""
    return Path(sys.executable).resolve()


def with_mounts(runtime_spec: dict[str, Any], folders: Mapping[Path, Path]) -> dict[str, Any]:
    """An OCI runtime specification whose containers hold `folders`: path in a container → folder on this machine."""
    options = ["rbind", "ro", "nosuid", "nodev"]
    mounts = [
        {"destination": str(destination), "type": "bind", "source": str(source), "options": options}
        for destination, source in folders.items()
    ]
    return {**runtime_spec, "mounts": [*runtime_spec["mounts"], *mounts]}


def binds() -> dict[Path, Path]:
    """All of the table above."""
    found = {folder: folder for folder in _system_folders()}
    found |= {HOME / "src" / package: CHECKOUT / package for package in PACKAGES}
    found |= {HOME / "lib" / str(number): folder for number, folder in enumerate(_package_folders())}
    return found | model_binds()


def model_binds() -> dict[Path, Path]:
    """The real model alone, where it is there."""
    return {Path(MODELS): model_path().parent} if model_path().exists() else {}


def search_path() -> str:
    """PYTHONPATH of a container."""
    sources = [HOME / "src" / package for package in PACKAGES]
    libraries = [HOME / "lib" / str(number) for number in range(len(_package_folders()))]
    return os.pathsep.join(str(folder) for folder in (*sources, *libraries))


def check_mountable() -> None:
    """Raise UnavailableError when a pod's user could not read the code, or would mount something over it."""
    for destination, source in binds().items():
        if source.stat().st_mode & 0o005 != 0o005:
            raise UnavailableError(f"{source} is not readable by all, so that pods cannot run from it; chmod o+rx it")
        if destination.is_relative_to("/tmp"):
            raise UnavailableError(f"the interpreter lies in {source}, below /tmp, which pods mount over; move it")


def _system_folders() -> list[Path]:
    """/usr and the interpreter's own tree; none lies inside another."""
    candidates = [Path("/", name) for name in ("usr", "lib", "lib64", "bin", "sbin")]
    folders = [folder for folder in candidates if folder.is_dir() and not folder.is_symlink()]
    unique = sorted({*folders, Path(sys.base_prefix).resolve(), interpreter().parents[1]})
    return [folder for folder in unique if not any(other in folder.parents for other in unique)]


def _package_folders() -> list[Path]:
    """Folders with installed packages that do not come with the interpreter's own tree."""
    entries = [Path(entry) for entry in sys.path if entry.endswith("-packages") and Path(entry).is_dir()]
    system = _system_folders()
    return [entry for entry in entries if not any(entry.resolve().is_relative_to(folder) for folder in system)]
