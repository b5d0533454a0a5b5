"""Container images without a registry: a docker-archive made by the standard library, the same bytes each time.

Two images are enough. `pause` holds a pod's namespaces. The other one stands for all of Octavo's: it is empty but for
folders, links, the command `octavo` and the variables that find this checkout, which the container runtime mounts
(see mounts.py). As in our real image, its user has no line in /etc/passwd.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.errors import UnavailableError
from e2e.cluster.mounts import BIN, interpreter, search_path
from e2e.cluster.requirements import system_program
from e2e.cluster.shell import run

PAUSE_IMAGE = "octavo.local/pause:e2e"
IMAGE_REGISTRY = "octavo.local"
IMAGE_TAG = "e2e"
IMAGE_NAMES = ("operator", "gateway", "server", "server-cpu")
USER_ID = 65532


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What one image holds."""

    folders: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """Path → what it points at."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Path → bytes; each is executable and readable by all."""
    entrypoint: Sequence[str] = ()
    variables: Sequence[str] = ()
    """NAME=VALUE."""


def write_pause(folder: Path) -> Path:
    """Write what holds a pod's namespaces as a docker-archive into `folder`; returns its path."""
    # Nothing need be compiled for it: containerd ends a sandbox by SIGKILL, so that a sleeper does.
    pause = Content(files={"busybox": _busybox()}, entrypoint=["/busybox", "sleep", "2147483647"])
    return write_archive(folder / "pause.tar", [PAUSE_IMAGE], pause)


def write_checkout(folder: Path) -> Path:
    """Write what stands for all of Octavo's images as a docker-archive into `folder`; returns its path."""
    return write_archive(folder / "octavo.tar", [image(name) for name in IMAGE_NAMES], _octavo_content())


def image(name: str) -> str:
    """Reference of one of Octavo's images."""
    return f"{IMAGE_REGISTRY}/{name}:{IMAGE_TAG}"


def write_archive(path: Path, references: Sequence[str], content: Content) -> Path:
    """Write an image of one uncompressed layer, importable by `ctr images import`."""
    layer = _layer(content)
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": list(content.entrypoint),
                "Env": list(content.variables),
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "e2e.cluster.image"}],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": list(references), "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        _add_file(archive, config_name, config, 0o644)
        _add_file(archive, "layer.tar", layer, 0o644)
        _add_file(archive, "manifest.json", manifest, 0o644)
    return path


def _octavo_content() -> Content:
    names = ("bin", "sbin", "lib", "lib64")
    merged = {name: str(Path("/", name).readlink()) for name in names if Path("/", name).is_symlink()}
    separate = [name for name in names if Path("/", name).is_dir() and name not in merged]
    launcher = f"#!{BIN}/python\nimport sys\nfrom octavo_cli.__main__ import main\nsys.exit(main())\n"
    commands = BIN.relative_to("/")
    return Content(
        folders=["dev", "etc", "models", "opt", "proc", "run", "sys", "tmp", "usr", "var", *separate],
        links={**merged, f"{commands}/python": str(interpreter())},
        files={f"{commands}/octavo": launcher.encode()},
        variables=[
            f"PATH={BIN}:/usr/local/bin:/usr/bin:/bin",
            f"PYTHONPATH={search_path()}",
            # The checkout is mounted read-only.
            "PYTHONDONTWRITEBYTECODE=1",
        ],
    )


def _layer(content: Content) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name in sorted(content.folders):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            folder.mode = 0o1777 if name == "tmp" else 0o755
            layer.addfile(folder)
        for name, target in sorted(content.links.items()):
            link = tarfile.TarInfo(name)
            link.type = tarfile.SYMTYPE
            link.linkname = target
            layer.addfile(link)
        for name, data in sorted(content.files.items()):
            _add_file(layer, name, data, 0o755)
    return buffer.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = mode
    archive.addfile(info, io.BytesIO(data))


def _architecture() -> str:
    machine = run(["uname", "-m"]).strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _busybox() -> bytes:
    """A static busybox, whose `sleep` needs nothing else in the image."""
    program = Path(system_program("busybox")).read_bytes()
    if b"/ld-linux" in program or b"/ld-musl" in program:
        raise UnavailableError("busybox is linked dynamically here; the pause image needs Debian's busybox-static")
    return program
